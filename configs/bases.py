"""Recipe files that are built on others: each is its base with its own keys put over it."""

from pathlib import Path
from typing import Any

from livetrain.configs.errors import BadInput, shown
from livetrain.configs.trees import read_tree

_MOST = 32  # files of which each is built on the next


def read(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict, dict[tuple[str, ...], str]]:
    """Return the mapping of a file on its base, and where each of its keys stands, as ``file, line n``.

    Args:
        path: the file.
        above: the files that are built on this one.
    """
    tree, lines = read_tree(path, "recipe", "keys (data, features, model, tasks, ...)")
    return on_base(tree, {place: f"{path}, line {line}" for place, line in lines.items()}, path, above)


def on_base(
    tree: dict, places: dict[tuple[str, ...], str], path: Path, above: tuple[Path, ...]
) -> tuple[dict, dict[tuple[str, ...], str]]:
    """Return a recipe's mapping put on its base, if it has one, and where each key stands."""
    if "base" not in tree:
        return tree, places
    base, where = tree.pop("base"), places.pop(("base",), str(path))
    if not isinstance(base, str):
        raise BadInput(f"{where}: base is the path of another recipe file, not {shown(base)}")
    file, above = path.parent / base, (*above, path.resolve())
    if not is_file(file):
        raise BadInput(f"{where}: base: there is no recipe file {file}; write its path as seen from {path.parent}/")
    if file.resolve() in above:
        raise BadInput(f"{where}: base: {file} is itself built on {path}; name a file that is not")
    if len(above) > _MOST:
        raise BadInput(f"{where}: base: more than {_MOST} files are built on one another; write some into one")
    under, places_under = read(file, above)
    return merge(under, tree), places_under | places


def is_file(path: Path) -> bool:
    """Return whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def merge(under: Any, over: Any) -> Any:
    """Return `over` put on `under`: mappings key by key, anything else as a whole."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return under | {key: merge(under.get(key), value) for key, value in over.items()}
