"""Metrics of a split that many ranks evaluate together."""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from livetrain.modules.metrics.lengths import bucket
from livetrain.modules.tasks.kind import TaskKind
from livetrain.trainers.evaluate.draws import Draws, fingerprint
from livetrain.trainers.evaluate.gather import _gather, _reduce
from livetrain.trainers.evaluate.intervals import Bootstrap, intervals
from livetrain.trainers.evaluate.rows import UNKNOWN, GroupSample, Rows, inside, label_type
from livetrain.trainers.runtime import ranks

SAMPLE_ROWS = 4_000_000
EXACT_ROWS = 20_000_000  # of a split: rank 0 takes 3 GB for them, see docs/guide/evaluating.md
_PENDING = 64  # updates kept on a GPU before one copy to the host, so that not every step waits for the GPU
_OPTIONAL = ("groups", "lengths", "slices", "numbers")  # what an evaluation may be given besides
NO_BOOTSTRAP = Bootstrap(0)


class _Store:
    """What is kept of the rows on every rank, and what rank 0 makes of it.

    Args:
        kinds: the T tasks' kinds.
        slices: names of the slices.
        bootstrap: how intervals are drawn.
    """

    def __init__(self, kinds: Mapping[str, TaskKind], slices: Sequence[str], bootstrap: Bootstrap) -> None:
        self.kinds, self.bootstrap = kinds, bootstrap
        self.parts = ["", *(f"{name}." for name in slices)]  # of the split: how their figures' names begin
        self.counts = np.zeros(len(self.parts), np.int64)  # rows of each
        self.draws = Draws()  # rank 0's are whole

    def add(self, rows: Rows, grouped: bool) -> None:
        self.counts += [len(rows), *(inside(rows.slices, part).sum() for part in range(1, len(self.parts)))]

    def finish(self, grouped: bool, measured: bool) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the figures and curves, of which rank 0's are whole. Collective."""
        raise NotImplementedError

    def _slices(self, rows: Rows) -> np.ndarray:
        """Return all ranks' rows' slices on rank 0. Collective."""
        return _gather(rows.slices) if len(self.parts) > 1 else np.zeros(0, np.int8)

    def _counted(self) -> dict[str, float]:
        """Return how many rows the split and each slice have, and the slices' shares."""
        counts = _reduce(self.counts).tolist()
        whole = {"rows": float(counts[0])}
        for name, count in zip(self.parts[1:], counts[1:], strict=True):
            whole |= {f"{name}rows": float(count), f"{name}share": count / counts[0] if counts[0] else float("nan")}
        return whole

    def _draw(
        self,
        part: int,
        task: str,
        figures: dict[str, float],
        rows: tuple[np.ndarray, np.ndarray, np.ndarray],
        grouped: bool,
        share: float = 1.0,
    ) -> dict[str, float]:
        """Keep what is drawn of a task's rows in a part, and return the intervals.

        Args:
            part: of the split.
            task: whose.
            figures: as they are reported.
            rows: (n,) labels, logits, and what is drawn together.
            grouped: whether there are figures of groups.
            share: of all groups, that these rows are of.
        """
        kind, of, (labels, logits, groups) = self.kinds[task], f"{self.parts[part]}{task}", rows
        drawn = self.bootstrap.drawn(figures, groups, partial(kind.redrawn, labels, logits, grouped=grouped))
        if drawn:
            self.draws.rows[of] = fingerprint(groups, labels)
        drawn = {name: _nearer(name, values, figures, kind, share) for name, values in drawn.items()}
        self.draws.values |= {f"{of}.{name}": values for name, values in drawn.items()}
        return intervals(drawn)

    def _named(self, part: int, task: str, figures: dict[str, float]) -> dict[str, float]:
        """Return a task's figures under its name, the leading one first (see modules.tasks.registry.leading)."""
        names = sorted(figures, key=lambda name: name != self.kinds[task].leading)
        return {f"{self.parts[part]}{task}.{name}": figures[name] for name in names}


class _Exact(_Store):
    """Keeps every row: 5 bytes per task, 8 with numeric ones, and 10 besides, 17 with slices. Rank 0 gets them all."""

    def __init__(self, kinds: Mapping[str, TaskKind], slices: Sequence[str], bootstrap: Bootstrap) -> None:
        super().__init__(kinds, slices, bootstrap)
        self.kept: list[Rows] = []

    def add(self, rows: Rows, grouped: bool) -> None:
        super().add(rows, grouped)
        self.kept.append(rows)

    def finish(self, grouped: bool, measured: bool) -> tuple[dict[str, float], dict[str, Any]]:
        rows = Rows.concat(self.kept, list(self.kinds.values()))
        self.kept = [rows]
        groups, buckets, slices = _gather(rows.groups), _gather(rows.buckets), self._slices(rows)
        found: list[dict[str, float]] = [self._counted(), *({} for _ in self.parts[1:])]
        curves: dict[str, Any] = {}
        for t, (task, kind) in enumerate(self.kinds.items()):
            logits, labels = _gather(rows.logits[:, t]), _gather(rows.labels[:, t])
            if not ranks.is_main():
                continue
            for part in range(len(self.parts)):
                known = (labels != UNKNOWN) & inside(slices, part)
                own = (labels[known], logits[known])
                figures = kind.figures(*own, groups[known] if grouped else None)
                figures |= self._draw(part, task, figures, (*own, groups[known]), grouped)
                found[part] |= self._named(part, task, figures)
                if not part:
                    curves[task] = kind.curves(*own, buckets[known] if measured else None)
        return {name: value for part in found for name, value in part.items()}, curves


class _Bounded(_Store):
    """Keeps histograms and sums, 7 MiB per task and part, and a sample of groups, for any number of rows."""

    def __init__(
        self, kinds: Mapping[str, TaskKind], slices: Sequence[str], bootstrap: Bootstrap, sample_rows: int
    ) -> None:
        super().__init__(kinds, slices, bootstrap)
        self.stores = {(part, task): kind.counts() for part in range(len(self.parts)) for task, kind in kinds.items()}
        self.sample = GroupSample(list(kinds.values()), sample_rows)

    def add(self, rows: Rows, grouped: bool) -> None:
        super().add(rows, grouped)
        places = {task: t for t, task in enumerate(self.kinds)}
        for (part, task), store in self.stores.items():
            t = places[task]
            known = (rows.labels[:, t] != UNKNOWN) & inside(rows.slices, part)
            store.add(rows.labels[known, t], rows.logits[known, t], rows.buckets[known])
        if grouped or self.bootstrap.draws:
            self.sample.add(rows)

    def finish(self, grouped: bool, measured: bool) -> tuple[dict[str, float], dict[str, Any]]:
        values, curves = self._counted(), {}
        figures: dict[tuple[int, str], dict[str, float]] = {}
        for (part, task), store in self.stores.items():
            total = copy(store)
            total.counts, total.sums = _reduce(store.counts), _reduce(store.sums)
            figures[part, task] = total.figures()
            if not part:
                curves[task] = total.curves(measured)
        if grouped or self.bootstrap.draws:
            self._sampled(figures, grouped)
            share = 2.0**-self.sample.halvings
            values |= {"gauc_groups_share": share} if grouped else {}
        for (part, task), found in figures.items():
            values |= self._named(part, task, found)
        return values, curves

    def _sampled(self, figures: dict[tuple[int, str], dict[str, float]], grouped: bool) -> None:
        """Add what takes all rows of a group: the figures of groups, and intervals."""
        rows = self.sample.settle()
        share = 2.0**-self.sample.halvings
        groups, slices = _gather(rows.groups), self._slices(rows)
        for t, (task, kind) in enumerate(self.kinds.items()):
            logits, labels = _gather(rows.logits[:, t]), _gather(rows.labels[:, t])
            if not ranks.is_main():
                continue
            for part in range(len(self.parts)):
                known = (labels != UNKNOWN) & inside(slices, part)
                own, of = (labels[known], logits[known]), figures[part, task]
                of |= kind.grouped(*own, groups[known]) if grouped else {}
                of |= self._draw(part, task, of, (*own, groups[known]), grouped, share)


def _nearer(metric: str, drawn: np.ndarray, figures: Mapping[str, float], kind: TaskKind, share: float) -> np.ndarray:
    """Return what a share of the groups has drawn, for a figure that all rows gave.

    A deviation falls with the square root of the number of groups. Figures of groups are those of the share itself.
    """
    return drawn if kind.metrics[metric].grouped else figures[metric] + math.sqrt(share) * (drawn - figures[metric])


class Evaluation:
    """Collects one split's predictions on every rank and turns them into metrics that all ranks agree on.

    Args:
        tasks: the T tasks and their kinds, in the columns' order (see modules.tasks.registry.kinds).
        memory: `exact` keeps every row, 5 bytes per task and 10 besides (8 per task with numeric ones), and gathers
            them to rank 0. `bounded` needs the same memory for any number of rows: AUC comes from 65,536 bins of the
            logit between -16 and 16, and `<task>.auc_error` bounds its error; log loss, NE and PCOC are exact; GAUC,
            UAUC and metrics of lists are exact on a share of the groups, `gauc_groups_share`, picked by a hash of their
            ids, and intervals are drawn from it; of a number, `<task>.xauc_error` bounds the error of xAUC and the rest
            is exact.
        rows: of the split, over all ranks, padding included: `auto` is `exact` up to `EXACT_ROWS`, `bounded` above.
        sample_rows: largest number of rows, over all ranks, of the groups that `bounded` samples.
        slices: names of the parts of the split that have figures of their own besides.
        bootstrap: how intervals are drawn; by default none are.

    Attributes:
        bounded: whether memory is.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskKind],
        memory: Literal["auto", "exact", "bounded"] = "exact",
        rows: int = 0,
        sample_rows: int = SAMPLE_ROWS,
        slices: Sequence[str] = (),
        bootstrap: Bootstrap = NO_BOOTSTRAP,
    ) -> None:
        self._label_type = label_type(list(tasks.values()))
        self.bounded = rows > EXACT_ROWS if memory == "auto" else memory == "bounded"
        self._store: _Store
        if not self.bounded:
            self._store = _Exact(tasks, slices, bootstrap)
        else:
            self._store = _Bounded(tasks, slices, bootstrap, sample_rows)
        self._pending: list[dict[str, torch.Tensor]] = []
        self._given: set[str] | None = None  # of _OPTIONAL
        self._curves: dict[str, Any] | None = None

    def update(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        groups: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        slices: torch.Tensor | None = None,
        numbers: torch.Tensor | None = None,
    ) -> None:
        """Add a batch of this rank. On a GPU the host does not wait, but for a copy every 64 batches.

        Args:
            logits: (B, T), of which the kinds make the predictions.
            labels: (B, T) as the tasks' kinds have them; nan = unknown, the row does not count for that task.
            weights: (B,) 0 drops the row as padding; any other weight counts it once.
            groups: (B,) integer group of each row, for what is measured within groups.
            lengths: (B,) history length of each row, for AUC by length.
            slices: (B,) int64, bit i: the row is in the i-th slice.
            numbers: (B,) int64 number of each row, of which intervals are drawn where there are no groups.

        Raises:
            ValueError: what may be left out came in some updates only.
        """
        tensors = {"logits": logits, "labels": labels, "weights": weights, "groups": groups, "lengths": lengths}
        tensors |= {"slices": slices, "numbers": numbers}
        batch = {name: x.detach() for name, x in tensors.items() if x is not None}
        given = set(batch) & set(_OPTIONAL)
        if self._given not in (None, given):
            raise ValueError(f"{', '.join(_OPTIONAL)} belong in every update of an evaluation or in none")
        self._given = given
        self._pending.append(batch)
        if logits.device.type == "cpu" or len(self._pending) >= _PENDING:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        columns = {name: torch.cat([batch[name] for batch in self._pending]).cpu() for name in self._pending[0]}
        self._pending.clear()
        real = columns["weights"].ne(0).numpy()
        labels = columns["labels"].float().numpy()[real]
        none = np.zeros(int(real.sum()), np.int64)
        given = {name: columns[name].numpy()[real].astype(np.int64) for name in _OPTIONAL if name in columns}
        rows = Rows(
            columns["logits"].float().numpy()[real],
            np.where(np.isnan(labels), UNKNOWN, labels).astype(self._label_type),
            given.get("groups", given.get("numbers", none)),
            bucket(given.get("lengths", none)),
            given.get("slices", none.astype(np.int8)),
        )
        self._store.add(rows, grouped="groups" in given)

    def compute(self) -> dict[str, float]:
        """Return the metrics over the rows of all ranks. Collective: every rank calls it and gets the same figures.

        Returns:
            `rows`, and by task `<task>.<metric>` of its kind's `metrics`: those that are `grouped` with groups, and
            those that bound an error in bounded memory, then with groups also `gauc_groups_share`. With a bootstrap
            `<task>.<metric>_low` and `_high` are the ends of intervals. Undefined ones are nan. Of a slice the same
            as `<slice>.<task>.<metric>`, and `<slice>.rows` and `<slice>.share`, that of all rows.
        """
        self._flush()
        # A rank without rows has not seen what is given.
        given = np.array([name in (self._given or ()) for name in ("groups", "lengths")], np.int64)
        grouped, measured = (bool(x) for x in _reduce(given, dist.ReduceOp.MAX))
        values, self._curves = ranks.from_main(self._store.finish(grouped, measured))
        return values

    @property
    def draws(self) -> Draws:
        """What `compute` has drawn for its intervals: whole on rank 0, where alone it is of use."""
        return self._store.draws

    def curves(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Return what `compute` found to plot, the same on every rank and ready for JSON.

        Returns:
            By task, `calibration`: points of `mean_p`, `mean_y`, `count` in bins of nearly equal counts (in bounded
            memory a row's p is known to 6e-5), and `auc_by_length`: `length`, `auc`, `rows`, `positives` of each
            bucket of history lengths with both classes, empty when no lengths were given.

        Raises:
            RuntimeError: `compute` has not run.
        """
        if self._curves is None:
            raise RuntimeError("curves are known after compute()")
        return self._curves
