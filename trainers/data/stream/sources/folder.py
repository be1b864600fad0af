"""Files that land in a folder or a bucket: PATH/TOPIC/*.jsonl, or PATH/TOPIC/partition=NAME/*.jsonl.

A file must appear whole (written beside, or under a name that begins with '.' or '_', and renamed), and names must sort
in the order in which the files land: what has been read is known by the last name. The rows of a file came together.
"""

import gzip
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from livetrain.configs.errors import BadInput, short, without_credentials
from livetrain.trainers.data.read.files import open_filesystem
from livetrain.trainers.data.stream.clock import Place
from livetrain.trainers.data.stream.sources.base import Messages

log = logging.getLogger("livetrain")

LINES = (".jsonl", ".ndjson", ".json")
ROWS = (".parquet", ".csv")
_CHUNK = 100_000  # lines in memory at a time
_PART = 1 << 23
_SMALL = 1 << 17  # bytes of a file that is read together with others; fewer than _CHUNK lines
_FILES = 1000  # that are read together


class Folder:
    """A source of files.

    Args:
        path: folder or URI.
        work: folder for copies of what does not lie on this machine.
    """

    def __init__(self, path: str, work: Path):
        self._filesystem, self._root = open_filesystem(path, "sources")
        self._shown, self._work = without_credentials(path), work
        self._opened: dict[Place, tuple[str, str]] = {}  # folder, last name that was read
        self._ends: dict[Place, str] = {}  # the last name that was there at first
        self._todo: dict[Place, list[fs.FileInfo]] = {}  # what was there at the last look and is not read yet
        self._odd: set[str] = set()

    def partitions(self, topic: str) -> list[str]:
        found = [info.base_name for info in self._listed(f"{self._root}/{topic}") if not info.is_file]
        return sorted(name for name in found if name.startswith("partition=")) or ["0"]

    def open(self, place: Place, topic: str, offset: Any) -> None:
        name = place[1]
        folder = f"{self._root}/{topic}" + (f"/{name}" if name.startswith("partition=") else "")
        self._opened[place] = (folder, offset or "")
        self._ends[place] = max((info.base_name for info in self._files(folder)), default="")

    def _listed(self, folder: str) -> list[fs.FileInfo]:
        found = self._filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        return sorted(
            (info for info in found if not info.base_name.startswith((".", "_"))), key=lambda info: info.base_name
        )

    def _files(self, folder: str) -> list[fs.FileInfo]:
        found = [info for info in self._listed(folder) if info.is_file]
        for info in found:
            if not info.base_name.removesuffix(".gz").endswith(LINES + ROWS) and info.path not in self._odd:
                self._odd.add(info.path)
                log.warning("%s: no file NAME.jsonl, .parquet or .csv, so it is not read", info.path)
        return [info for info in found if info.path not in self._odd]

    def poll(self, places: set[Place], most: int) -> Iterator[Messages]:
        """Yield as `Source` says; small files of lines together, each a turn of its own."""
        for place in sorted(places & self._opened.keys()):
            folder, last = self._opened[place]
            if not self._todo.get(place):
                self._todo[place] = [info for info in self._files(folder) if info.base_name > last]
            for given in self._given(place, self._todo[place], most):
                yield given
                if given.next is not None:
                    self._opened[place] = (folder, given.next)
                    self._todo[place] = [info for info in self._todo[place] if info.base_name > given.next]

    def ended(self, place: Place) -> bool:
        return self._opened[place][1] >= self._ends[place]

    def close(self) -> None:
        pass

    def _given(self, place: Place, infos: list[fs.FileInfo], most: int) -> Iterator[Messages]:
        """Yield the messages of the first files: of a large one, or of as many small ones as come to `most`.

        Small files of lines, as those of a minute, are one piece of work together, each a turn of its own.
        """
        several: list[Messages] = []
        for info in infos[:_FILES]:
            small = info.size is not None and info.size <= _SMALL and info.base_name.endswith(LINES)
            if not small and several:
                break
            if not small:
                yield from self._read(place, info)
                return
            try:
                several += self._read(place, info)
            except OSError:
                if not several:
                    raise
                break  # it comes first in the next turn
            if sum(len(each.names) for each in several) >= most:
                break
        if several:
            yield Messages(
                place,
                [value for each in several for value in each.values],  # type: ignore[union-attr]
                [name for each in several for name in each.names],
                [stamp for each in several for stamp in each.stamps],
                [turn for turn, each in enumerate(several) for _ in each.names],
                several[-1].next,
            )

    def _read(self, place: Place, info: fs.FileInfo) -> Iterator[Messages]:
        here = isinstance(self._filesystem, fs.LocalFileSystem)
        try:
            local = Path(info.path) if here else self._copy(info)
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"{self._shown}: {info.path} cannot be read ({short(error)})") from error
        try:
            yield from self._messages(place, info, local)
        finally:
            if not here:
                local.unlink(missing_ok=True)

    def _messages(self, place: Place, info: fs.FileInfo, local: Path) -> Iterator[Messages]:
        name, stamp = info.base_name, _stamp(info)
        if name.endswith(ROWS):
            yield Messages(place, local, [name], [stamp], [0], name)
            return
        try:
            values: list[bytes | None] = []
            number = 0
            with gzip.open(local, "rb") if name.endswith(".gz") else local.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if text := line.strip():
                        values.append(text)
                    if len(values) == _CHUNK:
                        yield self._chunk(place, values, number, name, stamp, None)
                        values = []
            yield self._chunk(place, values, number, name, stamp, name)
        except (OSError, EOFError) as error:
            if not name.endswith(".gz"):
                raise
            raise BadInput(f"{info.path} is no whole gzip file ({short(error)}); replace or remove it") from None

    def _chunk(self, place: Place, values: list, number: int, name: str, stamp: int, following: Any) -> Messages:
        names = [f"{name}, line {number - len(values) + 1 + n}" for n in range(len(values))]
        return Messages(place, values, names, [stamp] * len(values), [0] * len(values), following)

    def _copy(self, info: fs.FileInfo) -> Path:
        path = self._work / f"copy-{info.base_name}"
        with self._filesystem.open_input_stream(info.path, compression=None) as remote, path.open("wb") as local:
            while part := remote.read(_PART):
                local.write(part)
        return path


def _stamp(info: fs.FileInfo) -> int:
    return 1 << 62 if info.mtime is None else int(info.mtime.timestamp() * 1000)
