"""The step and the epoch, on one rank or a thousand.

A run is a function of its recipe: the rows of step k, its learning rate and its random draws depend on k alone, so a
run that was killed goes on from its last checkpoint as if nothing had happened.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from livetrain.configs.errors import BadInput, without_credentials
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.model import set_statistics
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.data.read.catalogue import CATALOGUE
from livetrain.trainers.data.read.lookups import looked_up
from livetrain.trainers.data.read.order import ORDER
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import Statistics
from livetrain.trainers.evaluate import selection
from livetrain.trainers.evaluate.evaluation import EXACT_ROWS, Evaluation
from livetrain.trainers.evaluate.intervals import Bootstrap
from livetrain.trainers.evaluate.retrieval import Retrieval
from livetrain.trainers.observe import prometheus
from livetrain.trainers.observe.weights_and_biases import Tracker
from livetrain.trainers.runtime import ranks, run_folder
from livetrain.trainers.runtime.runlog import RunLog
from livetrain.trainers.runtime.signals import Stopped
from livetrain.trainers.train import (
    checkpoint,
    compiled_dense,
    compiled_layers,
    few_rows,
    ids,
    memory,
    planning,
    pretrained,
    tracking,
    warm_start,
)
from livetrain.trainers.train.feed import SKIPPED, Feed, Meter
from livetrain.trainers.train.loss import Output
from livetrain.trainers.train.probes.expert_use import Utilisation
from livetrain.trainers.train.probes.spectra import Spectra
from livetrain.trainers.train.probes.step_times import Breakdown, Profile
from livetrain.trainers.train.probes.table_use import occupancy
from livetrain.trainers.train.schedule import factor
from livetrain.trainers.train.sharding import shard
from livetrain.trainers.train.stopping import Listener

_TIME = "timestamp"  # a column of this name, if the training split has it, says when its rows happened

Tell = Callable[[str, int, int], None]  # told what an evaluation is at: the batches done, of so many; 0 of 0 if unknown


@dataclass(frozen=True)
class Job:
    """What a worker is handed: the checked recipe and data, and the folder to write to. Small and picklable."""

    recipe: Recipe
    run: Path
    sources: dict[str, Source]  # of an evaluation that of its split alone
    statistics: Statistics | None  # of the training split; None where a checkpoint has them
    test: bool = True  # whether the run ends with the test split; a sweep's trials leave it unread
    track: bool = False  # whether its checkpoints tell which rows changed when, for deltas

    def plan(self, recipe: Recipe, world: int, device: str) -> planning.Plan:
        """Return the plan of the run's tables, see `planning.of_run`; an evaluation keeps none."""
        train = self.sources["train"] if self.statistics is not None else None
        lookups = None if train is None else partial(looked_up, train, self.recipe)
        return planning.of_run(self.run, lookups, recipe, world, device)


class Trainer:
    """One rank's part of a run: `Trainer(job, device).run()`.

    Args:
        job: what to train.
        device: this rank's device. The default process group exists already.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.recipe, self.device = job, job.recipe, device
        self.sharded = shard(self.recipe, device, job.plan)
        compiled_layers.enable(self.sharded.model, device)
        if compiled_dense.wanted(self.recipe, device):
            compiled_dense.enable(self.sharded, self._note)
        if job.track:
            tracking.track(self.sharded)
        self.breakdown = Breakdown(self.sharded)
        self.utilisation = Utilisation(self.sharded.model.dense)
        if job.statistics is not None:
            set_statistics(self.sharded.model, job.statistics.mean, job.statistics.std, job.statistics.quantiles)
            self.sharded.pipeline.combination.begin(job.statistics.rate)
            self.reader = self._reader("train", shuffle=True)
            self.total = self.reader.steps * self.recipe.train.epochs
        self.step = 0
        self.position: dict[str, Any] = {"best_step": None, "waited": 0, "rows": 0, "seconds": 0.0, "workers": []}
        self.left_out: dict[str, int] = {}  # lists cut, by feature, and rows skipped: on this rank, in this attempt
        self.left_out_before: dict[str, int] = {}  # on all ranks, in the attempts before
        self.listener: Listener | None = None  # while a run goes on
        self.tell: Tell | None = None  # of an evaluation alone; what a run is at stands in its log

    def _reader(self, split: str, shuffle: bool) -> Reader:
        return Reader(
            self.job.sources[split],
            self.recipe,
            rank=ranks.rank(),
            world=ranks.world(),
            shuffle=shuffle,
            groups=not shuffle,
            slices=not shuffle and split != CATALOGUE,
            pin=self.device.type == "cuda",
        )

    def _note(self, text: str) -> None:
        self.log.write("note", step=self.step, text=text)

    def run(self) -> dict[str, Any]:
        """Train to the end and return the content of result.json.

        From the run's newest checkpoint if it has one, otherwise from that of train.warm_start, if the recipe names it.

        Raises:
            Stopped: it was told to, and has saved what it had.
        """
        assert self.recipe.name is not None  # a run has one
        self.listener = Listener(self.job.run)
        found = checkpoint.load_latest(self.sharded, self.recipe, self.job.run)
        if found:
            self._check_order(found)
            self.step, self.position = found["step"], found["position"]
            self.sharded.pipeline.combination.step = self.step
            self.left_out_before = self.position["left_out"]
        self.position["workers"] = joined(self.position.get("workers", []), self.step, ranks.world())
        begun = None if found else warm_start.find(self.recipe)
        taken = warm_start.load(self.sharded, self.recipe, begun) if begun is not None else None
        told = {}
        if not found:
            pretrained.fill(self.sharded, self.recipe, besides=taken.tables if taken else ())
            told = ids.assign(self.sharded, self.recipe, self.job.sources["train"])
            if taken:
                taken.admitted(self.sharded)
        self.profile = Profile(self.recipe, self.job.run, self.device, self.total)
        self.log = RunLog(self.job.run, self.step)
        if found:
            self.log.write("note", step=self.step, text=f"resumed at step {self.step}")
        if begun is not None:
            self.log.write("note", step=self.step, text=f"begins with {begun}")
        computing = torch.get_num_threads()
        self.log.write(
            "note", step=self.step, text=f"{computing} thread{'s' if computing > 1 else ''} per rank compute on CPUs"
        )
        self.log.write("note", step=self.step, text=f"tables: {planning.in_words(self.sharded.plan())}")
        for text in ids.words(self.sharded, told):
            self.log.write("note", step=self.step, text=text)
        if (few := few_rows.advice(self.recipe, ranks.world(), self.device.type)) is not None:
            self.log.write("note", step=self.step, text=few)
        tracker = Tracker(self.recipe, self.job.run, lambda text: self.log.write("note", step=self.step, text=text))
        assert self.job.statistics is not None  # who trains has looked at the data
        trained = trained_on(self.job.sources["train"], self.job.statistics.rows, self.recipe)
        with tracker, checkpoint.Saver(self.sharded, self.recipe, self.job.run, trained) as self.saver:
            self.log.listeners += [tracker.line, *prometheus.listeners(self.recipe.name)]
            self._train()
            self.saver.wait()
            return self._finish()

    def _train(self) -> None:
        if self.position.pop("due", False):  # stopped within an evaluation
            self._validate()
            self._save()
        batches: Generator[Batch, None, None] | None = None
        epoch = -1
        try:
            while self.step < self.total and not self._out_of_patience():
                if batches is None or self.step // self.reader.steps != epoch:
                    epoch = self.step // self.reader.steps
                    batches = self.reader.batches(epoch, self.step % self.reader.steps)
                self._advance(batches, self._next_evaluation())
                self._validate()
                self._save()
        finally:
            if batches is not None:
                batches.close()

    def _out_of_patience(self) -> bool:
        patience = self.recipe.train.patience
        return patience is not None and self.position["waited"] >= patience

    def _check_order(self, found: dict[str, Any]) -> None:
        """Raise BadInput where a checkpoint's epoch began in another order: some rows would be seen twice, or never."""
        if found.get("order") != ORDER and found["step"] % self.reader.steps:
            raise BadInput(
                f"{self.job.run}: its checkpoint of step {found['step']} was written within an epoch by a livetrain "
                "that read rows in another order; finish the run with that version, or begin one of another name"
            )

    def _next_evaluation(self) -> int:
        """Return the next step at which valid/ is evaluated: evenly within an epoch, and at its end."""
        steps = self.reader.steps
        every = math.ceil(steps * self.recipe.train.evaluate_every)
        epoch, within = divmod(self.step, steps)
        return epoch * steps + min((within // every + 1) * every, steps)

    def _advance(self, batches: Iterator[Batch], stop: int) -> None:
        """Train from the present step up to `stop`, within one epoch."""
        pipeline, train = self.sharded.pipeline, self.recipe.train
        self.sharded.module.train()
        feed = Feed(self.breakdown.waiting(batches), stop - self.step, self.reader)
        self.meter = Meter()
        while self.step < stop:
            self.sharded.set_rates(self._factor())
            ranks.seed_step(train.seed, self.step)
            self.profile.before(self.step + 1)
            logged = (self.step + 1) % train.log_every == 0 or self.step + 1 == stop
            with self.breakdown.step(), self.utilisation.watching(logged):
                output = pipeline.progress(feed)
            self.meter.add(output)
            self.left_out = feed.left_out()
            self.step += 1
            if logged:
                self._log(feed.waited, self.utilisation.read(output.batch.weights))
            if self.step < stop and self.listener is not None and self.listener.told():
                self._stop()
            if train.checkpoint_every and self.step % train.checkpoint_every == 0 and self.step < stop:
                self._save()
        self.profile.end()
        self.sharded.check_pipelined()

    def _factor(self, ago: int = 0) -> float:
        """Return what all learning rates are multiplied by at this step, or at one so many steps ago."""
        return factor(self.step - ago, self.total, self.recipe)

    def _epoch(self) -> float:
        return self.step / self.reader.steps

    def _log(self, waited: float, gates: dict[str, float]) -> None:
        figures = self.meter.read(waited)
        losses, rows, seconds = (figures.pop(key) for key in ("losses", "rows", "seconds"))
        tasks = self.recipe.tasks
        loss = sum(task.weight * part for task, part in zip(tasks.values(), losses, strict=True))
        if not math.isfinite(loss):
            raise BadInput(
                f"optimizers: the loss is {loss} by step {self.step}; lower optimizers.sparse.lr or "
                "optimizers.dense.lr, or set optimizers.dense.clip_norm"
            )
        self.position["rows"] += rows
        self.position["seconds"] += seconds
        by_task = {f"{task}.loss": part for task, part in zip(tasks, losses, strict=True)} if len(tasks) > 1 else {}
        self.log.write(
            "train",
            step=self.step,
            steps=self.total,
            epoch=self._epoch(),
            loss=loss,
            lr=self.recipe.optimizers.dense.lr * self._factor(1),
            **by_task,
            **gates,
            **figures,
            **self.sharded.pipeline.combination.monitor.read(),
            **self.breakdown.read(seconds),
        )

    def evaluate(self, split: str, draws: int) -> tuple[dict[str, float], Evaluation]:
        """Return the metrics of the present weights on a split, and the evaluation that found them. Collective.

        Args:
            split: which.
            draws: of the bootstrap for intervals; 0 for none.
        """
        asked = self.recipe.evaluate
        bootstrap = Bootstrap(draws)
        reader = self._reader(split, shuffle=False)
        evaluation = Evaluation(
            kinds(self.recipe.tasks, asked.top),
            memory=asked.memory,
            rows=reader.steps * self.recipe.data.batch_size * (self.recipe.data.candidates or 1),
            slices=list(asked.slices),
            bootstrap=bootstrap,
        )
        sequences = {n: f.limit for n, f in self.recipe.features.items() if f.form == "sequence"}
        history = max(sequences, key=sequences.__getitem__, default=None)
        retrieval = Retrieval(self.sharded.model.dense.network, self.recipe, bootstrap)
        self.sharded.module.eval()
        with self.sharded.averaged(), torch.no_grad(), retrieval.watching():
            for output in self._scored(split, reader):
                batch = output.batch
                assert output.logits is not None  # the module is in evaluation mode
                lengths = batch.lists(history).lengths() if history else None
                evaluation.update(
                    output.logits, batch.labels, batch.weights, batch.groups, lengths, batch.slices, batch.rows
                )
                retrieval.add(batch)
            for output in self._scored(CATALOGUE, self._reader(CATALOGUE, shuffle=False)) if asked.catalogue else ():
                retrieval.add(output.batch, listed=True)
        self._tell("computing the metrics", 0, 0)
        metrics = evaluation.compute() | retrieval.compute()
        evaluation.draws.values |= retrieval.draws
        return metrics, evaluation

    def _scored(self, split: str, reader: Reader) -> Iterator[Output]:
        """Score the batches of a split, or of the catalogue, one after the other; raise Stopped where the run is to."""
        batches = reader.batches(0)
        feed = Feed(batches, reader.steps, reader)
        for done in range(reader.steps):
            self._tell(f"scoring {split}", done, reader.steps)
            if self.listener is not None and self.listener.told():
                raise Stopped
            yield self.sharded.pipeline.progress(feed)
        batches.close()

    def _tell(self, what: str, done: int, of: int) -> None:
        if self.tell is not None:
            self.tell(what, done, of)
        elif self.listener is not None and not done:
            self.log.write("stage", step=self.step, text=what)

    def _validate(self) -> None:
        try:
            metrics, found = self.evaluate("valid", draws=0)
        except Stopped:
            self.position["due"] = True
            self._stop()
        self._write("valid", self.step, metrics, found.bounded)
        for text in ids.words(self.sharded, ids.told_online(self.sharded)):
            self.log.write("note", step=self.step, text=text)
        position, best = self.position, self.position.get("valid")
        by = selection.picks(self.recipe, metrics)
        if best is None and by != self.recipe.select():
            self.log.write("note", step=self.step, text=self._told(by))
        if selection.is_better(self.recipe, metrics, best):
            position |= {"best_step": self.step, "waited": 0, "valid": metrics}
        else:
            position["waited"] += 1

    def _write(self, split: str, step: int, metrics: dict[str, float], bounded: bool) -> None:
        self.log.write("eval", step=step, split=split, **metrics)
        for text in remarks(self.recipe, split, metrics, bounded):
            self.log.write("note", step=step, text=text)

    def _told(self, by: str | None) -> str:
        """Say that the metric that the recipe selects by is undefined, and what picks the best checkpoint instead."""
        select = self.recipe.select()
        instead = f"{by} picks the best checkpoint" if by else "the last checkpoint counts as the best"
        return f"valid: {select} is undefined, for it needs {selection.metric_of(self.recipe, select).needs}; {instead}"

    def _save(self) -> None:
        self.position["left_out"] = self._left_out()
        self.saver.save(self.step, self.position)

    def _stop(self) -> NoReturn:
        self._save()
        self.saver.wait()
        self.log.write("note", step=self.step, text=f"stopped at step {self.step} of {self.total}, and saved")
        raise Stopped

    def _left_out(self) -> dict[str, int]:
        total = Counter(self.left_out_before)
        for part in ranks.gather(self.left_out):
            total.update(part)
        return dict(total)

    def _test(self, best: int) -> tuple[dict[str, float], dict[str, Any]]:
        self.log.write("note", step=self.step, text=f"evaluating test with the checkpoint of step {best}")
        test, found = self.evaluate("test", self.recipe.evaluate.bootstrap)
        if ranks.is_main():
            found.draws.write(self.job.run)
        self._write("test", best, test, found.bounded)
        return test, found.curves()

    def _finish(self) -> dict[str, Any]:
        best = self.position["best_step"]
        if best != self.step:
            try:
                checkpoint.load(self.sharded, self.recipe, run_folder.checkpoint(self.job.run, best))
            except run_folder.Damaged as error:
                raise BadInput(
                    f"{error}; it is the best of its run, which cannot end without it: put it back from a copy, or "
                    "remove the run's checkpoints and train again"
                ) from None
        spectra = Spectra(self.sharded.model.dense.network)
        with spectra.watching():
            test, curves = self._test(best) if self.job.test else ({}, {})
        cut = dict(self.position["left_out"])
        skipped = cut.pop(SKIPPED)
        return {
            "step": self.step,
            "best_step": best,
            "selected": self.recipe.select(),
            "best_by": selection.picks(self.recipe, self.position["valid"]),
            **{f"valid.{k}": v for k, v in self.position["valid"].items()},
            **{f"test.{k}": v for k, v in test.items()},
            "rows_per_s": self.position["rows"] / max(self.position["seconds"], 1e-9),
            "batch_size": self.recipe.data.batch_size,
            "workers": ranks.world(),
            "workers_by_step": self.position["workers"],
            "device": self.device.type,
            "memory": _most(ranks.gather(memory.peak())),
            "plan": self.sharded.plan(),
            "tables": occupancy(self.sharded, self.recipe, self.job.sources["train"]),
            "cut": cut,
            "skipped_rows": skipped,
            "curves": curves,
            "spectra": spectra.read(),
        }


def joined(before: list[dict[str, int]], step: int, workers: int) -> list[dict[str, int]]:
    """Return how many workers trained which steps of a run, in the order of the steps.

    Args:
        before: of the attempts before.
        step: at which this attempt goes on; what others trained beyond is lost.
        workers: of this attempt.

    Example:
        >>> joined([{"from_step": 0, "workers": 4}], step=120, workers=3)
        [{'from_step': 0, 'workers': 4}, {'from_step': 120, 'workers': 3}]
    """
    kept = [part for part in before if part["from_step"] < step]
    same = kept and kept[-1]["workers"] == workers
    return kept if same else [*kept, {"from_step": step, "workers": workers}]


def trained_on(train: Source, rows: int, recipe: Recipe) -> dict[str, Any]:
    """Return what a checkpoint tells of the training split, which need not be there when the model is used.

    Args:
        train: the split.
        rows: that it has; of requests their candidates.
        recipe: the run.
    """
    window = train.id_range(_TIME)
    return {
        "order": ORDER,
        "ids": train.id_kinds(recipe),
        "training": {
            "data": without_credentials(recipe.data.path),
            "rows": rows,
            "window": None if window is None else list(window),
            "window_column": _TIME,
        },
    }


def remarks(recipe: Recipe, split: str, metrics: dict[str, float], bounded: bool) -> list[str]:
    """Return what a reader of a split's metrics is told besides: slices without a row, and that figures are bounded.

    Args:
        recipe: the run.
        split: which.
        metrics: its own.
        bounded: the evaluation's memory was.
    """
    found = [
        f"{split}: no row is in slice {name}, {condition}, so it has no metrics there"
        for name, condition in recipe.evaluate.slices.items()
        if not metrics[f"{name}.rows"]
    ]
    if bounded and recipe.evaluate.memory == "auto":
        found.append(
            f"{split}: of more than {EXACT_ROWS:,} rows, AUC is that of bins and figures of groups are those of a "
            "share of the groups (evaluate.memory: auto)"
        )
    return found


def _most(peaks: list[dict[str, int]]) -> dict[str, int]:
    """Return the most bytes of any rank, by kind of memory."""
    return {kind: max(peak[kind] for peak in peaks) for kind in peaks[0]}
