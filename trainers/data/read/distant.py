"""Row groups of files that lie behind a network: fetched whole and at once, then decoded from memory.

So a connection that is lost, or that ends too soon, is told from bytes that do not decode: the first fails while they
are fetched (and is tried again, see `trainers.runtime.reach`), the second when the file in memory is read. An answer
that is shorter than what was asked for and says so fails nowhere before that, since pyarrow fills it up. So bytes that
do not decode are fetched again, until they are the same: then they are what the file holds.
"""

import logging
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pyarrow import fs

from livetrain.configs.errors import BadInput, short
from livetrain.trainers.data.read.files import footer_of, shown
from livetrain.trainers.runtime import reach

log = logging.getLogger(__name__)

_OPEN_FILES = 16  # kept with their footers
_HOLE = 1 << 20  # bytes between two columns that cost less than one more request: what 10 ms carry at 100 MB/s
_PIECE = 16 << 20  # most bytes of one request: a failed one is asked for again
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
        before = ""
        while True:
            file, digest = self._fetched(path, group, columns)
            try:
                return file.read_row_group(group, columns=columns, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                if digest() == before:
                    raise
                before = digest()
                log.info("%s, row group %d: %s; reading it again", shown(self._filesystem, path), group, error)

    def _fetched(self, path: str, group: int, columns: list[str]) -> tuple[pq.ParquetFile, Callable[[], str]]:
        """Return a Parquet file in memory of which one row group has its columns, and a digest of what was fetched.

        It is as long as the file, and memory that is never written to is none.
        """
        file, footer = self._opened(path)
        wanted = list(spans(footer.row_group(group), columns, file.length))
        memory = mmap.mmap(-1, max((stop for _, stop in wanted), default=1))
        for start, stop in wanted:
            for place in range(start, stop, _PIECE):
                try:
                    piece = file.at(place, min(_PIECE, stop - place))
                except OSError as error:
                    raise BadInput(
                        f"{shown(self._filesystem, path)}, row group {group}: the file cannot be read "
                        f"({short(error)}); restore it or the access to it"
                    ) from error
                memory[place : place + len(piece)] = piece
        buffer = pa.py_buffer(memory)
        there = pq.ParquetFile(
            pa.BufferReader(buffer), metadata=footer, pre_buffer=False, page_checksum_verification=True
        )
        return there, lambda: " ".join(xxhash.xxh64_hexdigest(buffer[start:stop]) for start, stop in wanted)

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


def spans(group: pq.RowGroupMetaData, columns: Collection[str], length: int) -> Iterator[tuple[int, int]]:
    """Yield the bytes [start, stop) in which some columns of a row group lie, in a file of `length` bytes."""
    chunks = []
    for chunk in map(group.column, range(group.num_columns)):
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
