"""Finding a split's Parquet files on any filesystem, and reading what they say of themselves."""

import os
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from livetrain.configs.errors import BadInput, short, without_credentials
from livetrain.configs.schema import Recipe
from livetrain.trainers.runtime import reach

SUFFIX = ".parquet"
_ALIKE = re.compile(r"(?i)\.(parquet|parq|pq)(?!.*\.crc$)(\.|$)")  # in the name of a file that is no NAME.parquet
_DEEP = 4  # folders below a split's in which Parquet files are looked for
_END = 1 << 17  # bytes at a file's end that are fetched at once: most footers are shorter
_SIGNATURE = 28  # bytes behind a footer that is to be read without a key, of a file that has encrypted columns


class NoPartition(BadInput):
    """The data have no folder for a day; perhaps not yet."""


def open_filesystem(path: str, key: str = "data.path") -> tuple[fs.FileSystem, str]:
    """Return the filesystem and the path in it of a local path or a URI (file, s3, gs, hdfs, abfs, fsspec+...).

    What fails there and may pass is tried again, see `trainers.runtime.reach`.

    Args:
        path: as the user gave it.
        key: where, for the message.

    Raises:
        BadInput: no filesystem knows it.
    """
    try:
        filesystem, root = reach.from_uri(path)
    except (pa.ArrowException, OSError, ImportError, ValueError) as error:
        why = without_credentials(short(error))
        raise BadInput(f"{key}: {without_credentials(path)} cannot be opened ({why}); correct {key}") from error
    return filesystem, root.rstrip("/") or ("/" if "://" not in path else "")


def shown(filesystem: fs.FileSystem, path: str) -> str:
    """Return a file's name for messages: without credentials, and with the filesystem's name where it is not local."""
    return path if isinstance(filesystem, fs.LocalFileSystem) else f"{filesystem.type_name.removeprefix('py::')}:{path}"


@dataclass(frozen=True)
class Folder:
    """A partition: a split's folder or a day's, and its Parquet files, sorted."""

    path: str
    files: list[fs.FileInfo]


def split_folders(recipe: Recipe, split: str) -> tuple[fs.FileSystem, str, list[Folder]]:
    """Return where a recipe's split lies: its filesystem, its name for messages, and its partitions.

    Without `data.days` a split is the folder of its name; with them it is the partitions of its days, in their order.

    Raises:
        NoPartition: a day's partition is missing.
        BadInput: as `list_files`.
    """
    filesystem, root = open_filesystem(recipe.data.path)
    if recipe.data.days is None:
        folder = f"{root}/{split}"
        return filesystem, shown(filesystem, folder), [Folder(folder, list_files(filesystem, folder))]
    days, found = recipe.data.days.of(split), []
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
        found.append(Folder(info.path, list_files(filesystem, info.path)))
    return filesystem, f"{shown(filesystem, root)}/date={getattr(recipe.data.days, split)}", found


def split_files(recipe: Recipe, split: str) -> tuple[fs.FileSystem, str, list[str]]:
    """Return what `split_folders` does, with the paths of all files in the place of the partitions."""
    filesystem, name, folders = split_folders(recipe, split)
    return filesystem, name, [info.path for folder in folders for info in folder.files]


def list_files(filesystem: fs.FileSystem, folder: str, spark: bool = False) -> list[fs.FileInfo]:
    """Return what `find_files` does.

    Raises:
        BadInput: as there; or the folder holds no Parquet file.
    """
    files = find_files(filesystem, folder, spark)
    if not files:
        raise BadInput(f"{shown(filesystem, folder)}: the folder holds no *.parquet file; prepare the data again")
    return files


def find_files(filesystem: fs.FileSystem, folder: str, spark: bool = False) -> list[fs.FileInfo]:
    """Return a folder's Parquet files, sorted, and those in its folders NAME.parquet, as Spark writes.

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
    files = []
    try:
        for info in _listed(filesystem, folder):
            if info.type == fs.FileType.Directory and info.base_name.endswith(SUFFIX) and not spark:
                files += list_files(filesystem, info.path, spark=True)
            elif info.is_file and info.base_name.endswith(SUFFIX):
                files.append(info)
            elif why := _overlooked(filesystem, info):
                raise BadInput(f"{shown(filesystem, info.path)}: {why}, or begin its name with _ to leave it out")
    except FileNotFoundError as error:
        raise BadInput(f"data.path: there is no folder {name}; prepare the data first, or correct data.path") from error
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"data.path: {name} cannot be listed ({short(error)}); correct data.path") from error
    return files


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
        handle = filesystem.open_input_file(path)
    except OSError as error:
        raise shut(name, error) from error
    with handle:
        return footer_of(handle, name)


def footer_of(handle: pa.NativeFile, name: str) -> tuple[pq.FileMetaData, pa.Schema]:
    """Return what an open Parquet file says of itself, by one request unless its footer is long.

    Raises:
        BadInput: it is not a whole Parquet file, or cannot be read.
    """
    end = _end(handle, name)
    try:
        file = pq.ParquetFile(pa.BufferReader(end))
        schema = file.schema_arrow
        schema.names  # noqa: B018  (a name that is no UTF-8 shows here)
    except (pa.ArrowException, OSError, ValueError) as error:
        if "encrypted" in str(error):
            raise BadInput(f"{name}: it is encrypted; write it without encryption") from error
        raise BadInput(f"{name}: not a complete Parquet file ({short(error)}); write or copy it again") from error
    if (
        _length(end) == file.metadata.serialized_size + _SIGNATURE
    ):  # to ask for such a column's figures ends the process
        raise BadInput(f"{name}: columns of it are encrypted; write it without encryption")
    return file.metadata, schema


def _end(handle: pa.NativeFile, name: str) -> bytes:
    """Return the end of a Parquet file in which its whole footer lies."""
    try:
        size = handle.size()
        end = handle.read_at(min(size, _END), max(0, size - _END))
        whole = _length(end) + 8  # with the length itself and the file's last letters
        return handle.read_at(whole, size - whole) if len(end) < whole <= size else end
    except OSError as error:
        raise shut(name, error) from error


def _length(end: bytes) -> int:
    """Return the length of a footer that the end of a file tells."""
    return int.from_bytes(end[-8:-4], "little")


def shut(name: str, error: OSError) -> BadInput:
    """Return what is said of a file that cannot be opened."""
    return BadInput(f"{name}: cannot be opened ({short(error)}); restore it or give access")
