"""Recipe files that are built on others: each is its base with its own keys put over it, or taken away from it."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from livetrain.configs import plugins
from livetrain.configs.errors import BadInput, cut, nearest, shown
from livetrain.configs.removal import Place, parts_of, tables_of, without
from livetrain.configs.schema import Recipe
from livetrain.configs.schema.data import BATCH
from livetrain.configs.shape import below, kind_of
from livetrain.configs.trees import read_tree

_MOST = 32  # files of which each is built on the next


class Spot(NamedTuple):
    """A line of a recipe file, which so many others are built on."""

    file: str
    line: int
    depth: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


def read(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict, dict[Place, Spot]]:
    """Return the mapping of a file on its base, and where each of its keys stands.

    Args:
        path: the file.
        above: the files that are built on this one.
    """
    tree, lines = read_tree(path, "recipe", "keys (data, features, model, tasks, ...)")
    return on_base(tree, {place: Spot(str(path), line, len(above)) for place, line in lines.items()}, path, above)


def on_base(
    tree: dict, spots: dict[Place, Spot], path: Path, above: tuple[Path, ...]
) -> tuple[dict, dict[Place, Spot]]:
    """Return a recipe's mapping put on its base, if it has one, and where each key stands.

    Of a key that has to be given anew, as what it named was taken away, that is the line which did so.
    """
    if "base" not in tree:
        return tree, spots
    base, where = tree.pop("base"), spots.pop(("base",), path)
    if not isinstance(base, str):
        raise BadInput(f"{where}: base is the path of another recipe file, not {shown(base)}")
    file, above = path.parent / base, (*above, path.resolve())
    if not is_file(file):
        raise BadInput(f"{where}: base: there is no recipe file {file}; write its path as seen from {path.parent}/")
    if file.resolve() in above:
        raise BadInput(f"{where}: base: {file} is itself built on {path}; name a file that is not")
    if len(above) > _MOST:
        raise BadInput(f"{where}: base: more than {_MOST} files are built on one another; write some into one")
    under, below_it = read(file, above)
    under, over, anew = take_away(under, tree, lambda place: str(spots.get(place, path)))
    replaced: list[Place] = []
    merged = merge(under, over, replaced=replaced)
    stand = {place: spot for place, spot in below_it.items() if not any(place[: len(one)] == one for one in replaced)}
    return merged, stand | {place: spots[null] for place, null in anew.items() if null in spots} | spots


def is_file(path: Path) -> bool:
    """Return whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def merge(under: Any, over: Any, declared: Any = Recipe, place: Place = (), replaced: list[Place] | None = None) -> Any:
    """Return `over` put on `under`: mappings key by key, but a section of another kind, and anything else, as a whole.

    Args:
        under: what stands in the recipe, not checked yet.
        over: what is put over it.
        declared: the type that their place has in the schema.
        place: of both.
        replaced: gets the places of what is replaced as a whole.
    """
    if not isinstance(under, dict) or not isinstance(over, dict) or _of_another_kind(under, over, declared):
        if replaced is not None:
            replaced.append(place)
        return over
    both = under | over
    return under | {
        key: merge(under[key], value, below(declared, key, both), (*place, str(key)), replaced)
        if key in under
        else value
        for key, value in over.items()
    }


def _of_another_kind(under: dict, over: dict, declared: Any) -> bool:
    key, kind = kind_of(declared, under)
    return kind is not None and isinstance(over.get(key), str) and over[key] != kind


def take_away(under: dict, over: dict, said: Callable[[Place], str]) -> tuple[dict, dict, dict[Place, Place]]:
    """Take from a recipe the features, tables, tasks and slices that another one over it sets to null.

    Args:
        under: the recipe.
        over: what will be put over it.
        said: place of a null -> who says so, for messages.

    Returns:
        The recipe without those parts, and without a batch that `over` says the other way; `over` without those nulls;
        and the places of the recipe's keys that must be given anew, each with the place of the null that it lost its
        value to.
    """
    under = _without_other_batch(under, over)
    own, stood = parts_of(over), parts_of(under)
    used = tables_of(over) | {
        name for (section, name), value in own.items() if section == "tables" and value is not None
    }
    anew: dict[Place, Place] = {}
    if None in own.values():
        for tree in (under, over):  # which keys of a kind name parts of a recipe, its own class says
            with contextlib.suppress(BadInput, TypeError):  # told when the whole is checked
                plugins.load(tree.get("plugins") or ())
    for (section, name), value in own.items():
        if value is not None:
            continue
        place = (*section.split("."), name)
        if stood.get((section, name)) is None:
            known = [name for part, name in stood if part == section]
            what = section.rsplit(".", 1)[-1].removesuffix("s")
            none = f"there is no {what} '{cut(name)}'{nearest(name, known)}"
            raise BadInput(f"{said(place)}: {cut('.'.join(place))}: null takes a {what} away, and {none}")
        under, missing = without(under, (section, name), used)
        over = _without_key(over, place)
        anew |= dict.fromkeys(missing, place)
    return under, over, anew


def _without_other_batch(under: dict, over: dict) -> dict:
    """Return a recipe without its batch where one over it says a batch, in either way."""
    stands, said = under.get("data"), over.get("data")
    if not isinstance(stands, dict) or not isinstance(said, dict) or all(said.get(way) is None for way in BATCH):
        return under
    return under | {"data": {key: value for key, value in stands.items() if key not in BATCH}}


def _without_key(tree: dict, place: Place) -> dict:
    key, *rest = place
    if rest:
        return tree | {key: _without_key(tree[key], tuple(rest))}
    return {name: value for name, value in tree.items() if name != key}
