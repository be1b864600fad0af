"""The columns of Parquet files against what a recipe reads of them: their names, their types, and what to do."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.registry import TASKS
from livetrain.configs.schema import CANDIDATES, SEEN, Recipe
from livetrain.trainers.data.read.slices import Slices

IdKind = Literal["integers", "strings"]  # of the ids that a column holds: those of 7 and "7" differ
_TYPE = 48  # letters of a type in a message


def wanted_columns(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Return (column, kind, recipe key) of everything that the recipe reads."""
    wanted: list[tuple[str, str, str]] = []
    for name, feature in recipe.features.items():
        wanted += [(column, feature.holds, f"features.{name}") for column in recipe.columns(name)]
        if feature.weighted:
            wanted.append((feature.weighted, "weights", f"features.{name}.weights"))
        if feature.carried and feature.up_to:
            of = "time" if feature.time_unit is None else "unix time"
            wanted.append((feature.carried, f"{of}s", f"features.{name}.times"))
            wanted.append((feature.up_to, of, f"features.{name}.until"))
        elif feature.carried:
            wanted.append((feature.carried, "vectors", f"features.{name}.vectors"))
    for name, task in recipe.tasks.items():
        numeric = TASKS.owner(task.kind).numeric
        wanted.append((task.label, "number" if numeric else "label", f"tasks.{name}.label"))
        if task.sample_weight:
            wanted.append((task.sample_weight, "number", f"tasks.{name}.sample_weight"))
    wanted += [(column, "group", f"tasks.{name}.group") for name, column in recipe.groups().items()]
    wanted += _of_negatives(recipe)
    if recipe.evaluate.group_by:
        wanted.append((recipe.evaluate.group_by, "group", "evaluate.group_by"))
    named = {SEEN: "evaluate.seen", CANDIDATES: "evaluate.candidates"}
    wanted += [(column, "sequence", named[name]) for name, column in recipe.asides().items()]
    for name, columns in Slices(recipe.evaluate.slices).columns.items():
        wanted += [(column, "any", f"evaluate.slices.{name}") for column in columns]
    return wanted


def _of_negatives(recipe: Recipe) -> list[tuple[str, str, str]]:
    section, key = recipe.data.negatives, "data.negatives"
    if section is None:
        return []
    wanted = [(section.item, "id", f"{key}.item")]
    wanted += [(column, "id", f"{key}.within.{place}") for place, column in enumerate(section.within)]
    wanted += [(column, "sequence", f"{key}.seen.{place}") for place, column in enumerate(section.seen)]
    return wanted + ([(section.on_air.time, "number", f"{key}.on_air.time")] if section.on_air else [])


def plain(kind: pa.DataType) -> pa.DataType:
    """Return a column's type without what says only how it is stored: of lists, a list or large list remains."""
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if is_text(kind):
        return pa.string()
    if pa.types.is_large_list(kind):
        return pa.large_list(plain(kind.value_type))
    if is_list(kind):
        return pa.list_(plain(kind.value_type))
    return kind


def is_list(kind: pa.DataType) -> bool:
    """Say whether a row of a column is a list. List views are none: Arrow cannot read those that it writes."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Say whether a column of this type holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def id_kinds(recipe: Recipe, types: Mapping[str, pa.DataType]) -> dict[str, IdKind]:
    """Return of each feature whose ids are its column's own what they are; without those null throughout.

    Args:
        recipe: names the features.
        types: of the columns.
    """
    out: dict[str, IdKind] = {}
    for name, feature in recipe.features.items():
        if feature.parts or feature.holds not in ("id", "sequence"):
            continue
        kind = types[recipe.column(name)]
        if not is_null(kind):
            out[name] = "strings" if is_text(kind.value_type if is_list(kind) else kind) else "integers"
    return out


def is_null(kind: pa.DataType) -> bool:
    """Say whether a column holds null or lists of null throughout, written by one who knew no type."""
    return pa.types.is_null(kind) or is_list(kind) and is_null(kind.value_type)


def common(kinds: Iterable[pa.DataType]) -> pa.DataType | None:
    """Return the plain type of a column that has these types in different files; None where they mean different things.

    Where a file's column is null throughout, as on a day on which nothing happened, its writer may have known no type:
    null goes with any type, and a list of null with any list.
    """
    found = {plain(kind) for kind in kinds} - {pa.null()}
    if len(found) < 2:
        return next(iter(found), pa.null())
    if not all(map(is_list, found)):
        return None
    element = common(kind.value_type for kind in found)
    make = pa.large_list if any(map(pa.types.is_large_list, found)) else pa.list_
    return None if element is None else make(element)


def _id(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or is_text(kind) or pa.types.is_integer(kind) and not pa.types.is_uint64(kind)


def _list(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or is_list(kind) and _id(kind.value_type)


def _number(kind: pa.DataType) -> bool:
    fits = (pa.types.is_null, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(fit(kind) for fit in fits)


def _vector(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or is_list(kind) and _number(kind.value_type)


def _vectors(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or is_list(kind) and _vector(kind.value_type)


def _timestamp(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or pa.types.is_timestamp(kind)


def _unix(kind: pa.DataType) -> bool:
    return _timestamp(kind) or pa.types.is_integer(kind) and not pa.types.is_uint64(kind)


def _timestamps(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or is_list(kind) and _timestamp(kind.value_type)


def _unixes(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or is_list(kind) and _unix(kind.value_type)


@dataclass(frozen=True)
class _Kind:
    """What a column must be for its part in a recipe, in words too, and the type of one that is null throughout.

    Without such a type it stays null.
    """

    fits: Callable[[pa.DataType], bool]
    wish: str
    unknown: pa.DataType | None


_NO_TIMES = pa.list_(pa.timestamp("s"))
_KINDS = {
    "id": _Kind(_id, "int64 or a string", pa.int64()),
    "sequence": _Kind(_list, "list<int64> or a list of strings", pa.list_(pa.int64())),
    "vector": _Kind(_vector, "a list of numbers", pa.list_(pa.float32())),
    "time": _Kind(_timestamp, "a timestamp, or an integer whose unit the feature gives", pa.timestamp("s")),
    "unix time": _Kind(_unix, "a timestamp or an integer", pa.int64()),
    "times": _Kind(_timestamps, "a list of timestamps, or of integers whose unit the feature gives", _NO_TIMES),
    "unix times": _Kind(_unixes, "a list of timestamps or integers", pa.list_(pa.int64())),
    "weights": _Kind(_vector, "list<float32>", pa.list_(pa.float32())),
    "vectors": _Kind(_vectors, "a list of lists of float32", pa.list_(pa.list_(pa.float32()))),
    "dense": _Kind(_number, "a number (float32, float64 or an integer)", pa.float64()),
    "number": _Kind(_number, "a number (float32, float64 or an integer)", pa.float64()),
    "label": _Kind(_number, "an integer, boolean or float of 0 and 1", pa.float64()),
    "group": _Kind(_id, "int64 or a string", pa.int64()),
    "any": _Kind(lambda kind: True, "of any type", None),
}


_OF_CANDIDATES = ("label", "number")  # what requests have one of per candidate


def check_columns(
    file: str, schema: pa.Schema, wanted: list[tuple[str, str, str]], requests: bool = False
) -> dict[str, pa.DataType]:
    """Return the plain types of the wanted columns of a file of rows, or of requests, each column once."""
    found = {}
    for column, kind, key in wanted:
        places = schema.get_all_field_indices(column)
        if not places:
            raise BadInput(f"{key}: {file} has no column '{column}'{nearest(column, schema.names)}; correct the name")
        if len(places) > 1:
            raise BadInput(
                f"{key}: {file} has {len(places)} columns named '{column}', and nothing says which is meant; write it "
                "with a name for each"
            )
        stored = schema.field(places[0]).type
        found[column] = plain(stored)
        if requests and kind in _OF_CANDIDATES and not is_list(found[column]):
            raise BadInput(
                f"{key}: column '{column}' of {file} is {worded(stored)}, and with layout: request it must be a list "
                "with one value per candidate; group the rows by request, or use layout: row"
            )
        fits = _KINDS[kind].fits(found[column])
        if requests and is_list(found[column]):
            fits |= _KINDS[kind].fits(found[column].value_type)
        if not fits:
            raise BadInput(
                f"{key}: column '{column}' of {file} is {worded(stored)}, but must be {_KINDS[kind].wish}; "
                f"{_mend(kind, found[column])}"
            )
    return found


def of_candidates(schema: pa.Schema, wanted: list[tuple[str, str, str]]) -> frozenset[str]:
    """Return the columns of a split of requests that hold one value per candidate.

    These are lists of what their part in the recipe has one of in a row; labels and their weights always are. Of what
    a slice alone names, lists are.

    Args:
        schema: of the split's columns, as stored.
        wanted: see `wanted_columns`.

    Example:
        >>> schema = pa.schema({"user": pa.int64(), "item": pa.list_(pa.int64()), "seen": pa.list_(pa.int64())})
        >>> parts = [("user", "id", ""), ("item", "id", ""), ("seen", "sequence", "")]
        >>> sorted(of_candidates(schema, parts))
        ['item']
    """
    known = {column for column, kind, _ in wanted if kind != "any"}
    found = set()
    for column, kind, _ in wanted:
        stored = schema.field(column).type
        if kind == "any":
            theirs = column not in known and is_list(stored)
        else:
            theirs = is_list(stored) and (kind in _OF_CANDIDATES or not _KINDS[kind].fits(stored))
        if theirs:
            found.add(column)
    return frozenset(found)


def flat_schema(schema: pa.Schema, candidates: frozenset[str]) -> pa.Schema:
    """Return a split's schema with what each candidate has in the place of the lists of it."""
    return pa.schema([pa.field(f.name, f.type.value_type if f.name in candidates else f.type) for f in schema])


def worded(kind: pa.DataType) -> str:
    """Return a type's name for messages: the beginning of a long one."""
    text = str(kind)
    return text if len(text) <= _TYPE else f"{text[: _TYPE - 3]}..."


def _mend(kind: str, found: pa.DataType) -> str:
    """Return what to do about a column that does not fit: (its part in the recipe, its plain type)."""
    element = found.value_type if is_list(found) else found
    if kind == "id" and _list(found):
        return "set the feature's type: sequence or bag, or keep one id per row when preparing the data"
    if kind == "sequence" and _id(found):
        return "set the feature's type: id, or make each row a list when preparing the data"
    if kind == "dense" and _vector(found):
        return "set the feature's type: vector, or keep one value per row when preparing the data"
    if (kind == "time" and _unix(found)) or (kind == "times" and _unixes(found)):
        return "set the feature's unit: s, ms, us or ns"
    if kind == "vectors":
        return "store a list per row, in it a vector of each of the row's ids"
    lists = kind in ("sequence", "vector", "weights", "times", "unix times")
    if is_list(found) and (not lists or is_list(element)):
        return f"keep one {'list' if lists else 'value'} per row when preparing the data"
    if pa.types.is_struct(element) or pa.types.is_map(element):
        return "make the part that is meant a column of its own"
    return "convert it when preparing the data"


def settled(columns: dict[str, pa.DataType], wanted: list[tuple[str, str, str]]) -> pa.Schema:
    """Return the schema of a split's columns; what is null in every file has the type of its part in the recipe."""
    fields: dict[str, pa.Field] = {}
    for column, kind, _ in wanted:
        found = columns[column]
        fields.setdefault(column, pa.field(column, is_null(found) and _KINDS[kind].unknown or found))
    return pa.schema(fields.values())
