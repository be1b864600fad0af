"""Metrics of a split that many ranks evaluate together."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from livetrain.modules.metrics.lengths import bucket
from livetrain.modules.tasks.kind import TaskKind
from livetrain.trainers.evaluate.gather import _gather, _reduce
from livetrain.trainers.runtime import ranks

UNKNOWN = -1  # code of a label that is missing; every kind's labels are 0 or more
SAMPLE_ROWS = 4_000_000
_PENDING = 64  # updates kept on a GPU before one copy to the host, so that not every step waits for the GPU


@dataclass
class _Rows:
    """n rows on the host, padding dropped."""

    logits: np.ndarray  # (n, T) float32
    labels: np.ndarray  # (n, T) the label or UNKNOWN; int8 where all tasks are binary, else float32
    groups: np.ndarray  # (n,) int64, zeros where the evaluation has no groups
    buckets: np.ndarray  # (n,) int8, index of LENGTH_NAMES, zeros where it has no lengths

    @classmethod
    def empty(cls, kinds: list[TaskKind]) -> "_Rows":
        labels = np.zeros((0, len(kinds)), _label_type(kinds))
        return cls(labels.astype(np.float32), labels, np.zeros(0, np.int64), np.zeros(0, np.int8))

    @classmethod
    def concat(cls, parts: list["_Rows"], kinds: list[TaskKind]) -> "_Rows":
        parts = parts or [cls.empty(kinds)]
        return cls(*(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(cls)))

    def __getitem__(self, chosen: np.ndarray) -> "_Rows":
        return _Rows(self.logits[chosen], self.labels[chosen], self.groups[chosen], self.buckets[chosen])

    def __len__(self) -> int:
        return len(self.groups)


def _label_type(kinds: list[TaskKind]) -> type[np.generic]:
    return np.float32 if any(kind.numeric for kind in kinds) else np.int8


class _Exact:
    """Keeps every row: 5 bytes per task, or 8 with numeric ones, and 9 besides. Rank 0 computes, and has them all."""

    def __init__(self, kinds: Mapping[str, TaskKind]) -> None:
        self.kinds = kinds
        self.parts: list[_Rows] = []

    def add(self, rows: _Rows, grouped: bool) -> None:
        self.parts.append(rows)

    def finish(self, grouped: bool, measured: bool) -> tuple[dict[str, float], dict[str, Any]]:
        rows = _Rows.concat(self.parts, list(self.kinds.values()))
        self.parts = [rows]
        groups, buckets = _gather(rows.groups), _gather(rows.buckets)
        values: dict[str, float] = {"rows": float(_reduce(np.array([len(rows)]))[0])}
        curves: dict[str, Any] = {}
        for t, (task, kind) in enumerate(self.kinds.items()):
            logits, labels = _gather(rows.logits[:, t]), _gather(rows.labels[:, t])
            if ranks.is_main():
                known = labels != UNKNOWN
                labels, logits = labels[known], logits[known]
                figures = kind.figures(labels, logits, groups[known] if grouped else None)
                curves[task] = kind.curves(labels, logits, buckets[known] if measured else None)
                values |= _named(task, kind, figures)
        return values, curves


def _named(task: str, kind: TaskKind, figures: dict[str, float]) -> dict[str, float]:
    """Return a task's figures under its name, the leading one first (see modules.tasks.registry.leading)."""
    names = sorted(figures, key=lambda name: name != kind.leading)
    return {f"{task}.{name}": figures[name] for name in names}


class _GroupSample:
    """All rows of a pseudo-random share of groups, the largest share 2^-k that holds at most `budget` rows.

    A group belongs to the sample when a hash of its id is below the threshold 2^(64-k). Each rank raises k while its
    own rows exceed the budget, then all do while the rows of all ranks exceed it: k, and with it the sample, is the
    same however the rows were spread over ranks.
    """

    def __init__(self, kinds: list[TaskKind], budget: int) -> None:
        self.kinds, self.budget = kinds, budget
        self.halvings = 0
        self.parts: list[_Rows] = []
        self.size = 0

    def _chosen(self, rows: _Rows) -> _Rows:
        return rows[_mix(rows.groups) <= np.uint64((2**64 - 1) >> self.halvings)] if self.halvings else rows

    def add(self, rows: _Rows) -> None:
        self.parts.append(self._chosen(rows))
        self.size += len(self.parts[-1])
        while self.size > self.budget and self.halvings < 64:
            self.cut(self.halvings + 1)

    def cut(self, halvings: int) -> None:
        """Keep the share 2^-halvings of all groups."""
        self.halvings = halvings
        self.parts = [self._chosen(_Rows.concat(self.parts, self.kinds))]
        self.size = len(self.parts[0])

    def settle(self) -> _Rows:
        """Agree on the share with all ranks; return this rank's rows of it."""
        self.cut(int(_reduce(np.array([self.halvings]), dist.ReduceOp.MAX)[0]))
        while _reduce(np.array([self.size]))[0] > self.budget and self.halvings < 64:
            self.cut(self.halvings + 1)
        return self.parts[0]


def _mix(ids: np.ndarray) -> np.ndarray:
    """Return splitmix64 of int64 ids, as uint64: every bit depends on every bit of the id."""
    x = ids.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _Bounded:
    """Keeps histograms, sums and a sample of groups: 7 MiB per task and the sample, however many rows there are."""

    def __init__(self, kinds: Mapping[str, TaskKind], sample_rows: int) -> None:
        self.kinds = kinds
        self.stores = {task: kind.counts() for task, kind in kinds.items()}
        self.rows = 0
        self.sample = _GroupSample(list(kinds.values()), sample_rows)

    def add(self, rows: _Rows, grouped: bool) -> None:
        self.rows += len(rows)
        for t, store in enumerate(self.stores.values()):
            known = rows.labels[:, t] != UNKNOWN
            store.add(rows.labels[known, t], rows.logits[known, t], rows.buckets[known])
        if grouped:
            self.sample.add(rows)

    def finish(self, grouped: bool, measured: bool) -> tuple[dict[str, float], dict[str, Any]]:
        values: dict[str, float] = {"rows": float(_reduce(np.array([self.rows]))[0])}
        curves: dict[str, Any] = {}
        for task, store in self.stores.items():
            total = copy(store)
            total.counts, total.sums = _reduce(store.counts), _reduce(store.sums)
            curves[task] = total.curves(measured)
            values |= _named(task, self.kinds[task], total.figures())
        return (values | self._grouped() if grouped else values), curves

    def _grouped(self) -> dict[str, float]:
        rows = self.sample.settle()
        values = {"gauc_groups_share": 2.0**-self.sample.halvings}
        groups = _gather(rows.groups)
        for t, (task, kind) in enumerate(self.kinds.items()):
            if not any(metric.grouped for metric in kind.metrics.values()):
                continue
            logits, labels = _gather(rows.logits[:, t]), _gather(rows.labels[:, t])
            if ranks.is_main():
                known = labels != UNKNOWN
                figures = kind.grouped(labels[known], logits[known], groups[known])
                values |= {f"{task}.{name}": figure for name, figure in figures.items()}
        return values


class Evaluation:
    """Collects one split's predictions on every rank and turns them into metrics that all ranks agree on.

    Args:
        tasks: the T tasks and their kinds, in the columns' order (see modules.tasks.registry.kinds).
        memory: `exact` keeps every row, 5 bytes per task and 9 besides (8 per task with numeric ones), and gathers them
            to rank 0. `bounded` needs the same memory for any number of rows: AUC comes from 65,536 bins of the logit
            between -16 and 16, and `<task>.auc_error` bounds its error; log loss, NE and PCOC are exact; GAUC and UAUC
            are exact on a share of the groups, `gauc_groups_share`, picked by a hash of their ids; of a number,
            `<task>.xauc_error` bounds the error of xAUC and the rest is exact.
        sample_rows: largest number of rows, over all ranks, of the groups that `bounded` samples.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskKind],
        memory: Literal["exact", "bounded"] = "exact",
        sample_rows: int = SAMPLE_ROWS,
    ) -> None:
        self._label_type = _label_type(list(tasks.values()))
        self._store = _Exact(tasks) if memory == "exact" else _Bounded(tasks, sample_rows)
        self._pending: list[list[torch.Tensor]] = []  # logits, labels, weights, and of groups and lengths what is given
        self._given: tuple[bool, bool] | None = None  # groups, lengths
        self._curves: dict[str, Any] | None = None

    def update(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        groups: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> None:
        """Add a batch of this rank. On a GPU the host does not wait, but for a copy every 64 batches.

        Args:
            logits: (B, T), of which the kinds make the predictions.
            labels: (B, T) as the tasks' kinds have them; nan = unknown, the row does not count for that task.
            weights: (B,) 0 drops the row as padding; any other weight counts it once.
            groups: (B,) integer group of each row, for GAUC and UAUC; in every update or in none.
            lengths: (B,) history length of each row, for AUC by length; in every update or in none.

        Raises:
            ValueError: groups or lengths came in some updates only.
        """
        given = (groups is not None, lengths is not None)
        if self._given not in (None, given):
            raise ValueError("groups and lengths belong in every update of an evaluation or in none")
        self._given = given
        tensors = (logits, labels, weights, groups, lengths)
        self._pending.append([x.detach() for x in tensors if x is not None])
        if logits.device.type == "cpu" or len(self._pending) >= _PENDING:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        columns = [torch.cat(x).cpu() for x in zip(*self._pending, strict=True)]
        self._pending.clear()
        grouped, measured = self._given or (False, False)
        groups, lengths = columns[3] if grouped else None, columns[-1] if measured else None
        logits, real = columns[0], columns[2].ne(0).numpy()
        labels = columns[1].float().numpy()[real]
        number = int(real.sum())
        rows = _Rows(
            logits.float().numpy()[real],
            np.where(np.isnan(labels), UNKNOWN, labels).astype(self._label_type),
            np.zeros(number, np.int64) if groups is None else groups.numpy()[real].astype(np.int64),
            bucket(np.zeros(number) if lengths is None else lengths.numpy()[real]),
        )
        self._store.add(rows, grouped=grouped)

    def compute(self) -> dict[str, float]:
        """Return the metrics over the rows of all ranks. Collective: every rank calls it and gets the same figures.

        Returns:
            `rows`, and by task `<task>.<metric>` of its kind's `metrics`: those that are `grouped` with groups, and
            those that bound an error in bounded memory, then with groups also `gauc_groups_share`. Undefined ones are
            nan.
        """
        self._flush()
        given = np.array(self._given or (False, False), np.int64)  # a rank without rows has not seen either
        grouped, measured = (bool(x) for x in _reduce(given, dist.ReduceOp.MAX))
        values, self._curves = ranks.from_main(self._store.finish(grouped, measured))
        return values

    def curves(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Return what `compute` found to plot, the same on every rank and ready for JSON.

        Returns:
            By task, `calibration`: points of `mean_p`, `mean_y`, `count` in bins of nearly equal counts (in bounded
            memory a row's p is known to 6e-5), and `auc_by_length`: `length`, `auc`, `rows` of each bucket of history
            lengths with both classes, empty when no lengths were given.

        Raises:
            RuntimeError: `compute` has not run.
        """
        if self._curves is None:
            raise RuntimeError("curves are known after compute()")
        return self._curves
