"""What a split's labels, numbers and ids tell: one pass over what no sidecar answers; the rest is merged."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import xxhash

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.distinct import Distinct, distinct
from livetrain.trainers.data.read.labels import Counting, Labels
from livetrain.trainers.data.read.measure import Measure, Measured, measures
from livetrain.trainers.data.read.sights import Sighted
from livetrain.trainers.data.read.source import CorruptGroup, Partition, RowGroup, Source
from livetrain.trainers.data.read.spread import HERE, Looking, in_threads

log = logging.getLogger(__name__)

_STRETCH = 1 << 18  # rows that a thread, or a task on Ray, measures in one go
_READERS = 16  # threads that read answers, which are small and may be far away

Question = Measure | Counting | Distinct | Sighted
Asked = dict[str, Question]  # by the recipe's key
Found = dict[str, Any]  # what is measured, or counted, of some rows by the same keys


@dataclass(frozen=True)
class Statistics:
    """What one pass over a split's labels, dense columns and ids tells.

    Args:
        rows: rows read.
        mean: of each dense feature's columns that are normalised, over the rows that have them; 0 where none has.
        std: their population deviation; 1 where a column is constant.
        rate: mean of each task's known labels: of a binary one the share of positives.
        unknown: share of the rows whose label is not known yet, by task.
        single: the one value that all known labels have, of each task of which that is so.
        quantiles: of each feature that is cut at them.
        distinct: about how many different ids a column has, of the columns that are looked up one id per row.
    """

    rows: int
    mean: dict[str, list[float]]
    std: dict[str, list[float]]
    rate: dict[str, float]
    unknown: dict[str, float] = field(default_factory=dict)
    single: dict[str, float] = field(default_factory=dict)
    quantiles: dict[str, list[float]] = field(default_factory=dict)
    distinct: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Statistics":
        """Undo `to_dict`."""
        return cls(**values)


def scan(source: Source, recipe: Recipe, looking: Looking = HERE) -> Statistics:
    """Check and measure a split's labels and its features that are made of numbers, and count the ids of the others.

    What the sidecars of the split's partitions answer is not looked at again, and what is found out is kept there: one
    pass over the data serves all who ask the same. The rows of a partition are measured in stretches that depend on its
    files alone, and merged in their order, so the result depends neither on who measures them nor on what was kept.
    Quantiles are those of the same 65,536 rows each time, or of all if these are fewer. The label column of a row group
    whose footer says that it is constant is not read.

    Args:
        source: the split.
        recipe: names the features and labels; `data.on_corrupt` says whether an unreadable row group stops the scan. Of
            a partition that has one nothing is kept.
        looking: how what is not kept is measured; told of the rows that are done.

    Raises:
        BadInput: a label that is not of its task's kind, a null label of a task without `unknown: true`, a sample
            weight that is null, negative or infinite, NaN or an infinite value in a dense feature (a missing value is
            null), a value that float32 cannot hold, a vector of another length than its feature's,
            or weights or vectors of ids that are not one of each id, or not finite.
        CorruptGroup: with `on_corrupt: stop`.
    """
    numbers, ids = measures(recipe), distinct(recipe)
    asked: Asked = {f"tasks.{name}": Counting(name, task) for name, task in recipe.tasks.items()}
    asked |= {f"features.{name}": measure for name, measure in numbers.items()}
    asked |= {f"ids.{column}": sketch for column, sketch in ids.items()}
    total: Found = {key: question.nothing for key, question in asked.items()}
    rows = 0
    for found, read in _partitions(source, asked, recipe.data.on_corrupt == "skip", looking):
        total, rows = _merged(total, found), rows + read
    if not rows:
        raise BadInput(f"{source.folder}: not one row group can be read; prepare the data again")
    labels: dict[str, Labels] = {name: total[f"tasks.{name}"] for name in recipe.tasks}
    found_of: dict[str, Measured] = {name: total[f"features.{name}"] for name in numbers}
    dense = [name for name, measure in numbers.items() if measure.dense]
    return Statistics(
        rows=round(next(iter(labels.values())).rows),  # of requests more than are stored
        mean={name: found_of[name].moments.mean.tolist() for name in dense},
        std={name: found_of[name].moments.deviation.tolist() for name in dense},
        rate={name: part.total / max(part.known, 1) for name, part in labels.items()},
        unknown={name: 1 - part.known / part.rows for name, part in labels.items()},
        single={name: part.least for name, part in labels.items() if part.least == part.most},
        quantiles={name: found_of[name].drawn.quantiles(m.quantiles) for name, m in numbers.items() if m.quantiles},
        distinct={column: total[f"ids.{column}"].count for column in ids},
    )


def by_partition(
    source: Source, asked: Mapping[str, Question], skip: bool, looking: Looking = HERE
) -> Iterator[tuple[Partition, Found]]:
    """Yield every partition of a split with what is asked of it, kept or found out now; one is held at a time.

    Args:
        source: the split.
        asked: by any key.
        skip: unreadable row groups, instead of raising.
        looking: how what is not kept is found out.

    Raises:
        CorruptGroup: unless `skip`.
    """
    for part in source.partitions:
        groups = source.groups.part(part.start, part.stop)
        alone = replace(source, groups=groups, partitions=[replace(part, start=0, stop=len(groups))])
        found, _ = next(_partitions(alone, dict(asked), skip, looking))
        yield part, found


def _merged(one: Found, other: Found) -> Found:
    return {key: part.merge(other[key]) for key, part in one.items()}


@dataclass(frozen=True)
class _Stretch:
    """Consecutive row groups of a partition, and what is asked of them."""

    source: Source  # of these row groups alone
    before: int  # rows of the first one's file before it
    keys: list[str]


def _partitions(source: Source, asked: Asked, skip: bool, looking: Looking) -> Iterator[tuple[Found, int]]:
    """Yield what is asked of every partition in their order, kept or found out now, and how many rows it is of."""
    most = None if source.candidates is None else source.candidates.most
    names = {key: name for key, question in asked.items() if (name := _name(question, most)) is not None}
    kept, samples = [], dict[str, Measured]()
    for answers in in_threads(partial(_kept, asked, names), source.partitions, threads=_READERS):
        kept.append(dict(answers))
        for key, answer in answers.items():
            if isinstance(answer, Measured):  # a sample per partition and feature would be much to hold
                kept[-1][key], sample = answer.parted()
                samples[key] = samples[key].merge(sample) if key in samples else sample
    missing = [[key for key in asked if key not in found] for found in kept]
    cuts = [_cuts(source, part) if keys else [] for part, keys in zip(source.partitions, missing, strict=True)]
    sought = sum(source.stored(part) for part, keys in zip(source.partitions, missing, strict=True) if keys)
    stretches = (
        _stretch(source, part, start, stop, keys)
        for part, keys, places in zip(source.partitions, missing, cuts, strict=True)
        for start, stop in places
    )
    measured, done = looking.spread(partial(_measured, asked, skip), stretches), 0
    for part, found, keys, places in zip(source.partitions, kept, missing, cuts, strict=True):
        rows = read = source.stored(part)
        new: Found = {key: asked[key].nothing for key in keys}
        for _ in places:
            more, seen, lost = next(measured)
            new, read, done = _merged(new, more), read - sum(lost.values()), done + seen
            for text in lost:
                log.warning("left out of the statistics: %s", text)
            looking.tell("rows", done, sought)
        for key in keys if read == rows else ():
            if key in names:
                part.sidecar.write(names[key], {"question": asked[key].question}, new[key].arrays())
        yield found | new, read
    yield {key: samples.get(key, question.nothing) for key, question in asked.items()}, 0


def _name(question: Question, most: int | None) -> str | None:
    """Return the name that an answer is kept under; None where its code lies in no file, so that it may change.

    Of requests it is an answer for the most candidates that they may have: more are refused, and samples depend on it.
    """
    words = question.question | {"candidates": most}
    if words["code"] is None:
        return None
    return f"answer-{xxhash.xxh128_hexdigest(json.dumps(words, sort_keys=True).encode())}"


def _kept(asked: Asked, names: Mapping[str, str], partition: Partition) -> Found:
    """Return what a partition's sidecar answers."""
    found = {key: partition.sidecar.read(name) for key, name in names.items()}
    return {key: asked[key].restored(answer[1]) for key, answer in found.items() if answer is not None}


def _cuts(source: Source, partition: Partition) -> list[tuple[int, int]]:
    """Return the row groups from .. to of a partition's stretches, in each those that begin in so many rows."""
    rows = source.groups.rows[partition.start : partition.stop]
    starts = partition.start + np.flatnonzero(np.diff((np.cumsum(rows) - rows) // _STRETCH, prepend=-1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), partition.stop], strict=True))


def _stretch(source: Source, partition: Partition, start: int, stop: int, keys: list[str]) -> _Stretch:
    groups = source.groups
    first = int(np.searchsorted(groups.files, groups.files[start]))  # the file's first row group
    before = int(groups.rows[first:start].sum())
    return _Stretch(replace(source, groups=groups.part(start, stop), partitions=[]), before, keys)


def _measured(asked: Asked, skip: bool, stretch: _Stretch) -> tuple[Found, int, dict[str, int]]:
    """Return what is found of a stretch, its rows, and by why how many of them do not decode."""
    asked = {key: asked[key] for key in stretch.keys}
    total: Found = {key: question.nothing for key, question in asked.items()}
    lost: dict[str, int] = {}
    file, at = stretch.source.groups[0].path, stretch.before
    each = 1 if stretch.source.candidates is None else stretch.source.candidates.most
    for group in stretch.source.groups:
        if group.path != file:
            file, at = group.path, 0
        try:
            total = _merged(total, _measured_group(stretch.source, group, asked, _drawn_from(file, at * each)))
        except CorruptGroup as error:
            if not skip:
                raise
            lost[str(error)] = group.rows
        at += group.rows
    return total, stretch.source.rows, lost


def _drawn_from(path: str, row: int) -> int:
    """Return the number by which a file's row is drawn or not: by the names of file and folder, wherever these lie."""
    return (xxhash.xxh64_intdigest("/".join(path.split("/")[-2:]).encode()) + row) % 2**64


def _measured_group(source: Source, group: RowGroup, asked: Asked, first: int) -> Found:
    counted = {key: question for key, question in asked.items() if isinstance(question, Counting)}
    constant = {each.label: _constant(source, group, each.label) for each in counted.values()}
    labels = sorted(label for label, value in constant.items() if value is None)
    apart = [column for key, question in asked.items() if key not in counted for column in question.columns]
    weights = [column for question in counted.values() for column in question.columns]
    table, where = source.read(group, list(dict.fromkeys([*apart, *labels, *weights]))), source.place(group)
    rows = group.rows if source.candidates is None else len(table)
    return {
        key: question.of(table, constant[question.label], rows, where)
        if isinstance(question, Counting)
        else question.of(table, first, where)
        for key, question in asked.items()
    }


def _constant(source: Source, group: RowGroup, column: str) -> int | None:
    """Return the one value of a column in a row group, where its footer proves that there is but one.

    A float column's footer proves nothing: its minimum and maximum leave out NaN.
    """
    if source.candidates is not None:  # the footer does not say how many of them have it
        return None
    found = source.statistics(group, column)
    if found is None or not found.has_min_max or not found.has_null_count or found.null_count:
        return None
    return int(found.min) if isinstance(found.min, int) and found.min == found.max else None
