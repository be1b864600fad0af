"""The rows of windows, decoded: a run is opened once and read from end to end, however many windows it has."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read.decode import Decoder
from livetrain.trainers.data.read.distant import Ahead
from livetrain.trainers.data.read.negatives import Negatives
from livetrain.trainers.data.read.order import Order, Piece
from livetrain.trainers.data.read.records import Columns, Slice
from livetrain.trainers.data.read.source import CorruptGroup, RowGroup, Source

log = logging.getLogger(__name__)


class Rows:
    """A split's rows as an epoch has them, those that negatives add included: row groups, and how they are decoded.

    Args:
        source: the split.
        decoder: of the rows.
        negatives: that are drawn, if any.
        skip: whether a row group that does not decode counts as rows that hold nothing.

    Attributes:
        sizes: (G,) rows of each row group.
        columns: that are read.
    """

    def __init__(self, source: Source, decoder: Decoder, negatives: Negatives | None, skip: bool) -> None:
        self._source, self._decoder, self._negatives, self._skip = source, decoder, negatives, skip
        self._table = source.read if source.candidates is None else source.as_stored
        stored = source.groups.rows
        self.sizes = stored if negatives is None else stored + source.drawn
        self._stored, self._firsts = (np.cumsum(rows) - rows for rows in (stored, self.sizes))
        added = [] if negatives is None else negatives.columns
        self.columns = list(dict.fromkeys([*decoder.columns, *added]))
        self._warned: set[int] = set()

    def ahead(self) -> contextlib.AbstractContextManager[Ahead | None]:
        """Return what fetches row groups before `stream` decodes them, or nothing where they are near."""
        return self._source.ahead(self.columns)

    def group(self, number: int) -> RowGroup:
        """Return a row group."""
        return self._source.groups[number]

    def stream(
        self, epoch: int, groups: range, start: int, chunk: int, ahead: Ahead | None
    ) -> Iterator[tuple[range, Columns]]:
        """Decode row groups of one file, in parts of so many stored rows, each with its rows' numbers in an epoch.

        Parts that end before the row `start` are read and not decoded further.

        Raises:
            BadInput, ArrowException, OSError: something cannot be read or decoded; `whole` says what is wrong.
        """
        stored, at = int(self._stored[groups[0]]), int(self._firsts[groups[0]])
        for table in self._source.stream([self._source.groups[n] for n in groups], self.columns, chunk, ahead):
            rows = table.num_rows
            if self._negatives is not None:
                table = self._negatives.expand(table, stored, epoch, self._decoder.columns)
            stored, first, at = stored + rows, at, at + table.num_rows
            if at > start:
                yield range(first, at), self._decoder.decode(table, first, "")

    def first(self, group: int) -> int:
        """Return the number of a row group's first row."""
        return int(self._firsts[group])

    def whole(self, epoch: int, number: int) -> Columns:
        """Decode one row group; rows that hold nothing for an unreadable one that may be skipped.

        Raises:
            CorruptGroup: it does not decode, and may not be skipped.
            BadInput: its file cannot be read, or its rows are not what the recipe says.
        """
        group = self._source.groups[number]
        try:
            table = self._table(group, self.columns)
            if self._negatives is not None:
                table = self._negatives.expand(table, int(self._stored[number]), epoch, self._decoder.columns)
            return self._decoder.decode(table, self.first(number), self._source.place(group))
        except CorruptGroup as error:
            if not self._skip:
                raise
            if number not in self._warned:
                self._warned.add(number)
                log.warning("skipped: %s", error)
            return self._decoder.unreadable(int(self.sizes[number]))


@dataclass
class _Cursor:
    """An open run, read up to some row."""

    parts: Iterator[tuple[range, Columns]]
    at: int  # number of the next row
    held: tuple[range, Columns] | None = None  # the part that it lies in, once that is decoded

    def take(self, count: int) -> list[Slice]:
        """Return the next so many rows."""
        slices, stop = [], self.at + count
        while self.at < stop:
            rows, columns = self.held or next(self.parts)
            upto = min(stop, rows.stop)
            slices.append(Slice(columns, self.at - rows.start, upto - rows.start))
            self.at, self.held = upto, (rows, columns) if upto < rows.stop else None
        return slices


class Pieces:
    """Reads the pieces of an epoch's windows. A window that begins where another one ended goes on in its open run.

    So what is kept between windows is, per shard at most, an open file: of one row group the bytes of the columns that
    are read, and `chunk` rows decoded.

    Args:
        rows: of the split.
        order: of the epoch.
        epoch: from 0.
        chunk: stored rows that are decoded at a time.
        ahead: fetches what is far.
    """

    def __init__(self, rows: Rows, order: Order, epoch: int, chunk: int, ahead: Ahead | None) -> None:
        self._rows, self._order, self._epoch, self._chunk, self._ahead = rows, order, epoch, chunk, ahead
        self._ends: set[tuple[int, int] | None] = set()  # of the windows asked for: by row group, and row in it
        self._left: dict[tuple[int, int], Future[_Cursor | None]] = {}  # by row group, and row in it
        self._lock = threading.Lock()

    def ask(self, pieces: Sequence[Piece]) -> None:
        """Have fetched what `read` will need of a window; called in the order in which windows are read."""
        if self._ahead is None:
            return
        first, last = pieces[0], pieces[-1]
        # The row group that an earlier window ends in is at hand in that one's open run.
        at_hand = first.start > 0 and (first.group, first.start) in self._ends
        self._ahead.ask(self._rows.group(piece.group) for piece in pieces[at_hand:])
        self._ends.discard((first.group, first.start))
        self._ends.add(self._after(last))

    def read(self, pieces: Sequence[Piece]) -> list[Slice]:
        """Return a window's rows, piece by piece. Where another thread reads what lies before, wait for it.

        Raises:
            CorruptGroup, BadInput: as `Rows.whole`.
        """
        first, last = pieces[0], pieces[-1]
        before, mine = None, Future[_Cursor | None]()
        with self._lock:
            before = self._left.pop((first.group, first.start), None)
            if (end := self._after(last)) is not None:
                self._left[end] = mine
        cursor, slices = None if before is None else before.result(), []
        try:
            for piece in pieces:
                cursor, found = self._read(cursor, piece)
                slices += found
        except BaseException:
            mine.set_result(None)
            raise
        mine.set_result(cursor)
        return slices

    def _read(self, cursor: _Cursor | None, piece: Piece) -> tuple[_Cursor | None, list[Slice]]:
        """Return a piece's rows, and where to go on; None where the run ends, or the next piece is to open it again."""
        start = self._rows.first(piece.group) + piece.start
        try:
            if cursor is None:
                groups = range(piece.group, self._order.run(piece.group).stop)
                cursor = _Cursor(self._rows.stream(self._epoch, groups, start, self._chunk, self._ahead), start)
            found = cursor.take(piece.stop - piece.start)
        except (BadInput, pa.ArrowException, OSError):
            return None, [Slice(self._rows.whole(self._epoch, piece.group), piece.start, piece.stop)]
        return None if self._after(piece) is None else cursor, found

    def _after(self, piece: Piece) -> tuple[int, int] | None:
        """Return the row group and the row in it that a run goes on with behind a piece, None at its end."""
        if piece.stop < self._rows.sizes[piece.group]:
            return piece.group, piece.stop
        return (piece.group + 1, 0) if piece.group + 1 < self._order.run(piece.group).stop else None
