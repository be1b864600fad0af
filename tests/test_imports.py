"""Who imports whom: an import never goes up a floor, and there are no circles, among files and among rooms.

An import inside a function counts as any other. One for type checkers alone (`if TYPE_CHECKING:`) does not, since it
never runs. What `configs.plugins` imports by name is not an import statement: any package may define a kind.
"""

import ast
import sys
from pathlib import Path

import pytest

import livetrain

ROOT = Path(livetrain.__file__).resolve().parent
sys.path.insert(0, str(ROOT / "docs"))
import structure  # noqa: E402  (what the page on architecture measures by)

ORDER = (*structure.FLOORS[:-1], "api", "cli", "__main__")  # api lies between the floor below the commands and them
GRAPH = structure.arrows(ROOT)


def upward(graph: structure.Graph) -> list[str]:
    def floor(module: str) -> int:
        return ORDER.index(module.split(".")[0])

    return [f"{one} -> {other}" for one in graph for other in graph[one] if floor(other) > floor(one)]


def of_rooms(graph: structure.Graph) -> structure.Graph:
    """Return which room of a floor imports which other: `trainers.train` stands for all that is in it."""
    rooms: dict[str, list[str]] = {}
    for module in graph:
        room = ".".join(module.split(".")[:2])
        if "." in room and ROOT.joinpath(*room.split(".")).is_dir():
            rooms.setdefault(room, []).append(module)
    return structure.joined(graph, rooms)


def test_no_import_goes_up():
    assert upward(GRAPH) == []


def test_there_are_no_circles_of_files():
    assert structure.circles(GRAPH) == []


def test_there_are_no_circles_of_rooms():
    rooms = of_rooms(GRAPH)
    assert {"trainers.train", "trainers.data", "cluster.sweep"} <= set(rooms)
    assert "trainers.evaluate" in rooms["trainers.train"]
    assert structure.circles(rooms) == []


def test_every_floor_is_read():
    assert {module.split(".")[0] for module in GRAPH} == set(ORDER)
    assert len(GRAPH) > 200
    assert "configs.errors" in GRAPH["trainers.train.loop"] | GRAPH["trainers.train.checkpoint"]


def test_the_root_imports_nothing_before_it_is_asked():
    run = [node for node in ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body]
    assert not [
        ast.unparse(node)
        for node in run
        if isinstance(node, ast.Import | ast.ImportFrom)
        if "typing" not in ast.unparse(node)
    ]


def test_nothing_imports_the_server():
    nodes = [node for path in structure.files(ROOT).values() for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {"torch", "livetrain.configs.errors"} <= names
    assert not [name for name in names if {"serve"} & set(name.split(".")[:2])]


def test_imports_are_by_the_full_name():
    nodes = [node for path in structure.files(ROOT).values() for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    assert not [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize(
    ("files", "up", "round_"),
    [
        ({"configs/a.py": "from livetrain.modules import b", "modules/b.py": ""}, 1, 0),
        ({"configs/a.py": "def f():\n    import livetrain.modules.b", "modules/b.py": ""}, 1, 0),
        ({"configs/a.py": "from livetrain import api", "api.py": ""}, 1, 0),
        ({"configs/a.py": "if not TYPE_CHECKING:\n    import livetrain.cli.b", "cli/b.py": ""}, 1, 0),
        ({"cli/a.py": "from livetrain.cli.b import x", "cli/b.py": "from livetrain.cli import a"}, 0, 1),
        ({"cli/a.py": "if TYPE_CHECKING:\n    import livetrain.cli.b", "cli/b.py": "import livetrain.cli.a"}, 0, 0),
    ],
)
def test_what_must_not_be_is_found(tmp_path, files, up, round_):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = structure.arrows(tmp_path)
    assert (len(upward(graph)), len(structure.circles(graph))) == (up, round_)
