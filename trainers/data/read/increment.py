"""Some minutes of a stream as a source of samples, once their files are what their manifests say."""

from collections.abc import Sequence

import pyarrow as pa
from pyarrow import fs

from livetrain.configs.errors import BadInput, short
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.files import Folder, open_filesystem, shown
from livetrain.trainers.data.read.minutes import Minute
from livetrain.trainers.data.read.sidecar import Sidecar
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.runtime import manifest

_PART = 1 << 22  # bytes that are read at a time


def damage(path: str, minute: Minute) -> str | None:
    """Return which file of a minute is missing or not as its manifest says, in words, or None. Reads all of them.

    Args:
        path: the stream's folder.
        minute: of it.

    Raises:
        BadInput: the storage cannot be read, which is no damage.
    """
    filesystem, _ = open_filesystem(path, "follow.path")
    for file in minute.files:
        folder, _, name = file.rpartition("/")
        try:
            with filesystem.open_input_stream(f"{folder}/{manifest.MANIFEST}") as opened:
                content = manifest.parsed(opened.read())
            if content is None or name not in content["files"]:
                return f"{shown(filesystem, folder)}/{manifest.MANIFEST} is damaged"
            changed = manifest.difference(_digest(filesystem, file), content["files"][name])
        except FileNotFoundError:
            return f"{shown(filesystem, file)} is missing"
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{shown(filesystem, file)}: cannot be read ({short(error)}); restore it") from error
        if changed:
            return f"{shown(filesystem, file)} {changed}"
    return None


def _digest(filesystem: fs.FileSystem, path: str) -> dict:
    with filesystem.open_input_stream(path) as file:
        return manifest.digest_of(iter(lambda: file.read(_PART), b""))


def opened(recipe: Recipe, path: str, minutes: Sequence[Minute]) -> Source:
    """Return the samples of some minutes, in the order of time; nothing is kept beside them.

    Args:
        recipe: names the columns.
        path: the stream's folder.
        minutes: with a file at least, all together.

    Raises:
        BadInput: as `Source.of`.
    """
    filesystem, _ = open_filesystem(path, "follow.path")
    files = [file for minute in minutes for file in minute.files]
    folder = Folder(minutes[0].name, filesystem.get_file_info(files))
    name = f"{path} from {minutes[0].name}"
    return Source.of(recipe, filesystem, name, [folder], [Sidecar((), None)])
