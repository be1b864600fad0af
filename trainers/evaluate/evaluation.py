"""Metrics of a split that many ranks evaluate together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from livetrain.modules.tasks.kinds import Kind
from livetrain.trainers.evaluate import binary, numeric
from livetrain.trainers.evaluate.gather import _gather, _reduce
from livetrain.trainers.runtime import ranks

RANKING = ("auc", "auc_error", "gauc", "uauc", "positives")  # what a score that is no probability can be asked
UNKNOWN = -1  # code of a label that is missing; every kind's labels are 0 or more
LENGTH_EDGES = np.array([0, 5, 10, 20, 50, 100])  # last length of each bucket but the last
LENGTH_NAMES = ("0", "1-5", "6-10", "11-20", "21-50", "51-100", ">100")
BINS = 2**16  # of a histogram of logits
LIMIT = 16.0  # logits beyond it fall in the histogram's end bins; sigmoid(16) = 1 - 1e-7
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
    def empty(cls, kinds: list[Kind]) -> "_Rows":
        labels = np.zeros((0, len(kinds)), _label_type(kinds))
        return cls(labels.astype(np.float32), labels, np.zeros(0, np.int64), np.zeros(0, np.int8))

    @classmethod
    def concat(cls, parts: list["_Rows"], kinds: list[Kind]) -> "_Rows":
        parts = parts or [cls.empty(kinds)]
        return cls(*(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(cls)))

    def __getitem__(self, chosen: np.ndarray) -> "_Rows":
        return _Rows(self.logits[chosen], self.labels[chosen], self.groups[chosen], self.buckets[chosen])

    def __len__(self) -> int:
        return len(self.groups)


def _label_type(kinds: list[Kind]) -> type[np.generic]:
    return np.float32 if any(kind.numeric for kind in kinds) else np.int8


def _predictions(kind: Kind, logits: np.ndarray) -> np.ndarray:
    return kind(torch.from_numpy(logits)).numpy()


def _by_length(counts: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """Return AUC and rows of every bucket of history lengths that has both classes."""
    points = []
    for bucket, name in enumerate(LENGTH_NAMES):
        positives, negatives = counts(bucket)
        if positives.any() and negatives.any():
            rows = int(positives.sum() + negatives.sum())
            points.append({"length": name, "auc": binary.auc_from_counts(positives, negatives), "rows": rows})
    return points


class _Exact:
    """Keeps every row: 5 bytes a task, or 8 with numeric ones, and 9 besides. Rank 0 has them all when it computes."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
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
                if kind.numeric:
                    figures, curves[task] = numeric.figures(labels, _predictions(kind, logits)), _no_curves()
                else:
                    figures = _figures(labels, logits, groups[known] if grouped else None)
                    curves[task] = _curves(labels, logits, buckets[known] if measured else None)
                    if kind.retrieval:
                        figures, curves[task] = _of_ranking(figures, curves[task])
                values |= {f"{task}.{name}": figure for name, figure in figures.items()}
        return values, curves


def _figures(labels: np.ndarray, logits: np.ndarray, groups: np.ndarray | None) -> dict[str, float]:
    figures = {"auc": binary.auc(labels, logits)}
    if groups is not None:
        figures["gauc"], figures["uauc"] = binary.gauc_and_uauc(labels, logits, groups)
    return figures | {
        "log_loss": binary.log_loss(labels, logits),
        "ne": binary.normalised_entropy(labels, logits),
        "pcoc": binary.pcoc(labels, logits),
        "positives": float(np.count_nonzero(labels)),
    }


def _of_ranking(figures: dict[str, float], curves: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Return what holds of scores that are no probabilities."""
    return {name: figure for name, figure in figures.items() if name in RANKING}, curves | {"calibration": []}


def _no_curves() -> dict[str, list[Any]]:
    return {"calibration": [], "auc_by_length": []}


def _curves(labels: np.ndarray, logits: np.ndarray, buckets: np.ndarray | None) -> dict[str, Any]:
    if np.isnan(logits).any():
        return _no_curves()
    scores, positives, negatives = binary.count_by_score(labels, logits)

    def counts(bucket: int) -> tuple[np.ndarray, np.ndarray]:
        return binary.count_by_score(labels[buckets == bucket], logits[buckets == bucket])[1:]

    return {
        "calibration": binary.calibration(binary.sigmoid(scores), positives, negatives),
        "auc_by_length": [] if buckets is None else _by_length(counts),
    }


class _GroupSample:
    """All rows of a pseudo-random share of groups, the largest share 2^-k that holds at most `budget` rows.

    A group belongs to the sample when a hash of its id is below the threshold 2^(64-k). Each rank raises k while its
    own rows exceed the budget, then all do while the rows of all ranks exceed it: k, and with it the sample, is the
    same however the rows were spread over ranks.
    """

    def __init__(self, kinds: list[Kind], budget: int) -> None:
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


class _Probabilities:
    """A binary task's histogram of logits by label and history length, and sums: 7 MiB."""

    def __init__(self, kind: Kind) -> None:
        self.counts = np.zeros((len(LENGTH_NAMES), 2, BINS), np.int64)
        self.sums = np.zeros(2)  # losses, probabilities

    def add(self, labels: np.ndarray, logits: np.ndarray, buckets: np.ndarray) -> None:
        logits, labels = logits.astype(np.float64), labels.astype(np.int64)
        self.sums += binary.losses(labels, logits).sum(), binary.sigmoid(logits).sum()
        heights = (np.clip(logits, -LIMIT, LIMIT) + LIMIT) * (BINS / (2 * LIMIT))
        bins = np.minimum(np.nan_to_num(heights).astype(np.int64), BINS - 1)
        places = np.ravel_multi_index((buckets, labels, bins), self.counts.shape)
        np.add.at(self.counts.reshape(-1), places, 1)  # one index: the fast path of add.at

    def finish(self, measured: bool) -> tuple[dict[str, float], dict[str, Any]]:
        """Return figures and curves over the rows of all ranks. Collective."""
        counts, sums = _reduce(self.counts), _reduce(self.sums)
        negatives, positives = counts.sum(axis=0)
        rows, hits = int(counts.sum()), int(positives.sum())
        loss, predicted = (float(x) for x in sums)
        diverged = np.isnan(sums).any()
        figures = {
            "auc": float("nan") if diverged else binary.auc_from_counts(positives, negatives),
            "auc_error": float("nan") if diverged else binary.auc_error_bound(positives, negatives),
            "log_loss": loss / rows if rows else float("nan"),
            "ne": loss / rows / binary.entropy(hits / rows) if rows else float("nan"),
            "pcoc": predicted / hits if hits else float("nan"),
            "positives": float(hits),
        }
        if diverged:
            return figures, _no_curves()
        middles = binary.sigmoid((np.arange(BINS) + 0.5) * (2 * LIMIT / BINS) - LIMIT)
        points = binary.calibration(middles, positives, negatives)
        lengths = _by_length(lambda bucket: (counts[bucket, 1], counts[bucket, 0])) if measured else []
        return figures, {"calibration": points, "auc_by_length": lengths}


class _Numbers:
    """A numeric task's histogram: 2 MiB."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.histogram = kind, numeric.Histogram()

    def add(self, labels: np.ndarray, logits: np.ndarray, buckets: np.ndarray) -> None:
        self.histogram.add(labels, _predictions(self.kind, logits))

    def finish(self, measured: bool) -> tuple[dict[str, float], dict[str, Any]]:
        """Return figures and curves over the rows of all ranks. Collective."""
        total = numeric.Histogram()
        total.counts, total.sums = _reduce(self.histogram.counts), _reduce(self.histogram.sums)
        return total.figures(), _no_curves()


class _Bounded:
    """Keeps histograms, sums and a sample of groups: 7 MiB a task and the sample, however many rows there are."""

    def __init__(self, kinds: Mapping[str, Kind], sample_rows: int) -> None:
        self.kinds = kinds
        self.stores = {task: _Numbers(kind) if kind.numeric else _Probabilities(kind) for task, kind in kinds.items()}
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
            figures, curves[task] = store.finish(measured)
            if self.kinds[task].retrieval:
                figures, curves[task] = _of_ranking(figures, curves[task])
            values |= {f"{task}.{name}": figure for name, figure in figures.items()}
        return (values | self._grouped() if grouped else values), curves

    def _grouped(self) -> dict[str, float]:
        rows = self.sample.settle()
        values = {"gauc_groups_share": 2.0**-self.sample.halvings}
        groups = _gather(rows.groups)
        for t, (task, kind) in enumerate(self.kinds.items()):
            if kind.numeric:
                continue
            logits, labels = _gather(rows.logits[:, t]), _gather(rows.labels[:, t])
            if ranks.is_main():
                known = labels != UNKNOWN
                pair = binary.gauc_and_uauc(labels[known], logits[known], groups[known])
                values[f"{task}.gauc"], values[f"{task}.uauc"] = pair
        return values


class Evaluation:
    """Collects one split's predictions on every rank and turns them into metrics that all ranks agree on.

    Args:
        tasks: the T tasks and their kinds, in the columns' order (see modules.tasks.kinds.kinds).
        memory: `exact` keeps every row, 5 bytes a task and 9 besides (8 a task with numeric ones), and gathers them to
            rank 0. `bounded` needs the same memory for any number of rows: AUC comes from 65,536 bins of the logit
            between -16 and 16, and `<task>.auc_error` bounds its error; log loss, NE and PCOC are exact; GAUC and UAUC
            are exact on a share of the groups, `gauc_groups_share`, picked by a hash of their ids; of a number,
            `<task>.xauc_error` bounds the error of xAUC and the rest is exact.
        sample_rows: largest number of rows, over all ranks, of the groups that `bounded` samples.
    """

    def __init__(
        self,
        tasks: Mapping[str, Kind],
        memory: Literal["exact", "bounded"] = "exact",
        sample_rows: int = SAMPLE_ROWS,
    ) -> None:
        self._label_type = _label_type(list(tasks.values()))
        self._store = _Exact(tasks) if memory == "exact" else _Bounded(tasks, sample_rows)
        self._pending: list[tuple[torch.Tensor | None, ...]] = []
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
        self._pending.append(tuple(None if x is None else x.detach() for x in tensors))
        if logits.device.type == "cpu" or len(self._pending) >= _PENDING:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        columns = [None if x[0] is None else torch.cat(x).cpu() for x in zip(*self._pending, strict=True)]
        self._pending.clear()
        logits, labels, weights, groups, lengths = columns
        real = (weights != 0).numpy()
        labels = labels.float().numpy()[real]
        number = int(real.sum())
        rows = _Rows(
            logits.float().numpy()[real],
            np.where(np.isnan(labels), UNKNOWN, labels).astype(self._label_type),
            np.zeros(number, np.int64) if groups is None else groups.numpy()[real].astype(np.int64),
            _bucket(np.zeros(number) if lengths is None else lengths.numpy()[real]),
        )
        self._store.add(rows, grouped=groups is not None)

    def compute(self) -> dict[str, float]:
        """Return the metrics over the rows of all ranks. Collective: every rank calls it and gets the same figures.

        Returns:
            `rows`, and by binary task `<task>.auc`, `.log_loss`, `.ne`, `.pcoc`, `.positives`; with groups `.gauc`
            and `.uauc`; in bounded memory `.auc_error` and, with groups, `gauc_groups_share`. By numeric task `.xauc`,
            `.mae`, `.rmse` and `.pcoc`; in bounded memory `.xauc_error`. By task of retrieval those of `RANKING`.
            Undefined ones are nan.
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


def _bucket(lengths: np.ndarray) -> np.ndarray:
    return np.searchsorted(LENGTH_EDGES, lengths, side="left").astype(np.int8)
