"""Who imports whom: an import never goes up a floor, and there are no circles, among files and among rooms.

An import inside a function counts as any other. One for type checkers alone (`if TYPE_CHECKING:`) does not, since it
never runs. What `configs.plugins` imports by name is not an import statement: any package may define a kind.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import livetrain

ROOT = Path(livetrain.__file__).parent
FLOORS = ("configs", "modules", "trainers", "cluster", "api", "cli", "__main__")  # from the ground up
Graph = dict[str, set[str]]


def read(root: Path) -> Graph:
    """Return for every module below `root`, as `livetrain.configs.load`, which modules of livetrain it imports."""
    paths = [*root.glob("*.py"), *(path for floor in FLOORS for path in (root / floor).rglob("*.py"))]
    names = {_name(path.relative_to(root)): path for path in paths}
    return {name: set(_imports(path.read_text(), names)) - {name} for name, path in names.items()}


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(("livetrain", *parts[: -1 if parts[-1] == "__init__" else None]))


def _imports(source: str, known: dict[str, Path]) -> Iterator[str]:
    for node in _run(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are by the package's full name"
            found = [full if (full := f"{node.module}.{alias.name}") in known else node.module for alias in node.names]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] == "livetrain")


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a module's nodes but for those that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            child = ast.Module(child.orelse, [])
        yield child
        yield from _run(child)


def floor(module: str) -> int:
    parts = module.split(".")
    return FLOORS.index(parts[1]) if len(parts) > 1 else FLOORS.index("api")


def upward(graph: Graph) -> list[str]:
    return [f"{one} -> {other}" for one in graph for other in graph[one] if floor(other) > floor(one)]


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of nodes that reach each other (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(group)

    for node in graph:
        if node not in index:
            visit(node)
    return found


def of_rooms(graph: Graph) -> Graph:
    """Return which room within a floor imports which other: `livetrain.trainers.train` stands for all that is in it."""

    def room(module: str) -> str | None:
        parts = module.split(".")[:3]
        return ".".join(parts) if len(parts) == 3 and ROOT.joinpath(*parts[1:]).is_dir() else None

    rooms: Graph = {}
    for one, others in graph.items():
        if room(one):
            rooms.setdefault(room(one), set()).update({room(other) for other in others} - {room(one), None})
    return rooms


GRAPH = read(ROOT)


def test_no_import_goes_up():
    assert upward(GRAPH) == []


def test_there_are_no_circles_of_files():
    assert circles(GRAPH) == []


def test_there_are_no_circles_of_rooms():
    rooms = of_rooms(GRAPH)
    assert {"livetrain.trainers.train", "livetrain.trainers.data", "livetrain.cluster.sweep"} <= set(rooms)
    assert circles(rooms) == []


def test_every_floor_is_read():
    assert {module.split(".")[1] for module in GRAPH if "." in module} == set(FLOORS)
    assert GRAPH["livetrain"] == set()  # the root imports nothing before it is asked
    assert len(GRAPH) > 150


def test_nothing_imports_the_server():
    paths = [*ROOT.glob("*.py"), *(path for name in FLOORS for path in (ROOT / name).rglob("*.py"))]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {"torch", "livetrain.configs.errors"} <= names
    assert not [name for name in names if {"serve"} & set(name.split(".")[:2])]


@pytest.mark.parametrize(
    ("files", "up", "round_"),
    [
        ({"configs/a.py": "from livetrain.modules import b", "modules/b.py": ""}, 1, 0),
        ({"configs/a.py": "def f():\n    import livetrain.modules.b", "modules/b.py": ""}, 1, 0),
        ({"configs/a.py": "import livetrain"}, 1, 0),
        ({"configs/a.py": "if not TYPE_CHECKING:\n    import livetrain.cli"}, 1, 0),
        ({"cli/a.py": "from livetrain.cli.b import x", "cli/b.py": "from livetrain.cli import a"}, 0, 1),
        ({"cli/a.py": "if TYPE_CHECKING:\n    import livetrain.cli.b", "cli/b.py": "import livetrain.cli.a"}, 0, 0),
    ],
)
def test_what_must_not_be_is_found(tmp_path, files, up, round_):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = read(tmp_path)
    assert (len(upward(graph)), len(circles(graph))) == (up, round_)
