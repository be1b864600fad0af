"""A training that never ends: increments of a stream, each judged before it is learned.

What is learned of an increment depends on it and on the state before it alone. So a line that was killed goes on from
its last checkpoint, which says up to when it has learned, and comes to the same weights.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read import minutes as stream
from livetrain.trainers.data.read import negatives
from livetrain.trainers.data.read.increment import opened
from livetrain.trainers.data.read.minutes import Minute
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan
from livetrain.trainers.evaluate.drift import Charts
from livetrain.trainers.observe import prometheus
from livetrain.trainers.runtime import ranks, run_folder
from livetrain.trainers.runtime.runlog import RunLog
from livetrain.trainers.runtime.signals import Stopped
from livetrain.trainers.train import checkpoint, compatible, ids
from livetrain.trainers.train.loop import Job, Trainer, joined
from livetrain.trainers.train.probes.step_times import Profile
from livetrain.trainers.train.schedule import ending
from livetrain.trainers.train.stopping import Listener

STREAM = "stream"  # the split's name, of an increment
_NEW: dict[str, Any] = {"best_step": None, "waited": 0, "rows": 0, "seconds": 0.0, "workers": []}


@dataclass(frozen=True)
class Learned:
    """What came of an increment, the same on every rank.

    Attributes:
        figures: of the model before it, as an evaluation has them; none of an increment without rows.
        alarms: the figures that raised one.
        open: whether the model after it may be published.
        seconds: that it took.
    """

    figures: dict[str, float]
    alarms: list[str]
    open: bool
    seconds: float


class Line(Trainer):
    """What is learned from one night on. A context manager; every call is collective.

    Args:
        job: the line's recipe and folder; its sources and statistics are the night's.
        device: this rank's.
        night: the checkpoint that it begins with.
        since: s since 1970, up to which that has learned.
        listener: told when to stop.

    Attributes:
        taken: s since 1970, up to which it has learned.
        charts: what its figures are compared with.
    """

    def __init__(self, job: Job, device: torch.device, night: Path, since: int, listener: Listener) -> None:
        super().__init__(job, device)
        self._stack = contextlib.ExitStack()
        self._rate = ending(self.recipe)
        self.listener = listener
        found = checkpoint.load_latest(self.sharded, self.recipe, job.run)
        self._resumed = found is not None
        begun = found or checkpoint.load(self.sharded, self.recipe, night)
        self.ids = begun.get("ids", {})
        self.step = begun["step"]
        self.position = begun["position"] if found else {**_NEW, "night": night.parents[1].name, "taken": since}
        self.position |= {} if found else {"increments": 0, "left_out": {}, "shed": {"minutes": 0, "rows": 0}}
        self.position["workers"] = joined(self.position["workers"], self.step, ranks.world())
        self.left_out_before = self.position["left_out"]
        self.sharded.pipeline.combination.step = self.step
        self.charts = Charts(self.recipe, self.position.get("charts"), self.position.get("alarms", ()))
        self._trained = {"ids": self.ids, "order": begun.get("order"), "training": begun.get("training")}

    def __enter__(self) -> "Line":
        self.profile = Profile(self.recipe, self.job.run, self.device, self.step)
        self.log = RunLog(self.job.run, self.step)
        self.log.listeners += prometheus.listeners(self.recipe.name or "")
        self.saver = self._stack.enter_context(checkpoint.Saver(self.sharded, self.recipe, self.job.run, self._trained))
        how = "goes on from" if self._resumed else "begins at"
        self.log.write("note", step=self.step, text=f"{self.recipe.name} {how} {stream.name_of(self.taken)}")
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def taken(self) -> int:
        return self.position["taken"]

    def take(self, source: Source | None, end: int) -> Learned:
        """Judge the model on an increment, then learn it.

        Args:
            source: its samples; None where there are none.
            end: s since 1970, up to which it goes.

        Raises:
            Stopped: it was told to; then nothing of the increment counts.
            BadInput: the loss is no number any more.
        """
        started, figures, alarms, gate = time.perf_counter(), dict[str, float](), list[str](), True
        if source is not None:
            self.job.sources[STREAM] = source
            figures, _ = self.evaluate(STREAM, draws=0)
            alarms = self.charts.take(figures)
            gate = not any(name in alarms for name in self.gate)
            told = ids.assign(self.sharded, self.recipe, source, end // 60)  # judged before they were let in
            self.reader = self._reader(STREAM, shuffle=True)
            self.total = self.step + self.reader.steps
            batches = self.reader.batches(0)
            with contextlib.closing(batches):
                self._advance(batches, self.total)
            for text in ids.words(self.sharded, told | ids.told_online(self.sharded)):
                self.log.write("note", step=self.step, text=text)
            self.left_out_before, self.left_out = self._left_out(), {}
            self.position |= {"increments": self.position["increments"] + 1, "open": gate, "alarms": alarms}
            self.position |= {"figures": {name: figures.get(name) for name in self.charts.kept}}
        self.position |= {"taken": end, "charts": self.charts.kept}
        return Learned(figures, alarms, gate, time.perf_counter() - started)

    @property
    def gate(self) -> tuple[str, str]:
        """The figures that have to raise no alarm for the model to be published: the selected one, and its PCOC."""
        select = self.recipe.select()
        return select, f"{select.rpartition('.')[0]}.pcoc"

    def leave_out(self, end: int, minutes: int, rows: int) -> None:
        """Take minutes for learned that are not: as the training has fallen behind, or as they are damaged."""
        shed = self.position["shed"]
        self.position["shed"] = {"minutes": shed["minutes"] + minutes, "rows": shed["rows"] + rows}
        self.position["taken"] = end

    def save(self) -> None:
        """Begin to write a checkpoint, which says up to when all is learned, and with it the weights."""
        self.position["best_step"] = self.step
        self._save()

    def _factor(self, ago: int = 0) -> float:
        return self._rate

    def _epoch(self) -> float:
        return float(self.position["increments"])

    def _stop(self) -> NoReturn:
        raise Stopped


def checked(recipe: Recipe, path: str, minutes: list[Minute], trained: dict[str, str]) -> Source | None:
    """Return the samples of some minutes, once their labels and numbers are known to be such; None without a row.

    Args:
        recipe: the line's.
        path: the stream's folder.
        minutes: whole ones.
        trained: of each feature what its ids were in training.

    Raises:
        BadInput: what a run is refused for too.
    """
    if not any(minute.rows for minute in minutes):
        return None
    source = opened(recipe, path, [minute for minute in minutes if minute.rows])
    compatible.check_ids(trained, source.id_kinds(recipe), recipe, source.folder)
    scan(source, recipe)
    negatives.count(source, recipe, lambda text: None)
    return source


def newest(line: Path) -> dict[str, Any] | None:
    """Return the manifest of a line's newest checkpoint, or None."""
    found = run_folder.committed(line)
    return run_folder.content(found[-1]) if found else None
