"""A recipe's mapping without some of its features, tables, tasks or slices, wherever it names them."""

from collections.abc import Callable, Iterable
from typing import Any, get_args, get_origin

from annotated_types import MinLen

from livetrain.configs.overrides import get
from livetrain.configs.schema import Recipe
from livetrain.configs.shape import bare, fields, unwrap
from livetrain.configs.values import Bound, Names, Together

Part = tuple[str, str]  # section and name, as ("features", "user")
Place = tuple[str, ...]
Goes = Callable[[Part], bool]
_SECTIONS = ("features", "tables", "tasks", "evaluate.slices")  # whose keys are the recipe's own names
_GONE: Any = object()  # is left of what cannot be without a part that goes


def without(tree: dict, part: Part, used: Iterable[str] = ()) -> tuple[dict, list[Place]]:
    """Return a recipe's mapping without one of its parts, and the places of keys that must be given anew.

    The part goes out of every list and every key whose type says that it names parts (`configs.values.Names`). What
    cannot be without it goes too: a feature without its table, an attention without events, a cross of fewer than two.
    So does a table that no other feature looks up.

    Args:
        tree: what a recipe file holds, not checked yet.
        part: what to take away.
        used: tables that stay, whoever looks them up.

    Example:
        >>> features = {"age": {"type": "id", "table": "ages"}, "sex": {"type": "id", "table": "sexes"}}
        >>> tree = {"features": features, "tables": {"ages": {}, "sexes": {}}, "model": {"kind": "ncf", "item": "age"}}
        >>> left, anew = without(tree, ("features", "age"))
        >>> left
        {'features': {'sex': {'type': 'id', 'table': 'sexes'}}, 'tables': {'sexes': {}}, 'model': {'kind': 'ncf'}}
        >>> anew
        [('model', 'item')]
    """
    gone, anew = {part}, list[Place]()
    while gone:
        stood, looked_up = {*parts_of(tree)}, tables_of(tree)
        tree, missing = _sections(tree, gone.__contains__)
        anew += missing
        idle = {("tables", name) for name in looked_up - tables_of(tree) - {*used}}
        gone = (stood - gone - {*parts_of(tree)}) | {part for part in idle if part in parts_of(tree)}
    return tree, anew


def parts_of(tree: dict) -> dict[Part, Any]:
    """Return the parts that a recipe's mapping has, and what it says of each."""
    found = {section: get(tree, tuple(section.split("."))) for section in _SECTIONS}
    return {
        (section, name): value
        for section, parts in found.items()
        if isinstance(parts, dict)
        for name, value in parts.items()
        if isinstance(name, str)
    }


def tables_of(tree: dict) -> set[str]:
    """Return the tables that features name."""
    seen: set[Part] = set()

    def note(part: Part) -> bool:
        seen.add(part)
        return False

    _cut(Recipe.model_fields["features"].annotation, tree.get("features"), note)
    return {name for section, name in seen if section == "tables"}


def _sections(tree: dict, goes: Goes) -> tuple[dict, list[Place]]:
    """Return the recipe's sections without what goes, and the keys that the sections which stay have to be given."""
    left, anew = dict[str, Any](), list[Place]()
    for name, section in tree.items():
        field = Recipe.model_fields.get(name)
        if field is None or not isinstance(section, dict):
            left[name] = section
        elif field.is_required() and get_origin(bare(field.annotation)) is not dict:
            left[name], missing = _section(field.annotation, section, goes)
            anew += [(name, key) for key in missing]
        elif (rest := _cut(field.annotation, section, goes)) is not _GONE:
            left[name] = rest
    return left, anew


def _section(declared: Any, section: dict, goes: Goes) -> tuple[dict, list[str]]:
    """Return a section without what goes, and those of its keys that went and that it cannot be without."""
    known = fields(declared, section)
    lost = {
        number
        for key, field in known.items()
        if any(isinstance(mark, Together) for mark in field.metadata) and isinstance(section.get(key), list)
        for number, one in enumerate(section[key])
        if _cut(get_args(bare(field.annotation))[0], one, goes) is _GONE
    }
    left, missing = dict[str, Any](), list[str]()
    for key, value in section.items():
        field = known.get(key)
        together = field is not None and any(isinstance(mark, Together) for mark in field.metadata)
        rest = value if field is None else _cut(field.annotation, value, goes, field.metadata, lost if together else ())
        if rest is not _GONE:
            left[key] = rest
        elif field is not None and (field.is_required() or any(isinstance(mark, Bound) for mark in field.metadata)):
            missing.append(key)
    return left, missing


def _cut(declared: Any, value: Any, goes: Goes, marks: Iterable[Any] = (), lost: Iterable[int] = ()) -> Any:
    """Return a value without what goes, or `_GONE`.

    Args:
        declared: the type that its place has in the schema.
        value: what stands there.
        goes: whether a part of the recipe goes.
        marks: of its place, besides those of its type.
        lost: numbers of a list's entries that go.
    """
    kind, own = unwrap(declared)
    marks = [*marks, *own]
    if isinstance(value, str):
        named = [part for mark in marks if isinstance(mark, Names) for part in mark.of(value)]
        return _GONE if any([goes(part) for part in named]) else value
    if isinstance(value, list) and get_origin(kind) is list:
        entries = (_cut(get_args(kind)[0], one, goes) for number, one in enumerate(value) if number not in lost)
        left = [one for one in entries if one is not _GONE]
        least = max((mark.min_length for mark in marks if isinstance(mark, MinLen)), default=0)
        return _GONE if len(left) < min(least, len(value)) else left
    if isinstance(value, dict) and get_origin(kind) is dict:
        names, inner = get_args(kind)
        stay = {key: _cut(inner, one, goes) for key, one in value.items() if _cut(names, key, goes) is not _GONE}
        return {key: one for key, one in stay.items() if one is not _GONE}
    if isinstance(value, dict):
        rest, missing = _section(declared, value, goes)
        return _GONE if missing else rest
    return value
