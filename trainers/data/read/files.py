"""Finding a split's Parquet files on any filesystem, and checking their columns against a recipe."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from livetrain.configs.errors import BadInput, nearest, without_credentials
from livetrain.configs.registry import TASKS
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.slices import Slices

SUFFIX = ".parquet"
IdKind = Literal["integers", "strings"]  # of the ids that a column holds: those of 7 and "7" differ
_ALIKE = re.compile(r"(?i)\.(parquet|parq|pq)(?!.*\.crc$)(\.|$)")  # in the name of a file that is no NAME.parquet
_DEEP = 4  # folders below a split's in which Parquet files are looked for
_SIGNATURE = 28  # bytes behind a footer that is to be read without a key, of a file that has encrypted columns
_TYPE, _WORDS = 48, 110  # letters of a type, and of an error's words, in a message


class NoPartition(BadInput):
    """The data have no folder for a day; perhaps not yet."""


def open_filesystem(path: str, key: str = "data.path") -> tuple[fs.FileSystem, str]:
    """Return the filesystem and the path in it of a local path or a URI (file, s3, gs, hdfs, abfs, fsspec+...).

    Args:
        path: as the user gave it.
        key: where, for the message.

    Raises:
        BadInput: no filesystem knows it.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), path.rstrip("/") or "/"
    try:
        filesystem, root = fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError, ImportError, ValueError) as error:
        why = without_credentials(short(error))
        raise BadInput(f"{key}: {without_credentials(path)} cannot be opened ({why}); correct {key}") from error
    return filesystem, root.rstrip("/")


def shown(filesystem: fs.FileSystem, path: str) -> str:
    """Return a file's name for messages: without credentials, and with the filesystem's name where it is not local."""
    return path if isinstance(filesystem, fs.LocalFileSystem) else f"{filesystem.type_name}:{path}"


def short(error: BaseException) -> str:
    """Return the first line of an error's message, without its end point; the beginning of a long one."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return text if len(text) <= _WORDS else f"{text[: _WORDS - 3]}..."


def split_files(recipe: Recipe, split: str) -> tuple[fs.FileSystem, str, list[str]]:
    """Return where a recipe's split lies: its filesystem, its name for messages, and its Parquet files, sorted.

    Without `data.days` a split is the folder of its name; with them it is the partitions of its days, in their order.

    Raises:
        NoPartition: a day's partition is missing.
        BadInput: as `list_files`.
    """
    filesystem, root = open_filesystem(recipe.data.path)
    if recipe.data.days is None:
        folder = f"{root}/{split}"
        return filesystem, shown(filesystem, folder), list_files(filesystem, folder)
    days, paths = recipe.data.days.of(split), []
    try:
        infos = filesystem.get_file_info([f"{root}/date={day}" for day in days])
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{shown(filesystem, root)}: cannot be read ({short(error)}); correct data.path") from error
    for day, info in zip(days, infos, strict=True):
        if info.type != fs.FileType.Directory:
            raise NoPartition(
                f"data.days.{split}: {shown(filesystem, root)} has no partition date={day}; prepare that day, or "
                "choose other days"
            )
        paths += list_files(filesystem, info.path)
    return filesystem, f"{shown(filesystem, root)}/date={getattr(recipe.data.days, split)}", paths


def list_files(filesystem: fs.FileSystem, folder: str, spark: bool = False) -> list[str]:
    """Return what `find_files` does.

    Raises:
        BadInput: as there; or the folder holds no Parquet file.
    """
    paths = find_files(filesystem, folder, spark)
    if not paths:
        raise BadInput(f"{shown(filesystem, folder)}: the folder holds no *.parquet file; prepare the data again")
    return paths


def find_files(filesystem: fs.FileSystem, folder: str, spark: bool = False) -> list[str]:
    """Return the sorted paths of a folder's Parquet files, and of those in its folders NAME.parquet, as Spark writes.

    Names that begin with . or _ are left out, as Spark does, and so are checksums and what has nothing to do with
    Parquet. Whatever else might hold rows is refused: rows that nobody misses would be left out of every epoch.

    Args:
        filesystem: where the folder is.
        folder: of a split, or of a day.
        spark: whether it is a folder NAME.parquet itself, which has no other in it.

    Raises:
        BadInput: there is no such folder, it cannot be listed, or something in it might hold rows and is not read.
    """
    name = shown(filesystem, folder)
    paths = []
    try:
        for info in _listed(filesystem, folder):
            if info.type == fs.FileType.Directory and info.base_name.endswith(SUFFIX) and not spark:
                paths += list_files(filesystem, info.path, spark=True)
            elif info.is_file and info.base_name.endswith(SUFFIX):
                paths.append(info.path)
            elif why := _overlooked(filesystem, info):
                raise BadInput(f"{shown(filesystem, info.path)}: {why}, or begin its name with _ to leave it out")
    except FileNotFoundError as error:
        raise BadInput(f"data.path: there is no folder {name}; prepare the data first, or correct data.path") from error
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"data.path: {name} cannot be listed ({short(error)}); correct data.path") from error
    return paths


def files_below(filesystem: fs.FileSystem, root: str, key: str) -> list[str]:
    """Return a Parquet file itself, or the sorted paths of all below a folder, in partitions ``date=...`` too.

    As for `find_files`, names that begin with . or _ are left out.

    Args:
        filesystem: where they are.
        root: the file or the folder.
        key: what names it, for messages.

    Raises:
        BadInput: there is none, the folder cannot be listed, or something in it might hold rows and is not read.
    """
    name = shown(filesystem, root)
    try:
        if filesystem.get_file_info(root).is_file:
            return [root]
        paths, folders = [], [root]
        for folder in folders:
            for info in _listed(filesystem, folder):
                if info.type == fs.FileType.Directory:
                    folders.append(info.path)
                elif info.is_file and info.base_name.endswith(SUFFIX):
                    paths.append(info.path)
                elif why := _overlooked(filesystem, info):
                    raise BadInput(f"{shown(filesystem, info.path)}: {why}, or begin its name with _ to leave it out")
    except FileNotFoundError as error:
        raise BadInput(f"{key}: there is nothing at {name}; correct {key}") from error
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{key}: {name} cannot be listed ({short(error)}); correct {key}") from error
    if not paths:
        raise BadInput(f"{key}: {name}: there is no *.parquet file here; correct {key}")
    return sorted(paths)


def _listed(filesystem: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    """Return what lies in a folder by name, without what is hidden; a link to nothing is of type NotFound."""
    found = {info.base_name: info for info in filesystem.get_file_info(fs.FileSelector(folder))}
    if isinstance(filesystem, fs.LocalFileSystem):  # which does not list a link to nothing
        for entry in os.scandir(folder):
            if entry.is_symlink() and not os.path.exists(entry.path):
                found[entry.name] = fs.FileInfo(entry.path, fs.FileType.NotFound)
    return [found[name] for name in sorted(found) if not name.startswith((".", "_"))]


def _overlooked(filesystem: fs.FileSystem, info: fs.FileInfo) -> str | None:
    """Return why a neighbour of a split's files might hold rows, and the mend; None where it does not."""
    if info.type == fs.FileType.Directory:
        if _holds_parquet(filesystem, info.path, _DEEP):
            return "a folder of Parquet files beside or in the place of a split's own; move them up"
    elif info.type == fs.FileType.NotFound:
        return "a link to nothing; restore what it points to, remove it"
    elif _ALIKE.search(info.base_name) or not info.is_file and info.base_name.endswith(SUFFIX):
        return "no file NAME.parquet, so it is not read; rename it, remove it"
    return None


def _holds_parquet(filesystem: fs.FileSystem, folder: str, deep: int) -> bool:
    """Say whether Parquet files lie in a folder or so many levels below: links may go round in circles."""
    return any(
        info.base_name.endswith(SUFFIX)
        or (info.type == fs.FileType.Directory and deep > 0 and _holds_parquet(filesystem, info.path, deep - 1))
        for info in _listed(filesystem, folder)
    )


def read_footer(filesystem: fs.FileSystem, path: str) -> tuple[pq.FileMetaData, pa.Schema]:
    """Return what a Parquet file says of itself.

    Raises:
        BadInput: it is not a whole Parquet file, or cannot be opened.
    """
    name = shown(filesystem, path)
    try:
        with filesystem.open_input_file(path) as handle:
            file = pq.ParquetFile(handle)
            schema = file.schema_arrow
            schema.names  # noqa: B018  (a name that is no UTF-8 shows here)
            length = int.from_bytes(handle.read_at(4, handle.size() - 8), "little")
    except (PermissionError, FileNotFoundError) as error:
        raise BadInput(f"{name}: cannot be opened ({short(error)}); restore it or give access") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        if "encrypted" in str(error):
            raise BadInput(f"{name}: it is encrypted; write it without encryption") from error
        raise BadInput(f"{name}: not a complete Parquet file ({short(error)}); write or copy it again") from error
    if length == file.metadata.serialized_size + _SIGNATURE:  # to ask for such a column's figures ends the process
        raise BadInput(f"{name}: columns of it are encrypted; write it without encryption")
    return file.metadata, schema


def wanted_columns(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Return (column, kind, recipe key) of everything that the recipe reads."""
    wanted: list[tuple[str, str, str]] = []
    for name, feature in recipe.features.items():
        wanted += [(column, feature.holds, f"features.{name}") for column in recipe.columns(name)]
        if feature.weighted:
            wanted.append((feature.weighted, "weights", f"features.{name}.weights"))
        if feature.carried:
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


@dataclass(frozen=True)
class _Kind:
    """What a column must be for its part in a recipe, in words too, and the type of one that is null throughout.

    Without such a type it stays null.
    """

    fits: Callable[[pa.DataType], bool]
    wish: str
    unknown: pa.DataType | None


_KINDS = {
    "id": _Kind(_id, "int64 or a string", pa.int64()),
    "sequence": _Kind(_list, "list<int64> or a list of strings", pa.list_(pa.int64())),
    "vector": _Kind(_vector, "a list of numbers", pa.list_(pa.float32())),
    "time": _Kind(_timestamp, "a timestamp, or an integer whose unit the feature gives", pa.timestamp("s")),
    "unix time": _Kind(_unix, "a timestamp or an integer", pa.int64()),
    "weights": _Kind(_vector, "list<float32>", pa.list_(pa.float32())),
    "vectors": _Kind(_vectors, "a list of lists of float32", pa.list_(pa.list_(pa.float32()))),
    "dense": _Kind(_number, "a number (float32, float64 or an integer)", pa.float64()),
    "number": _Kind(_number, "a number (float32, float64 or an integer)", pa.float64()),
    "label": _Kind(_number, "an integer, boolean or float of 0 and 1", pa.float64()),
    "group": _Kind(_id, "int64 or a string", pa.int64()),
    "any": _Kind(lambda kind: True, "of any type", None),
}


def check_columns(file: str, schema: pa.Schema, wanted: list[tuple[str, str, str]]) -> dict[str, pa.DataType]:
    """Return the plain types of the wanted columns of a file, each column once."""
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
        if not _KINDS[kind].fits(found[column]):
            raise BadInput(
                f"{key}: column '{column}' of {file} is {worded(stored)}, but must be {_KINDS[kind].wish}; "
                f"{_mend(kind, found[column])}"
            )
    return found


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
    if kind == "time" and _unix(found):
        return "set the feature's unit: s, ms, us or ns"
    if kind == "vectors":
        return "store a list per row, in it a vector of each of the row's ids"
    lists = kind in ("sequence", "vector", "weights")
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
