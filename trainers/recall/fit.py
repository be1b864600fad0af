"""A run of a model that is fitted: one fit in the place of steps, and the same run folder.

<run>/checkpoints/step-00000001/  manifest.json (last), and a file per array of what was learned
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import Recipe, WarmStart
from livetrain.modules.recall.fitted import Fitted, Rows, State, fitted
from livetrain.modules.recall.inverted import Inverted
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.evaluate import selection
from livetrain.trainers.evaluate.evaluation import Evaluation
from livetrain.trainers.export.inverted import retriever, state_in
from livetrain.trainers.observe.weights_and_biases import Tracker
from livetrain.trainers.recall.measure import measure
from livetrain.trainers.recall.rows import rows_of
from livetrain.trainers.runtime import arrays, manifest, run_folder, runlog
from livetrain.trainers.runtime.runlog import RunLog
from livetrain.trainers.train import compatible, memory
from livetrain.trainers.train.loop import Job, remarks, trained_on

STEP = 1  # that a fit counts as
_MEND = "fit it anew, or begin with another run"


def check_start(recipe: Recipe, path: Path) -> str:
    """Return in words what a fit begins with.

    Args:
        recipe: the run.
        path: the checkpoint that train.warm_start names.

    Raises:
        BadInput: the model's kind begins with nothing, or that checkpoint was fitted otherwise.
    """
    model, start = fitted(recipe), recipe.train.warm_start
    assert model is not None
    assert start is not None
    if not model.incremental:
        raise BadInput(
            f"train.warm_start: '{recipe.model.kind}', as this recipe has it, is fitted anew from its days and begins "
            "with nothing; leave it out"
        )
    if start != WarmStart(run=start.run):
        raise BadInput("train.warm_start: a fit takes the whole of what an earlier one learned; name its run alone")
    try:
        compatible.check_same(path, recipe, resume=False, mend=_MEND)
    except BadInput as error:
        raise type(error)(f"train.warm_start: {error}") from None
    return f"begins with {path}"


class Run:
    """A run: `Run(job).finish()` fits, evaluates and returns the content of result.json.

    A run that was killed once its fit was written goes on with that.

    Args:
        job: what to fit.
        begun: the checkpoint that it begins with, if it names one.
    """

    def __init__(self, job: Job, begun: Path | None) -> None:
        self.job, self.recipe, self._begun = job, job.recipe, begun
        model = fitted(job.recipe)
        assert model is not None  # the recipe's model is one that is fitted
        self.model: Fitted = model

    def finish(self) -> dict[str, Any]:
        """Fit, write, evaluate, and return what result.json holds."""
        found, started = run_folder.committed(self.job.run), time.perf_counter()
        self.log = RunLog(self.job.run, STEP if found else 0)
        tracker = Tracker(self.recipe, self.job.run, lambda text: self.log.write("note", step=STEP, text=text))
        with tracker:
            self.log.listeners.append(tracker.line)
            position = run_folder.content(found[-1])["position"] if found else self._fit(started)
            learned = retriever(self.recipe, run_folder.checkpoint(self.job.run, STEP))
            return self._result(learned, position)

    def _fit(self, started: float) -> dict[str, Any]:
        """Fit, evaluate valid/, and write the checkpoint; return its position."""
        before = None
        if self._begun is not None:
            before = state_in(self._begun)
            self.log.write("note", step=0, text=f"begins with {self._begun}")
        self.log.write("stage", step=0, text="fitting")
        assert self.job.statistics is not None  # who fits has looked at the data
        rows = self.job.statistics.rows
        read = [self.model.key, *self.model.features]
        parts = _Read(rows_of(self.job.sources["train"], read, self.recipe), self.model.key, self.recipe)
        state = self.model.fit(iter(parts), before)
        for text in self.model.notes:
            self.log.write("note", step=STEP, text=text)
        seconds = time.perf_counter() - started
        self.log.write("train", step=STEP, steps=STEP, epoch=1.0, rows=rows, rows_per_s=rows / max(seconds, 1e-9))
        table = self.model.table(state)
        self.log.write(
            "note",
            step=STEP,
            text=f"{len(table.keys):,} keys lead to {len(table.items):,} items, {len(table.scores):,} scores",
        )
        valid, evaluated = self._measured(Inverted(self.model, self.recipe, table).eval(), "valid", 0)
        position = {
            "best_step": STEP,
            "waited": 0,
            "rows": rows,
            "seconds": seconds,
            "skipped_rows": max(rows - parts.rows, 0),
            "valid": manifest.finite(valid),
        }
        _write(self.job.run, self.recipe, state, position, self.job.sources["train"])
        return position

    def _measured(self, learned: Inverted, split: str, draws: int) -> tuple[dict[str, float], Evaluation]:
        def tell(what: str, done: int, of: int) -> None:
            if not done:
                self.log.write("stage", step=STEP, text=what)

        metrics, evaluation = measure(learned, self.recipe, self.job.sources, split, draws, tell)
        self.log.write("eval", step=STEP, split=split, **metrics)
        for text in remarks(self.recipe, split, metrics, evaluation.bounded):
            self.log.write("note", step=STEP, text=text)
        return metrics, evaluation

    def _result(self, learned: Inverted, position: dict[str, Any]) -> dict[str, Any]:
        test: dict[str, float] = {}
        curves: dict[str, Any] = {}
        if self.job.test:
            test, evaluation = self._measured(learned, "test", self.recipe.evaluate.bootstrap)
            evaluation.draws.write(self.job.run)
            curves = evaluation.curves()
        sizes = {"keys": learned.keys.numel(), "items": learned.items.numel(), "scores": learned.scores.numel()}
        return {
            "step": STEP,
            "best_step": STEP,
            "selected": self.recipe.select(),
            "best_by": selection.picks(self.recipe, position["valid"]),
            **{f"valid.{key}": value for key, value in position["valid"].items()},
            **{f"test.{key}": value for key, value in test.items()},
            "rows_per_s": position["rows"] / max(position["seconds"], 1e-9),
            "batch_size": self.recipe.data.batch_size,
            "workers": 1,
            "device": "cpu",
            "memory": memory.peak(),
            "fitted": sizes,
            "tables": {},
            "cut": {},
            "skipped_rows": position["skipped_rows"],
            "curves": curves,
            "spectra": {},
        }


class _Read:
    """The rows of a split, counted as they come.

    At their end BadInput is raised if none was positive and had an item: nothing is to be learned. So no kind comes to
    count what is not there.
    """

    def __init__(self, parts: Iterator[Rows], key: str, recipe: Recipe) -> None:
        self._parts, self._key, self._task = parts, key, next(iter(recipe.tasks))
        self.rows = 0

    def __iter__(self) -> Iterator[Rows]:
        found = False
        for part in self._parts:
            self.rows += len(part.label)
            found = found or bool((part.label & (part.ids[self._key].lengths > 0)).any())
            yield part
        if not found:
            raise BadInput(
                f"data.path: the training split has no positive rows of task '{self._task}' with an item that can be "
                "read; add days that have some, or mend its files"
            )


def _write(run: Path, recipe: Recipe, state: State, position: dict[str, Any], train: Source) -> None:
    """Write what was learned as the run's checkpoint; the manifest, written last, makes it whole."""
    path = run_folder.checkpoint(run, STEP)
    shutil.rmtree(path, ignore_errors=True)  # of an attempt that was killed
    path.mkdir(parents=True)
    manifest.commit(
        path,
        arrays.write(path, state),
        step=STEP,
        position=position,
        workers=1,
        recipe=yaml.safe_load(dump_recipe(recipe)),
        **trained_on(train, position["rows"], recipe),
    )


def fit(job: Job, begun: Path | None, device: torch.device) -> dict[str, Any]:
    """Do a rank's part of a run, which is all of it; as `trainers.train.loop.Trainer.run`."""
    return Run(job, begun).finish()


def evaluate(job: Job, path: Path, told: Path, split: str, device: torch.device) -> dict[str, Any]:
    """Measure a run's checkpoint on a split; return ``<split>.<task>.<metric>``.

    Args:
        job: the run.
        path: the checkpoint.
        told: the folder whose log is told, and that gets what intervals were drawn of.
        split: which.
        device: not used: all is computed on the CPU.
    """
    runlog.note(told, "note", text=f"evaluating {split} with {path.name}")
    learned, recipe = retriever(job.recipe, path), job.recipe
    metrics, found = measure(learned, recipe, job.sources, split, recipe.evaluate.bootstrap)
    found.draws.write(told)
    for text in remarks(recipe, split, metrics, found.bounded):
        runlog.note(told, "note", text=text)
    return {f"{split}.{key}": value for key, value in metrics.items()}
