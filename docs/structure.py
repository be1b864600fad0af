"""What the rooms of the house are and who imports whom, read from the imports: python docs/structure.py [ROOT]"""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOMS = ("configs", "modules", "trainers", "cluster", "cli")  # from the ground up


def files(root: Path) -> dict[str, Path]:
    """Return every tracked Python file of the rooms by its module name, without the package's."""
    names = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()
    chosen = [name for name in names if name.split("/")[0] in ROOMS]
    return {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): root / name for name in chosen}


def arrows(root: Path) -> dict[str, set[str]]:
    """Return module -> the modules that it imports, those within functions included."""
    known = files(root)
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        targets = {_nearest(name.removeprefix("livetrain."), known) for name in names}
        found[module] = {target for target in targets if target and target != module}
    return found


def _nearest(name: str, known: dict[str, Path]) -> str | None:
    """Return the module that a dotted name lies in."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other in a circle (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    out: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                out.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return out


def room(module: str) -> str:
    """Return the folder that a module lies in, as ``trainers/train``."""
    return module.rpartition(".")[0].replace(".", "/") or module


def page(root: Path) -> str:
    """Return the rooms, the arrows between them and a few measures, as Markdown."""
    known, graph = files(root), arrows(root)
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in known.items()}
    members: dict[str, list[str]] = defaultdict(list)
    for module, path in known.items():
        members[path.parent.relative_to(root).as_posix()].append(module)
    home = {module: where for where, modules in members.items() for module in modules}
    uses: dict[str, set[str]] = defaultdict(set)
    for module, targets in graph.items():
        uses[home[module]] |= {home[target] for target in targets if home[target] != home[module]}
    upward = sorted(
        f"{module} -> {target}"
        for module, targets in graph.items()
        for target in targets
        if ROOMS.index(target.split(".")[0]) > ROOMS.index(module.split(".")[0])
    )
    largest, fullest = max(lines, key=lines.get), max(members, key=lambda where: len(members[where]))
    out = [
        "| measure | |",
        "| --- | --- |",
        f"| folders | {len(members)} |",
        f"| files | {len(known)} |",
        f"| lines | {sum(lines.values()):,} |",
        f"| arrows between folders | {sum(map(len, uses.values()))} |",
        f"| circles among files | {len(circles(graph))} |",
        f"| imports upward | {len(upward)} |",
        f"| most files in one folder | {len(members[fullest])} ({fullest}) |",
        f"| largest file | {lines[largest]} lines ({largest}) |",
        "",
        "| folder | files | lines | imports from |",
        "| --- | --- | --- | --- |",
    ]
    for where in sorted(members, key=lambda each: (ROOMS.index(each.split("/")[0]), each)):
        used = ", ".join(f"`{each}`" for each in sorted(uses[where]))
        out.append(f"| `{where}` | {len(members[where])} | {sum(lines[m] for m in members[where]):,} | {used} |")
    return "\n".join(out)


if __name__ == "__main__":
    print(page(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()))
