"""One pass over a split: its labels and numbers checked, and measured."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe, Task
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.data.read.measure import Measure, Measured
from livetrain.trainers.data.read.source import CorruptGroup, RowGroup, Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Statistics:
    """What one pass over a split's labels and dense columns tells.

    Args:
        rows: rows read.
        mean: of each dense feature's columns that are normalised, over the rows that have them; 0 where none has.
        std: their population deviation; 1 where a column is constant.
        rate: mean of each task's known labels: of a binary one the share of positives.
        unknown: share of the rows whose label is not known yet, by task.
        single: the one value that all known labels have, of each task of which that is so.
        quantiles: of each feature that is cut at them.
    """

    rows: int
    mean: dict[str, list[float]]
    std: dict[str, list[float]]
    rate: dict[str, float]
    unknown: dict[str, float] = field(default_factory=dict)
    single: dict[str, float] = field(default_factory=dict)
    quantiles: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Statistics":
        """Undo `to_dict`."""
        return cls(**values)


def scan(source: Source, recipe: Recipe, progress: Callable[[int], None] | None = None) -> Statistics:
    """Check and measure a split's labels and its features that are made of numbers in one streaming pass.

    Row groups are read in parallel, at most one per processor at a time, and merged in file order, so the result does
    not depend on the threads. Quantiles are those of the same 65,536 rows each time, or of all if these are fewer. The
    label column of a row group whose footer says that it is constant is not read.

    Args:
        source: the split.
        recipe: names the features and labels; `data.on_corrupt` says whether an unreadable row group stops the scan.
        progress: called with the rows of every row group that is done.

    Raises:
        BadInput: a label that is not of its task's kind, a null label of a task without `unknown: true`, a sample
            weight that is null, negative or infinite, NaN or an infinite value in a dense feature (a missing value is
            null), a value that float32 cannot hold, a vector of another length than its feature's,
            or weights or vectors of ids that are not one of each id, or not finite.
        CorruptGroup: with `on_corrupt: stop`.
    """
    measure, tasks = Measure(recipe), recipe.tasks
    numbers, labels, rows = measure.nothing, _Labels.of([np.zeros(0)] * len(tasks), 0), 0
    each = 1 if source.candidates is None else source.candidates.most
    firsts = (np.cumsum([0] + [group.rows for group in source.groups]) * each).tolist()
    with ThreadPoolExecutor(pa.cpu_count()) as pool:
        groups = zip(source.groups, firsts, strict=False)
        jobs = [pool.submit(_scan_group, source, group, first, measure, tasks) for group, first in groups]
        for group, job in zip(source.groups, jobs, strict=True):
            found = _result(job, pool, recipe.data.on_corrupt == "skip")
            if found is not None:
                numbers, labels, rows = numbers.merge(found[0]), labels.merge(found[1]), rows + found[2]
            if progress is not None:
                progress(group.rows)
    if not rows:
        raise BadInput(f"{source.folder}: not one row group can be read; prepare the data again")
    mean, std, quantiles = measure.tell(numbers)
    return Statistics(
        rows=rows,
        mean=mean,
        std=std,
        rate=dict(zip(tasks, (labels.total / np.maximum(labels.known, 1)).tolist(), strict=True)),
        unknown=dict(zip(tasks, (1 - labels.known / rows).tolist(), strict=True)),
        single={task: float(labels.least[t]) for t, task in enumerate(tasks) if labels.least[t] == labels.most[t]},
        quantiles=quantiles,
    )


@dataclass(frozen=True)
class _Labels:
    """Sum, number, least and largest of T tasks' known labels, each (T,) float64."""

    total: np.ndarray
    known: np.ndarray
    least: np.ndarray
    most: np.ndarray

    @classmethod
    def of(cls, labels: list[np.ndarray], times: np.ndarray | int) -> "_Labels":
        """Count each task's known labels, of which every one stands for so many rows: (T,), or a number for all."""
        return cls(
            times * np.array([part.sum() for part in labels], float),
            times * np.array([len(part) for part in labels], float),
            np.array([part.min(initial=np.inf) for part in labels]),
            np.array([part.max(initial=-np.inf) for part in labels]),
        )

    def merge(self, other: "_Labels") -> "_Labels":
        ends = np.minimum(self.least, other.least), np.maximum(self.most, other.most)
        return _Labels(self.total + other.total, self.known + other.known, *ends)


def _result(job: Future, pool: ThreadPoolExecutor, skip: bool) -> tuple[Measured, _Labels, int] | None:
    """Return one row group's figures, or None for a corrupt one that may be skipped."""
    try:
        return job.result()
    except BaseException as error:
        if skip and isinstance(error, CorruptGroup):
            log.warning("left out of the statistics: %s", error)
            return None
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _scan_group(
    source: Source, group: RowGroup, first: int, measure: Measure, tasks: dict[str, Task]
) -> tuple[Measured, _Labels, int]:
    """Return what is measured of one row group, whose first row is so many in the split, its known labels, its rows."""
    columns = {task.label for task in tasks.values()}
    constant = {column: value for column in columns if (value := _constant(source, group, column)) is not None}
    weights = [task.sample_weight for task in tasks.values() if task.sample_weight]
    table = source.read(group, list(dict.fromkeys([*measure.columns, *sorted(columns - constant.keys()), *weights])))
    labels, times = [], np.array([group.rows if task.label in constant else 1 for task in tasks.values()])
    for name, task in tasks.items():
        values = pa.chunked_array([[constant[task.label]]]) if task.label in constant else table.column(task.label)
        labels.append(_labels(source, group, name, task, values))
        if task.sample_weight:
            _check_weights(source, group, name, task.sample_weight, table.column(task.sample_weight))
    rows = group.rows if source.candidates is None else len(table)
    return measure.of(table, first, source.place(group)), _Labels.of(labels, times), rows


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


def _labels(source: Source, group: RowGroup, name: str, task: Task, column: pa.ChunkedArray) -> np.ndarray:
    """Return a task's known labels, float64."""
    kind = kinds({name: task})[name]
    numbers = column.cast(pa.float64(), safe=False).to_numpy()  # null = NaN
    known = ~np.isnan(numbers)
    bad = ~kind.fits(numbers)
    if task.unknown:
        bad &= known
    if bad.any():
        first = int(bad.argmax())
        mend = "" if known[first] else ", set unknown: true if it is not known yet"
        raise BadInput(
            f"{source.place(group)}, row {first}: tasks.{name}.label '{task.label}' "
            f"holds {column[first].as_py()}, but a label is {kind.wanted}; correct the data{mend}, or leave such rows "
            "out"
        )
    return numbers[known]


def _check_weights(source: Source, group: RowGroup, name: str, label: str, column: pa.ChunkedArray) -> None:
    numbers = column.cast(pa.float64(), safe=False).to_numpy()  # null = NaN
    bad = ~((numbers >= 0) & (numbers < np.finfo(np.float32).max))
    if bad.any():
        first = int(bad.argmax())
        raise BadInput(
            f"{source.place(group)}, row {first}: tasks.{name}.sample_weight '{label}' "
            f"holds {column[first].as_py()}, but a weight is a finite number from 0 on; correct the data"
        )
