"""Tables with one row per request: its user's columns once, and in lists what each of its candidates has.

What a column holds says whose it is, as the shape of a tensor does when a server calls `rank`: a feature of one id per
row whose column holds lists has one id per candidate, and a list of ids whose column holds lists of lists has one list
per candidate. Labels and their weights are lists always.

For training each request is what a row is otherwise: one entry of an order, a window and a record (see records.py), its
candidates' values in lists. A batch is unpacked from these. Whoever looks at rows one by one, as checks and statistics
do, gets them by `flattened`.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch, Requests
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.decode import NO_GROUP, Decoder, from_bits, to_bits, words
from livetrain.trainers.data.read.records import Block, Column, Columns, running

_ALL = np.iinfo(np.int64).max


class Candidates:
    """Which columns of a split hold one value per candidate, and how rows are made of them.

    Args:
        names: those columns.
        most: data.candidates.
    """

    def __init__(self, names: Collection[str], most: int) -> None:
        self.names = frozenset(names)
        self.most = most

    def counts(self, table: pa.Table, where: str) -> np.ndarray:
        """Return how many candidates each request of a table has, (R,) int64.

        Args:
            table: of requests.
            where: they come from, for messages.

        Raises:
            BadInput: two lists of a request differ in length, or it has more candidates than data.candidates.
        """
        counts, first = np.full(len(table), -1), ""
        for name in table.column_names:
            if name not in self.names:
                continue
            lengths = pc.list_value_length(carry.whole(table.column(name)))
            there = lengths.is_valid().to_numpy(zero_copy_only=False)  # a null list has a null per candidate
            own = lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            if (bad := there & (counts >= 0) & (own != counts)).any():
                row = int(bad.argmax())
                raise BadInput(
                    f"{where}, row {row}: column '{name}' has {own[row]} values and '{first}' has {counts[row]}; every "
                    "list of a request has one value per candidate"
                )
            counts, first = np.where(there, own, counts), first or name
        counts = np.maximum(counts, 0)
        if (bad := counts > self.most).any():
            row = int(bad.argmax())
            raise BadInput(
                f"{where}, row {row}: the request has {counts[row]} candidates, more than data.candidates: "
                f"{self.most}; raise it, or split the request"
            )
        return counts

    def flattened(self, table: pa.Table, where: str) -> pa.Table:
        """Return a table with a row per candidate, the user's columns repeated; arguments and errors as `counts`.

        Example:
            >>> table = pa.table({"user": [7, 8], "item": [[1, 2], [3]]})
            >>> Candidates(["item"], 4).flattened(table, "a table").to_pydict()
            {'user': [7, 7, 8], 'item': [1, 2, 3]}
        """
        counts = self.counts(table, where)
        request = pa.array(np.repeat(np.arange(len(table)), counts))
        columns = []
        for name in table.column_names:
            column = carry.whole(table.column(name))
            columns.append(elements(column, counts) if name in self.names else column.take(request))
        return pa.table(columns, names=table.column_names)


def elements(lists: pa.Array, counts: np.ndarray) -> pa.Array:
    """Return the elements of a candidates' column, one per candidate; those of a null list are null.

    Args:
        lists: (R,) lists.
        counts: (R,) candidates of each request.
    """
    found = lists.flatten()
    if len(found) == int(counts.sum()):
        return found
    there = np.repeat(lists.is_valid().to_numpy(zero_copy_only=False), counts)
    place = np.where(there, np.cumsum(there) - 1, 0)
    return found.take(pa.array(place, mask=~there))


class RequestDecoder(Decoder):
    """A `Decoder` of requests: what it calls rows are requests, until `join` makes a batch of their candidates.

    A request's lists are, in this order: of each feature its ids, those of all candidates one after another where they
    are the candidates'; what lies beside ids; of each candidates' feature how many ids each candidate has; all float32
    of each candidate; and its groups and slices.

    Args:
        recipe: as of `Decoder`.
        groups: likewise.
        slices: likewise.
        candidates: which columns are the candidates'. A number of two columns is theirs where one of the two is.
        padded: give every batch of so many requests the same number of rows, as several ranks need.
    """

    def __init__(self, recipe: Recipe, groups: bool, slices: bool, candidates: Candidates, padded: bool) -> None:
        super().__init__(recipe, groups, slices)
        self._candidates, self._padded = candidates, padded
        self._own = [key for key in self.keys if self._names[key][0] in candidates.names]  # the candidates' features
        self._cutting = [key for key in self._own if self._sparse[key].lists]
        shared = {n: f for n, f in self._dense.items() if candidates.names.isdisjoint(self._names[n])}
        own = {n: f for n, f in self._dense.items() if n not in shared}
        self._shared_dense, self._own_dense = shared, own
        self._mixed = {column for name in own for column in self._names[name]}  # perhaps with a user's among them
        order = {name: place for place, name in enumerate([*shared, *own])}
        ends = running(np.array([f.numbers for f in (*shared.values(), *own.values())], np.int64))
        self._columns_of = torch.from_numpy(
            np.concatenate(
                [np.zeros(0, np.int64), *(np.arange(ends[order[n]], ends[order[n] + 1]) for n in self._dense)]
            )
        )
        self._floats = sum(f.numbers for f in own.values()) + len(self._others)
        self._marks = len(self._groups) + (self._slices is not None)
        limits = [_ALL if key in self._own else int(limit) for key, limit in zip(self.keys, self._limits, strict=False)]
        limits += [
            _ALL if key in self._own else int(limit)
            for key, limit in zip(self.beside, self._limits[len(self.keys) :], strict=True)
        ]
        self._limits = np.array(limits + [_ALL] * (len(self._own) + 1 + (self._marks > 0)), np.int64)
        self._plains = 1 + len(self._groups) + len(self._cutting)

    def bytes(self, lengths: Mapping[str, float]) -> tuple[float, float]:
        """Return how many bytes a request takes in the mean; see `Decoder.bytes`."""
        each = lengths[self._labels[0]]  # candidates
        held = 8.0 * (self._plains + 2 * len(self._limits) + each * (words(self._floats) + self._marks))
        held += 4 * sum(feature.numbers for feature in self._shared_dense.values())
        for name, feature in self._sparse.items():
            beside = 1 + (words(self.beside[name][1]) if name in self.beside else 0)
            found = lengths[self._names[name][0]]
            held += 8 * (beside * found + each) if name in self._own else 8 * beside * min(found, feature.limit)
        return 8 * sum(lengths.values()), held

    def decode(self, table: pa.Table, first: int, where: str) -> Columns:
        """Decode requests; see `Decoder.decode` and `Candidates.counts`."""
        whole = {name: carry.whole(table.column(name)) for name in self.columns}
        counts = self._candidates.counts(table.select(self.columns), where)
        offsets = running(counts)
        mine = {n: elements(c, counts) if n in self._candidates.names else c for n, c in whole.items()}
        lists, cut = self._lists(mine, offsets, where)
        request = np.repeat(np.arange(len(table)), counts)
        by_row = {name: mine[name] for name in self._mixed}
        for name in self._mixed - self._candidates.names:
            by_row[name] = by_row[name].take(pa.array(request))
        floats = [carry.numbers(n, f, [by_row[c] for c in self._names[n]], where) for n, f in self._own_dense.items()]
        floats += [carry.floats(mine[name]) for name in self._others]
        numbers = np.concatenate([part.reshape(len(part), -1) for part in floats], axis=1)
        each = Column.of(np.arange(offsets[-1]), offsets)
        lists.append(each.beside(to_bits(numbers), words(self._floats)))
        marks = self._marked(table, mine, request, where)
        if marks is not None:
            lists.append(each.beside(marks.reshape(-1), self._marks))
        shared = [carry.numbers(n, f, [whole[c] for c in self._names[n]], where) for n, f in self._shared_dense.items()]
        return Columns(first, lists, [*self._first(marks, offsets), *cut], shared)

    def _lists(
        self, mine: dict[str, pa.Array], offsets: np.ndarray, where: str
    ) -> tuple[list[Column], list[np.ndarray]]:
        """Return each request's lists of features, and how many of its candidates' lists were cut, by feature.

        Args:
            mine: the columns, those of candidates with their elements.
            offsets: (R + 1,) of the requests' candidates.
            where: the requests come from, for messages.
        """
        lists: dict[str, Column] = {}
        beside: dict[str, Column] = {}
        lengths: dict[str, Column] = {}
        cut: list[np.ndarray] = []
        for name, feature in self._sparse.items():
            column = mine[self._names[name][0]]
            ids = carry.ids(feature, column)
            numbers = None
            if name in self.beside:
                others, width = self.beside[name]
                for other in others:
                    if (other in self._candidates.names) != (name in self._own):
                        each = "request" if name in self._own else "candidate"
                        raise BadInput(
                            f"{where}: column '{other}' has one of each {each}, and features.{name} has not; "
                            "store both alike"
                        )
                numbers = carry.beside(name, feature, column, [mine[other] for other in others], width, where)
            if name not in self._own:
                lists[name] = ids
                if numbers is not None:
                    beside[name] = ids.beside(to_bits(numbers), words(self.beside[name][1]))
                continue
            place, kept, stored = _newest(ids, feature.limit, len(column))
            at = running(kept)[offsets]
            lists[name] = Column.of(ids.values[place], at)
            lengths[name] = Column.of(kept, offsets)
            if numbers is not None:
                beside[name] = lists[name].beside(to_bits(numbers[place]), words(self.beside[name][1]))
            if name in self._cutting:
                cut.append(np.diff(running(kept < stored)[offsets]))
        return [*lists.values(), *beside.values(), *lengths.values()], cut

    def _marked(self, table: pa.Table, mine: dict[str, pa.Array], request: np.ndarray, where: str) -> np.ndarray | None:
        """Return the groups and slices of each candidate, (N, marks) int64; None where none are asked for."""
        if not self._marks:
            return None
        marks = []
        for name in self._groups:
            group = carry.whole_ids(mine[name]).fill_null(int(NO_GROUP)).to_numpy(zero_copy_only=False)
            marks.append(group if name in self._candidates.names else group[request])
        if self._slices is not None:
            asked = list(dict.fromkeys(name for names in self._slices.columns.values() for name in names))
            # The lists' lengths are the labels', which a slice need not name.
            part = table.select(list(dict.fromkeys([*asked, *self._labels])))
            marks.append(self._slices.marks(self._candidates.flattened(part, where)))
        return np.stack(marks, axis=1)

    def _first(self, marks: np.ndarray | None, offsets: np.ndarray) -> list[np.ndarray]:
        """Return the groups of each request's first candidate, by which requests stay together (see `runs`)."""
        if not self._groups:
            return []
        assert marks is not None
        first = np.append(marks, np.full((1, self._marks), NO_GROUP), axis=0)[offsets[:-1]]
        first[np.diff(offsets) == 0] = NO_GROUP
        return [np.ascontiguousarray(first[:, place]) for place in range(len(self._groups))]

    def unreadable(self, rows: int) -> Columns:
        """Return requests that could not be read: none has candidates."""
        none = Column.of(np.zeros(0, np.int64), np.zeros(rows + 1, np.int64))
        plain = [np.full(rows, NO_GROUP) for _ in self._groups] + [np.zeros(rows, np.int64) for _ in self._cutting]
        floats = [carry.missing(feature, rows) for feature in self._shared_dense.values()]
        return Columns(-1, [none] * len(self._limits), plain, floats)

    def join(self, step: int, blocks: Sequence[Block]) -> tuple[Batch, np.ndarray]:
        """Join one step's slices of some blocks; the rows are the requests' candidates, and padding at the end.

        Returns:
            As `Decoder.join`; the first count is of requests.
        """
        lists = len(self._limits)
        head, plain, joined, floats = self._passes.join(step, blocks, self._plains, lists)
        requests, total = int(head[0]), int(head[2 : 2 + lists].sum())
        lengths = joined[: lists * requests].view(lists, requests)
        parts = list(joined[lists * requests : lists * requests + total].split(head[2 : 2 + lists].tolist()))
        place = len(self.keys) + len(self.beside) + len(self._own)
        counts = lengths[place] // words(self._floats)  # (R - 1,) candidates of each request
        size, found = requests + 1, int(counts.sum())
        rows = max(size * self._candidates.most if self._padded else found, size + 1)
        of = torch.full((rows,), requests)
        of[:found] = torch.repeat_interleave(torch.arange(requests), counts, output_size=found)
        request = of[:found]
        own = from_bits(parts[place], self._floats)  # (N, numbers of a candidate)
        numbers, labels, given = own.split(
            [self._floats - len(self._others), len(self._labels), len(self._weighted)], dim=1
        )
        dense = torch.full((rows, self._width), torch.nan)
        dense[:found] = torch.cat([floats.index_select(0, request), numbers], 1).index_select(1, self._columns_of)
        sample_weights = None
        if self._weighted:
            sample_weights = torch.zeros(rows, len(self._labels))
            sample_weights[:found] = torch.ones_like(labels).index_copy(1, torch.tensor(self._weighted), given)
        marks = None
        if self._marks:
            marks = _padded(parts[-1].view(found, self._marks), rows, int(NO_GROUP))
        groups = None if marks is None or not self._groups else marks[:, : len(self._groups)]
        slices = None
        if self._slices is not None and marks is not None:
            slices = marks[:, -1].clone()
            slices[found:] = 0
        beside = dict(zip(self.beside, parts[len(self.keys) :], strict=False))
        sizes = head[2 : 2 + len(self.keys)].tolist()
        starts = counts.cumsum(0) - counts
        numbered = plain[0].index_select(0, request) * self._candidates.most
        numbered += torch.arange(found) - starts.index_select(0, request)
        fed, asides = self._apart(
            KeyedJaggedTensor(
                keys=self.keys,
                values=torch.cat([joined[:0], *parts[: len(self.keys)]]),
                weights=self._weights(beside, sizes) if self._weighs else None,
                lengths=self._lengths(lengths, parts, rows).view(-1),
                stride=rows,
                length_per_key=sizes,
            )
        )
        made = Batch(
            ids=fed,
            dense=dense,
            labels=_padded(labels, rows, 0.0),
            weights=(torch.arange(rows) < found).float(),
            rows=_padded(numbered, rows, -1),
            groups=groups[:, 0].contiguous() if groups is not None and self._evaluates else None,
            task_groups=groups.contiguous() if groups is not None and not self._evaluates else None,
            slices=slices,
            sample_weights=sample_weights,
            vectors=self._vectors(beside) if self._carrying else None,
            requests=Requests(of, size, self._totals(lengths, counts)),
            asides=asides,
        )
        cut = head[2 + lists : 2 + lists + len(self.keys)].copy()
        for number, key in enumerate(self._cutting):
            cut[self.keys.index(key)] = int(plain[1 + len(self._groups) + number].sum())
        return made, np.concatenate([head[1:2], cut])

    def _lengths(self, lengths: torch.Tensor, parts: Sequence[torch.Tensor], rows: int) -> torch.Tensor:
        """Return the lengths of a batch's lists, (keys, rows): of requests or of candidates, and zeros."""
        out = torch.zeros(len(self.keys), rows, dtype=torch.long)
        first = len(self.keys) + len(self.beside)
        for place, key in enumerate(self.keys):
            own = parts[first + self._own.index(key)] if key in self._own else lengths[place]
            out[place, : len(own)] = own
        return out

    def _totals(self, lengths: torch.Tensor, counts: torch.Tensor) -> dict[str, int]:
        """Return how many ids each of the user's features would have if each candidate had its own."""
        shared = [place for place, key in enumerate(self.keys) if key not in self._own]
        totals = (lengths[shared] * counts).sum(1).tolist()
        return {self.keys[place]: total for place, total in zip(shared, totals, strict=True)}


def _newest(ids: Column, limit: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the places of the last `limit` ids of each row, how many these are, and how many there were."""
    if ids.begins is None or ids.ends is None:
        one = np.ones(rows, np.int64)
        return np.arange(rows), one, one
    stored = ids.ends - ids.begins
    kept = np.minimum(stored, limit)
    ends = running(kept)
    return np.arange(ends[-1]) + np.repeat(ids.ends - kept - ends[:-1], kept), kept, stored


def _padded(part: torch.Tensor, rows: int, filler: float) -> torch.Tensor:
    """Return (N, ...) with further rows of a value, up to so many."""
    out = part.new_full((rows, *part.shape[1:]), filler)
    out[: len(part)] = part
    return out
