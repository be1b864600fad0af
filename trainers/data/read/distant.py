"""Row groups of files that lie behind a network: fetched whole and at once, then decoded from memory.

So a connection that is lost is told from bytes that do not decode: the first fails while they are fetched, and is tried
again as a short answer is (`trainers.runtime.reach`), and the second is what the file holds.
"""

import bisect
import io
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from livetrain.configs.errors import BadInput, short
from livetrain.trainers.data.read.files import footer_of, shown, shut
from livetrain.trainers.data.read.index import RowGroup
from livetrain.trainers.data.read.prefetch import Loaders
from livetrain.trainers.runtime import reach

_OPEN_FILES = 16  # kept with their footers
_HOLE = 1 << 20  # bytes between two columns that cost less than one more request: what 10 ms carry at 100 MB/s
_PIECE = 16 << 20  # most bytes of one request: a failed one is asked for again
_AHEAD = 4  # stretches of row groups that are fetched, or wait for whoever reads them, at a time
_STRETCH = 65_536  # rows of a stretch at most, where it is more than one row group
_BEYOND = 100  # bytes after a column that old writers did not count as its own (PARQUET-816)


class Distant:
    """The files of a filesystem behind a network, the last few kept open with their footers. Threads share it."""

    def __init__(self, filesystem: fs.FileSystem) -> None:
        self._filesystem = filesystem
        self._kept: OrderedDict[str, Future] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, group: int, columns: list[str]) -> pa.Table:
        """Read some columns of a row group, in the calling thread.

        It takes the bytes of the columns and of the holes between them that are read over. A file that is not kept open
        costs two requests, the columns one more per 16 MiB of each span.

        Args:
            path: of the file.
            group: number of the row group.
            columns: names of the columns; of a struct all parts are read.

        Raises:
            BadInput: the bytes do not come, or the file is no whole Parquet file.
            ArrowException, OSError: the bytes come and do not decode.
        """
        pieces, footer = self.fetched(path, [group], columns)
        return _decoded(pieces, footer).read_row_group(group, columns=columns, use_threads=False)

    def file(self, path: str, group: int, columns: list[str]) -> pq.ParquetFile:
        """Return a Parquet file in memory that has some columns of one row group, to be decoded bit by bit.

        Raises:
            BadInput: as `read`.
        """
        return _decoded(*self.fetched(path, [group], columns))

    def footer(self, path: str) -> pq.FileMetaData:
        """Return a file's footer.

        Raises:
            BadInput: the file cannot be opened, or is no whole Parquet file.
        """
        try:
            return self._opened(path)[1]
        except OSError as error:
            raise shut(shown(self._filesystem, path), error) from error

    def fetched(self, path: str, groups: Sequence[int], columns: list[str]) -> tuple["Pieces", pq.FileMetaData]:
        """Return what is needed of a file for some columns of row groups, and the file's footer.

        Raises:
            BadInput: as `read`.
        """
        try:
            file, footer = self._opened(path)
            pieces = Pieces(file.length)
            for start, stop in spans([footer.row_group(group) for group in groups], columns, file.length):
                for place in range(start, stop, _PIECE):
                    pieces.add(place, file.at(place, min(_PIECE, stop - place)))
        except OSError as error:
            raise BadInput(
                f"{shown(self._filesystem, path)}, row group {groups[0]}: the file cannot be read ({short(error)}); "
                "restore it or the access to it"
            ) from error
        return pieces, footer

    def _opened(self, path: str) -> tuple[reach.File, pq.FileMetaData]:
        with self._lock:
            mine = path not in self._kept
            opened = self._kept.setdefault(path, Future())
            self._kept.move_to_end(path)
            if len(self._kept) > _OPEN_FILES:
                self._kept.popitem(last=False)
        if mine:
            try:
                file = reach.opened(self._filesystem, path)
                opened.set_result((file, footer_of(pa.PythonFile(file, mode="r"), shown(self._filesystem, path))[0]))
            except BaseException as error:
                self._kept.pop(path, None)
                opened.set_exception(error)
        return opened.result()


class Ahead:
    """Fetches row groups before they are decoded, the first that was asked for first, a few at a time.

    So those who decode wait for no network, and are no more of them for it: threads that both fetch and decode would
    each begin somewhere else, within a row group that another one decodes as well. Small row groups that follow one
    another are fetched together. It holds the bytes of `_AHEAD` row groups at most, or of as many stretches of small
    ones. A context, whose end stops the fetching.

    Args:
        distant: the files.
        columns: that are fetched.
    """

    def __init__(self, distant: Distant, columns: list[str]) -> None:
        self._distant, self._columns = distant, columns
        self._asked: Counter[tuple[str, int]] = Counter()  # calls of `file` to come, by row group
        self._wanted: deque[list[tuple[str, int]]] = deque()  # stretches
        self._rows = 0  # of the last one
        self._coming: dict[tuple[str, int], Future] = {}
        self._lock = threading.Lock()
        self._threads = Loaders(_AHEAD)

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.__exit__(*error)

    def ask(self, groups: Iterable[RowGroup]) -> None:
        """Have row groups fetched soon. `file` must be called for each, or it keeps its place for good."""
        with self._lock:
            for group in groups:
                place = group.path, group.index
                self._asked[place] += 1
                if self._asked[place] > 1:  # it comes already
                    continue
                before = self._wanted[-1] if self._wanted else []
                self._rows += group.rows
                if not before or self._rows > _STRETCH or place != (before[-1][0], before[-1][1] + 1):
                    before, self._rows = [], group.rows
                    self._wanted.append(before)
                before.append(place)
            self._go_on()

    def file(self, path: str, group: int) -> pq.ParquetFile:
        """Return what `Distant.file` does, of what was fetched where it was asked for.

        Raises:
            BadInput: as `Distant.read`.
        """
        with self._lock:
            coming = self._coming.get((path, group))
            self._asked[path, group] -= 1
            if self._asked[path, group] <= 0:
                del self._asked[path, group]
                self._coming.pop((path, group), None)
            self._go_on()
        if coming is None:
            return self._distant.file(path, group, self._columns)
        pieces, footer = coming.result()
        return _decoded(pieces.again(), footer)

    def _go_on(self) -> None:
        while self._wanted and len({*self._coming.values()}) < _AHEAD:
            if stretch := [place for place in self._wanted.popleft() if place in self._asked]:
                groups = [group for _, group in stretch]
                coming = self._threads.submit(self._distant.fetched, stretch[0][0], groups, self._columns)
                self._coming |= dict.fromkeys(stretch, coming)


def _decoded(pieces: "Pieces", footer: pq.FileMetaData) -> pq.ParquetFile:
    return pq.ParquetFile(
        pa.PythonFile(pieces, mode="r"), metadata=footer, pre_buffer=False, page_checksum_verification=True
    )


class Pieces(io.RawIOBase):
    """A file of which some pieces are in memory; read without a copy, but where two meet."""

    def __init__(self, length: int) -> None:
        self._length, self._place = length, 0
        self._starts: list[int] = []
        self._parts: list[bytes | bytearray] = []

    def add(self, start: int, part: bytes | bytearray) -> None:
        """Take the next piece, which begins behind those before it."""
        self._starts.append(start)
        self._parts.append(part)

    def again(self) -> "Pieces":
        """Return the same file, read from its beginning: for another thread."""
        other = Pieces(self._length)
        other._starts, other._parts = self._starts, self._parts
        return other

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        return self._place

    def read(self, size: int | None = -1) -> Any:
        """Return bytes, or a view of them, up to the first that is not in memory."""
        wanted, found = (self._length - self._place if size is None or size < 0 else size), []
        number = bisect.bisect_right(self._starts, self._place) - 1
        while wanted > 0 and 0 <= number < len(self._parts) and self._starts[number] <= self._place:
            part = memoryview(self._parts[number])[self._place - self._starts[number] :][:wanted]
            if not part:
                break
            found.append(part)
            self._place, wanted, number = self._place + len(part), wanted - len(part), number + 1
        return found[0] if len(found) == 1 else b"".join(found)


def spans(groups: Iterable[pq.RowGroupMetaData], columns: Collection[str], length: int) -> Iterator[tuple[int, int]]:
    """Yield the bytes [start, stop) in which some columns of row groups lie, in a file of `length` bytes."""
    chunks = []
    for chunk in (group.column(place) for group in groups for place in range(group.num_columns)):
        path = chunk.path_in_schema
        if any(path == column or path.startswith(f"{column}.") for column in columns):
            start = min(place for place in (chunk.dictionary_page_offset, chunk.data_page_offset) if place)
            chunks.append((start, min(start + chunk.total_compressed_size + _BEYOND, length)))
    start = stop = 0
    for begin, end in sorted(chunks):
        if begin - stop > _HOLE or not stop:
            if start < stop:
                yield start, stop
            start = begin
        stop = max(stop, end)
    if start < stop:
        yield start, stop
