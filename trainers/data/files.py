"""Finding a split's Parquet files on any filesystem, and checking their columns against a recipe."""

from collections.abc import Callable

import pyarrow as pa
from pyarrow import fs

from configs.errors import BadInput, nearest, without_credentials
from configs.schema import IdFeature, Recipe, SequenceFeature


class NoPartition(BadInput):
    """The data have no folder for a day; perhaps not yet."""


def open_filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem and the path in it of a local path or a URI (file, s3, gs, hdfs, abfs, fsspec+...)."""
    if "://" not in path:
        return fs.LocalFileSystem(), path.rstrip("/") or "/"
    try:
        filesystem, root = fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError, ImportError, ValueError) as error:
        why = without_credentials(short(error))
        raise BadInput(f"data.path: {without_credentials(path)} cannot be opened ({why}); correct data.path") from error
    return filesystem, root.rstrip("/")


def shown(filesystem: fs.FileSystem, path: str) -> str:
    """Return a file's name for messages: without credentials, and with the filesystem's name where it is not local."""
    return path if isinstance(filesystem, fs.LocalFileSystem) else f"{filesystem.type_name}:{path}"


def short(error: BaseException) -> str:
    """Return the first line of an error's message, without its end point."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


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
    for day, info in zip(days, filesystem.get_file_info([f"{root}/date={day}" for day in days]), strict=True):
        if info.type != fs.FileType.Directory:
            raise NoPartition(
                f"data.days.{split}: {shown(filesystem, root)} has no partition date={day}; prepare that day, or "
                "choose other days"
            )
        paths += list_files(filesystem, info.path)
    return filesystem, f"{shown(filesystem, root)}/date={getattr(recipe.data.days, split)}", paths


def list_files(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Return the sorted paths of a folder's Parquet files. Names that begin with . or _ are left out, as Spark does.

    Raises:
        BadInput: there is no such folder, it cannot be listed, or it holds no Parquet file.
    """
    name = shown(filesystem, folder)
    try:
        found = filesystem.get_file_info(fs.FileSelector(folder))
    except FileNotFoundError as error:
        raise BadInput(f"data.path: there is no folder {name}; prepare the data first, or correct data.path") from error
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"data.path: {name} cannot be listed ({short(error)}); correct data.path") from error
    paths = (info.path for info in found if info.is_file and info.base_name.endswith(".parquet"))
    paths = sorted(path for path in paths if not path.rpartition("/")[2].startswith((".", "_")))
    if not paths:
        raise BadInput(f"{name}: the folder holds no *.parquet file; prepare the data again")
    return paths


def wanted_columns(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Return (column, kind, recipe key) of everything that the recipe reads."""
    wanted = []
    for name, feature in recipe.features.items():
        kind = {IdFeature: "id", SequenceFeature: "sequence"}.get(type(feature), "dense")
        wanted.append((recipe.column(name), kind, f"features.{name}"))
    for name, task in recipe.tasks.items():
        numeric = task.kind in ("watch_time", "regression")
        wanted.append((task.label, "number" if numeric else "label", f"tasks.{name}.label"))
        if task.sample_weight:
            wanted.append((task.sample_weight, "number", f"tasks.{name}.sample_weight"))
    if recipe.evaluate.group_by:
        wanted.append((recipe.evaluate.group_by, "group", "evaluate.group_by"))
    return wanted


def _integer(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) and not pa.types.is_uint64(kind)


def _list(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _integer(kind.value_type)


def _number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


_TYPES: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "id": (_integer, "int64; hash strings to int64 when preparing the data"),
    "sequence": (_list, "list<int64>; hash strings to int64 when preparing the data"),
    "dense": (_number, "a number (float32, float64 or an integer); convert it when preparing the data"),
    "number": (_number, "a number (float32, float64 or an integer); convert it when preparing the data"),
    "label": (_number, "an integer, boolean or float of 0 and 1; convert it when preparing the data"),
    "group": (_integer, "int64; convert it when preparing the data"),
}


def check_columns(file: str, schema: pa.Schema, wanted: list[tuple[str, str, str]]) -> pa.Schema:
    """Return the wanted columns' schema, each column once."""
    fields = {}
    for column, kind, key in wanted:
        if column not in schema.names:
            raise BadInput(f"{key}: {file} has no column '{column}'{nearest(column, schema.names)}; correct the name")
        found = schema.field(column).type
        fits, wish = _TYPES[kind]
        if not fits(found):
            raise BadInput(f"{key}: column '{column}' of {file} is {found}, but must be {wish}")
        fields[column] = pa.field(column, found)
    return pa.schema(fields.values())


def check_same(file: str, columns: pa.Schema, first_file: str, first: pa.Schema) -> None:
    """Refuse a file whose columns have other types than the first file's."""
    for column in columns:
        expected = first.field(column.name).type
        if column.type != expected:
            raise BadInput(
                f"{file}: column '{column.name}' is {column.type} here and {expected} in {first_file}; "
                "write all files of a split with one schema"
            )
