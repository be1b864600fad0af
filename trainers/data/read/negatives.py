"""Negatives that are drawn while the training split is read: fresh every epoch, and the same on any number of ranks.

A row whose label is 1 becomes itself and, behind it, the same row with other items of a catalogue. Which items those
are depends on (train.seed, epoch, number of the row in the split, number of the draw) and on nothing else. How many
rows a row group becomes depends on its data alone, so it is counted once, before a run trains, and every epoch has as
many steps.

Items lie in the order of (their group, their start), so that the items a row may get are a range; what is left to
refuse, items seen and items that are over, is refused by drawing again.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Recipe
from livetrain.modules.mixing import mix, uniform
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.columns import is_list, wanted_columns
from livetrain.trainers.data.read.draws import Chances, Places, begins_run, bisect
from livetrain.trainers.data.read.items import as_numbers, cast, ids_or_none, like_split, lists, read_items
from livetrain.trainers.data.read.measure import measures, written
from livetrain.trainers.data.read.records import running
from livetrain.trainers.data.read.source import CorruptGroup, RowGroup, Source
from livetrain.trainers.data.read.spread import HERE, Looking, in_threads

_TRIES = 32  # of a draw, before the items that it may get are looked up one by one


@dataclass
class _Wanted:
    """What P rows may get: items [low, high) that are on air at `time`, without their own and `barred`."""

    low: np.ndarray  # (P,) int64
    high: np.ndarray
    time: np.ndarray | None
    run: np.ndarray  # (P,) int64: rows that follow one another and have seen the same, R runs of them
    barred: np.ndarray  # sorted run * items + item, of what has been seen
    count: np.ndarray  # (P,) how many items that leaves
    own: np.ndarray  # (P,) id of the row's own item
    own_place: np.ndarray  # (P,) where that item is, -1: nowhere


class Negatives:
    """A recipe's `data.negatives`, with its catalogue in memory.

    Args:
        recipe: the run.
        source: the training split.

    Attributes:
        columns: of the split's rows that are read for it.
        items: the columns that an item has, one entry per item.
        find: id of an item -> its place there.
        chances: of the items to be drawn; None where all are alike.

    Raises:
        BadInput: the catalogue or the file of neighbours cannot be read, or lacks what the recipe asks of it.
    """

    def __init__(self, recipe: Recipe, source: Source) -> None:
        assert recipe.data.negatives is not None  # the caller asks
        self._section, self._seed = recipe.data.negatives, recipe.train.seed
        self._labels = list(dict.fromkeys(task.label for task in recipe.tasks.values()))
        air = self._section.on_air
        own = [self._section.item, *self._section.within, *self._section.seen, *([air.time] if air else [])]
        self._label = "" if self._section.task is None else recipe.tasks[self._section.task].label
        self.columns = list(dict.fromkeys([self._label, *own]))
        features = [column for column, _, key in wanted_columns(recipe) if key.startswith("features.")]
        asked = [self._section.item, *self._section.within, *([air.start, air.end] if air else [])]
        asked += [self._section.popularity] if self._section.popularity else []
        table, name, known = read_items(self._section.catalogue, "data.negatives.catalogue", [*asked, *features])
        table = like_split(table, source.schema, [*features, self._section.item, *self._section.within], name)
        for column in asked:
            if column not in known:
                raise BadInput(
                    f"data.negatives: {name} has no column '{column}'{nearest(column, known)}; add it to the catalogue"
                )
            if nulls := table.column(column).null_count:
                raise BadInput(
                    f"data.negatives: column '{column}' of {name} is null in {nulls:,} items; fill it, or leave such "
                    "items out"
                )
        for feature in recipe.features:
            of, beside = recipe.column(feature), recipe.beside(feature)
            if beside is not None and (of in known) != (beside[0][0] in known):
                lacking = beside[0][0] if of in known else of
                raise BadInput(
                    f"data.negatives: {name} has no column '{lacking}', which features.{feature} reads beside one that "
                    "it has; put both in the catalogue, or neither"
                )
        self._replaced = [column for column in dict.fromkeys([*features, self._section.item]) if column in known]
        read = {feature: {*recipe.columns(feature)} for feature in recipe.features if recipe.columns(feature)}
        self.taken = [feature for feature, columns in read.items() if columns & {*self._replaced}]
        self.kept = [feature for feature in read if feature not in self.taken]
        self._order(table, name)
        for measure in measures(recipe, [n for n in recipe.features if {*recipe.reads(n)} <= known]).values():
            measure.of(table, 0, name)
        self.items = {column: carry.whole(table.column(column)).take(self._places) for column in self._replaced}
        # Of lists of ids that a drawn row has from its positive no copy is made, which most of the time would go to.
        alone = {name for name, f in recipe.features.items() if f.carrier == "ids" and recipe.beside(name) is None}
        once = {recipe.column(name) for name in alone}
        again = {column for name in recipe.features if name not in alone for column in recipe.reads(name)}
        self._shared = {name for name in once - again - known if is_list(source.schema.field(name).type)}
        item = source.schema.field(self._section.item).type
        self._neighbours = _Neighbours(recipe, self, item) if self._section.hard else None

    def _order(self, table: pa.Table, name: str) -> None:
        """Put the items in the order of their group and start, and keep what draws are made by."""
        section, air = self._section, self._section.on_air
        ids = ids_or_none(table.column(section.item))[0]
        if len(np.unique(ids)) < len(ids):
            raise BadInput(f"data.negatives: {name} names an item twice in column '{section.item}'; keep one of each")
        self._keys, code = [], np.zeros(len(ids), np.int64)
        for column in section.within:
            values, codes = np.unique(ids_or_none(table.column(column))[0], return_inverse=True)
            self._keys.append(values)
            code = code * len(values) + codes
        start = as_numbers(table.column(air.start)) if air else np.zeros(len(ids))
        self._places = np.lexsort((start, code))
        self._code, self._start = code[self._places], start[self._places]
        self._end = as_numbers(table.column(air.end))[self._places] if air else np.full(len(ids), np.inf)
        if (self._end < self._start).any():
            raise BadInput(f"data.negatives: an item of {name} ends before it starts; correct its '{section.item}'")
        self._ends = self._end[np.lexsort((self._end, self._code))]
        self._longest = float((self._end - self._start).max()) if air else 0.0
        self._ids = ids[self._places]
        self.find = Places(self._ids)
        self.chances: Chances | None = None
        if section.popularity:
            popularity = as_numbers(table.column(section.popularity))[self._places]
            if not (popularity > 0).all():
                raise BadInput(
                    f"data.negatives.popularity: column '{section.popularity}' of {name} holds "
                    f"{popularity.min():g}, and a count must be above 0; raise it, or leave such items out"
                )
            self.chances = Chances(popularity**section.power)

    def __len__(self) -> int:
        return len(self._ids)

    def question(self) -> str:
        """Return a digest of all that `count` depends on besides the rows."""
        said = self._section.model_dump_json(include={"item", "within", "seen", "on_air"})
        digest = xxhash.xxh128(f"{self._label} {said} {written(sys.modules[__name__])}".encode())
        for part in (self._ids, self._code, *self._keys, self._start, self._end):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def count(self, table: pa.Table) -> tuple[int, int]:
        """Return how many of a row group's rows are positive, and how many of those get negatives."""
        positive = self._positive(table)
        return len(positive), int(np.count_nonzero(self._wanted(table, positive).count > 0))

    def _positive(self, table: pa.Table) -> np.ndarray:
        return np.flatnonzero(as_numbers(table.column(self._label)) == 1)

    def expand(self, table: pa.Table, first: int, epoch: int, names: Sequence[str]) -> pa.Table:
        """Return a row group's rows, and behind each row that gets negatives those.

        Args:
            table: n rows, with `columns` and `names`.
            first: number of the first row within the split, without what is drawn.
            epoch: from 0.
            names: of the columns to return.
        """
        positive = self._positive(table)
        wanted = self._wanted(table, positive)
        places = np.flatnonzero(wanted.count > 0)
        chosen = positive[places]
        items = self._draw(wanted, places, first + chosen, epoch)
        copies = np.ones(table.num_rows, np.int64)
        copies[chosen] += self._section.per_positive
        rows = np.repeat(np.arange(table.num_rows), copies)  # of the file
        is_drawn = np.ones(len(rows), bool)
        is_drawn[running(copies)[:-1]] = False
        mixed = rows.copy()  # of the file's rows and, behind those, the drawn items
        mixed[is_drawn] = table.num_rows + np.arange(len(items))
        taken, drawn, both = pa.array(rows), pa.array(items), pa.array(mixed)
        columns = []
        for name in names:
            column = table.column(name)
            if name in self.items:
                joined = pa.chunked_array([*column.chunks, self.items[name].take(drawn)]).combine_chunks()
                columns.append(joined.take(both))
            elif name in self._labels:
                labels = column.cast(pa.float32()).combine_chunks().take(taken)
                columns.append(pc.if_else(pa.array(is_drawn), pa.scalar(0, pa.float32()), labels))
            elif name in self._shared:
                columns.append(carry.repeated(carry.whole(column), rows))
            else:
                columns.append(column.combine_chunks().take(taken))
        return pa.table(columns, names=list(names))

    def _wanted(self, table: pa.Table, positive: np.ndarray) -> _Wanted:
        """Return what each of P rows of a table may get."""
        table, rows = table.select(self.columns).take(positive), len(positive)
        code, known = np.zeros(rows, np.int64), np.ones(rows, bool)
        for column, values in zip(self._section.within, self._keys, strict=True):
            own, valid = ids_or_none(table.column(column))
            place = np.minimum(np.searchsorted(values, own), len(values) - 1)
            known &= valid & (values[place] == own)
            code = code * len(values) + place
        low, high = (np.searchsorted(self._code, code, side=side) for side in ("left", "right"))
        high = np.where(known, high, low)
        count, time = high - low, None
        if self._section.on_air:
            time = as_numbers(table.column(self._section.on_air.time))  # NaN: before everything, so that nothing is on
            begun = bisect(self._start, low, high, time)
            over = bisect(self._ends, low, high, time) - low
            count = begun - low - over
            low, high = bisect(self._start, low, begun, time - self._longest), begun
        own, valid = ids_or_none(table.column(self._section.item))
        own_place = np.full(rows, -1, np.int64)
        own_place[valid] = self.find(own[valid])
        seen = [lists(table.column(column)) for column in self._section.seen]
        # A user's rows mostly follow one another, each with all that she has seen: it is looked up once.
        begins = begins_run(seen, [low, high] if time is None else [low, high, time])
        run, heads = np.cumsum(begins) - 1, np.flatnonzero(begins)

        def fits(items: np.ndarray, of: np.ndarray) -> np.ndarray:
            inside = (items >= 0) & (items >= low[of]) & (items < high[of])
            return inside if time is None else inside & (self._end[items] > time[of])

        barring = [np.zeros(0, np.int64)]
        for offsets, ids in seen:
            lengths = np.diff(offsets)
            items = self.find(ids[np.repeat(begins, lengths)])
            runs = np.repeat(np.arange(len(heads)), lengths[heads])
            inside = fits(items, heads[runs])
            barring.append(runs[inside] * len(self) + items[inside])
        barred = np.unique(np.concatenate(barring))
        count = count - np.bincount(barred // len(self), minlength=len(heads))[run]
        wanted = _Wanted(low, high, time, run, barred, count, np.where(valid, own, 0), own_place)
        wanted.count -= fits(own_place, np.arange(rows)) & ~self._is_barred(wanted, np.arange(rows), own_place)
        return wanted

    def _is_barred(self, wanted: _Wanted, place: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Return which items have been seen by the rows at `place`."""
        if not len(wanted.barred):
            return np.zeros(len(item), bool)
        key = wanted.run[place] * len(self) + item
        found = np.minimum(np.searchsorted(wanted.barred, key), len(wanted.barred) - 1)
        return wanted.barred[found] == key

    def _draw(self, wanted: _Wanted, places: np.ndarray, numbers: np.ndarray, epoch: int) -> np.ndarray:
        """Return the items of the rows `places` of `wanted`, whose numbers are given: per_positive of each in a row."""
        each = self._section.per_positive
        key = mix(mix(np.array([self._seed], np.uint64)) ^ np.uint64(epoch))
        key = mix(key ^ numbers.astype(np.uint64))
        keys = mix(key[:, None] ^ np.arange(each, dtype=np.uint64)).reshape(-1)
        out, left = np.zeros(len(keys), np.int64), np.arange(len(keys))
        for attempt in range(_TRIES):
            if not len(left):
                break
            place = places[left // each]
            item = self._propose(wanted, place, mix(keys[left] + np.uint64(2 * attempt)))
            if self._neighbours is not None:
                item = self._neighbours.mix(item, wanted.own[place], mix(keys[left] + np.uint64(2 * attempt + 1)))
            out[left] = item
            left = left[~self._allowed(wanted, place, item)]
        for k in left.tolist():
            place = places[k // each]
            items = np.arange(wanted.low[place], wanted.high[place])
            items = items[self._allowed(wanted, np.full(len(items), place), items)]
            weights = np.ones(len(items)) if self.chances is None else self.chances.of[items]
            ends = np.cumsum(weights)
            out[k] = items[np.searchsorted(ends, uniform(keys[k : k + 1])[0] * ends[-1], side="right")]
        return out

    def _propose(self, wanted: _Wanted, place: np.ndarray, bits: np.ndarray) -> np.ndarray:
        low, high, share = wanted.low[place], wanted.high[place], uniform(bits)
        if self.chances is None:
            return low + np.minimum((share * (high - low)).astype(np.int64), high - low - 1)
        return self.chances.within(low, high, share)

    def _allowed(self, wanted: _Wanted, place: np.ndarray, item: np.ndarray) -> np.ndarray:
        allowed = (item >= wanted.low[place]) & (item < wanted.high[place])
        if wanted.time is not None:
            allowed &= self._end[item] > wanted.time[place]
        return allowed & (item != wanted.own_place[place]) & ~self._is_barred(wanted, place, item)


class _Neighbours:
    """Each item's neighbours in the catalogue, which a share of the draws is taken from."""

    def __init__(self, recipe: Recipe, catalogue: Negatives, item: pa.DataType) -> None:
        section = recipe.data.negatives
        assert section is not None
        assert section.hard is not None
        self._share = section.hard.share
        asked = [section.item, section.hard.column]
        table, name, known_names = read_items(section.hard.path, "data.negatives.hard.path", asked)
        for column in asked:
            if column not in known_names:
                raise BadInput(
                    f"data.negatives.hard: {name} has no column '{column}'{nearest(column, known_names)}; "
                    "write each item's id and the list of its neighbours' ids"
                )
        ids, valid = ids_or_none(cast(table.column(section.item), item, section.item, name))
        column = table.column(section.hard.column)
        if not is_list(column.type):
            raise BadInput(
                f"data.negatives.hard: column '{section.hard.column}' of {name} is {column.type}; write each item's "
                "neighbours as a list of their ids"
            )
        offsets, others = lists(cast(column, pa.large_list(item), section.hard.column, name))
        found = catalogue.find(others)
        known = (found >= 0) & np.repeat(valid, np.diff(offsets))
        order = np.argsort(ids, kind="stable")
        counts = np.diff(running(known)[offsets])
        begins = running(known)[offsets[:-1]]
        self._found = found[known]
        self._ids, self._begins, self._counts = ids[order], begins[order], counts[order]
        if not len(self._found):
            raise BadInput(
                f"data.negatives.hard.path: no neighbour in {name} is an item of the catalogue; write the neighbours' "
                f"ids as column '{section.item}' of the catalogue has them"
            )

    def mix(self, item: np.ndarray, own: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Return the items, a share of them replaced by neighbours of the rows' own items."""
        place = np.minimum(np.searchsorted(self._ids, own), len(self._ids) - 1)
        count = np.where(self._ids[place] == own, self._counts[place], 0)
        hard = np.flatnonzero((uniform(bits) < self._share) & (count > 0))
        nth = (uniform(mix(bits[hard])) * count[hard]).astype(np.int64)
        out = item.copy()
        out[hard] = self._found[self._begins[place[hard]] + nth]
        return out


def count(source: Source, recipe: Recipe, progress: Callable[[str], None], looking: Looking = HERE) -> None:
    """Count what will be drawn for each row group of the training split, and keep it in `Source.drawn`.

    What the sidecars of the split's partitions know is not counted again; of one with a corrupt group nothing is kept.

    Raises:
        BadInput: as `Negatives`; or no positive can get a negative.
        CorruptGroup: a row group does not decode, with `on_corrupt: stop`.
    """
    section = recipe.data.negatives
    if section is None:
        return
    negatives = Negatives(recipe, source)
    if section.shared is not None:
        item_feature(recipe)
        progress(_told(section.shared, len(negatives), negatives.taken))
    if section.task is None:
        return

    def counted(group: RowGroup) -> tuple[int, int] | None:
        try:
            table = source.read(group, negatives.columns)
        except CorruptGroup:
            if recipe.data.on_corrupt == "stop":
                raise
            return None
        return negatives.count(table)

    name, parts = f"negatives-{negatives.question()}", []
    for partition in source.partitions:
        kept = partition.sidecar.read(name)
        if kept is None:
            groups = source.groups.part(partition.start, partition.stop) if partition.stop > partition.start else ()
            each = []
            for counts in in_threads(counted, groups):
                each.append(counts)
                looking.tell("row groups", len(each), len(groups))
            parts.append(np.array([counts or (0, 0) for counts in each], np.int64).reshape(-1, 2))
            if None not in each:
                partition.sidecar.write(name, {}, {"counted": parts[-1]})
        else:
            parts.append(kept[1]["counted"])
    found = np.concatenate(parts)
    positives, chosen = found.sum(axis=0).tolist()
    if not chosen:
        raise BadInput(
            f"data.negatives: none of the {positives:,} positive rows of tasks.{section.task} has an item that may be "
            f"drawn among the {len(negatives):,} of {section.catalogue}; add items, or ask for less in within, on_air "
            "and seen"
        )
    source.drawn = section.per_positive * found[:, 1]
    without = f"; {positives - chosen:,} have no item that may be drawn" if chosen < positives else ""
    _check_share(recipe, len(negatives), positives == source.rows)
    progress(
        f"negatives: {section.per_positive} for each of {chosen:,} positives of {section.task}, of {len(negatives):,} "
        f"items{without}"
    )
    progress(
        f"negatives: a drawn row has its item's {', '.join(negatives.taken) or 'id alone'}, and its positive's "
        f"{', '.join(negatives.kept) or 'nothing else'}; a feature of user and item together among the latter gives "
        "the label away"
    )


def item_feature(recipe: Recipe) -> str:
    """Return the feature that tells the catalogue's items apart.

    Raises:
        BadInput: there is none.
    """
    assert recipe.data.negatives is not None  # the caller asks
    column = recipe.data.negatives.item
    for name, feature in recipe.features.items():
        if feature.carrier == "ids" and not feature.lists and recipe.column(name) == column:
            return name
    raise BadInput(
        f"data.negatives.item: no id feature reads column '{column}', by which the items that a step shares are told "
        "apart; name the column of the item's id"
    )


def _told(shared: int | str, items: int, taken: Sequence[str]) -> str:
    how = f"all {items:,} items" if shared == "all" else f"{shared:,} of {items:,} items, drawn anew for each,"
    return f"negatives: {how} stand beside the rows of a step, with their {', '.join(taken) or 'id alone'}"


def _check_share(recipe: Recipe, items: int, only_positives: bool) -> None:
    """Raise BadInput where the share of negatives is known, and the recipe says another than 1 and that."""
    section = recipe.data.negatives
    assert section is not None
    assert section.task is not None  # rows of its own have been counted
    alike = not (section.popularity or section.within or section.on_air or section.seen or section.hard)
    told, others = recipe.tasks[section.task].negatives_kept, items - 1
    if told == 1 or not (alike and only_positives) or section.per_positive > others:
        return
    share = section.per_positive / others
    if abs(told - share) > 0.01 * share:
        raise BadInput(
            f"tasks.{section.task}.negatives_kept: {told:g}, but {section.per_positive} of the {others:,} other items "
            f"are drawn; set {share:.4g}"
        )
