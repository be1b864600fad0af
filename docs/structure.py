"""What the rooms of the house are and who imports whom, read from the imports: python docs/structure.py [ROOT]"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

FLOORS = ("configs", "modules", "trainers", "cluster", "cli")  # from the ground up
FRONT = ("api", "__main__", "livetrain")  # files at the root, on the highest floor; the last was the command once
Graph = dict[str, set[str]]


@cache
def files(root: Path) -> dict[str, Path]:
    """Return every Python file of the floors by its module name, without the package's."""
    paths = [root / f"{name}.py" for name in FRONT]
    paths += [path for name in FLOORS for path in sorted((root / name).rglob("*.py"))]
    names = {path.relative_to(root).with_suffix("").as_posix().replace("/", "."): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items() if path.is_file()}


def arrows(root: Path) -> Graph:
    """Return module -> the modules that it imports when it runs, within functions too."""
    known = files(root)
    found: Graph = {}
    for module, path in known.items():
        names = set()
        for node in _run(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        targets = {_nearest(name.removeprefix("livetrain."), known) for name in names}
        found[module] = {target for target in targets if target and target != module}
    return found


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a module but for those that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            child = ast.Module(child.orelse, [])
        yield child
        yield from _run(child)


def _nearest(name: str, known: dict[str, Path]) -> str | None:
    """Return the module that a dotted name lies in."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of nodes that reach each other (Tarjan's strongly connected components)."""
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


def floor(module: str) -> str:
    """Return the floor that a module lies on."""
    first = module.split(".")[0]
    return FLOORS[-1] if first in FRONT else first


def folders(root: Path) -> dict[str, list[str]]:
    """Return the modules of every folder with code, from the ground up; the highest floor has the root's files too."""
    found: dict[str, list[str]] = defaultdict(list)
    for module, path in files(root).items():
        where = path.parent.relative_to(root).as_posix()
        found[floor(module) if where == "." else where].append(module)
    filled = {where: modules for where, modules in found.items() if lines(root, modules)}
    return dict(sorted(filled.items(), key=lambda item: (FLOORS.index(item[0].split("/")[0]), item[0])))


def lines(root: Path, modules: list[str]) -> int:
    """Return how many lines some modules have together."""
    known = files(root)
    return sum(len(known[module].read_text(encoding="utf-8").splitlines()) for module in modules)


def joined(graph: Graph, groups: dict[str, list[str]]) -> Graph:
    """Return which group of modules imports from which others."""
    home = {module: name for name, modules in groups.items() for module in modules}
    found: Graph = {name: set() for name in groups}
    for module, targets in graph.items():
        if module in home:
            found[home[module]] |= {home[target] for target in targets if target in home} - {home[module]}
    return found


def measures(root: Path) -> dict[str, str]:
    """Return the figures by which one house is compared with another."""
    graph, members = arrows(root), folders(root)
    sizes = {module: lines(root, [module]) for module in graph}
    largest, fullest = max(sizes, key=sizes.__getitem__), max(members, key=lambda where: len(members[where]))
    rank = FLOORS.index
    up = [target for module in graph for target in graph[module] if rank(floor(target)) > rank(floor(module))]
    return {
        "floors": str(len({floor(module) for module in graph})),
        "rooms": str(len(members)),
        "files": str(len(graph)),
        "lines": f"{sum(sizes.values()):,}",
        "arrows between files": str(sum(map(len, graph.values()))),
        "arrows between rooms": str(sum(map(len, joined(graph, members).values()))),
        "arrows upward": str(len(up)),
        "circles among files": str(len(circles(graph))),
        "most files in one room": f"{len(members[fullest])} (`{fullest}`)",
        "largest file": f"{sizes[largest]} lines (`{largest.replace('.', '/')}.py`)",
    }


def rooms(root: Path) -> str:
    """Return the rooms and what they import from, as a table in Markdown."""
    members = folders(root)
    uses = joined(arrows(root), members)
    out = ["| room | files | lines | imports from |", "| --- | --- | --- | --- |"]
    for where, modules in members.items():
        used = ", ".join(f"`{each}`" for each in sorted(uses[where]))
        out.append(f"| `{where}` | {len(modules)} | {lines(root, modules):,} | {used} |")
    return "\n".join(out)


if __name__ == "__main__":
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    print(
        "\n".join(f"| {name} | {figure} |" for name, figure in measures(checkout).items()), rooms(checkout), sep="\n\n"
    )
