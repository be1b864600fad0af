"""A run of a model that is fitted: one fit in the place of steps, and the same run folder.

<run>/checkpoints/step-00000001/  manifest.json (last), and a file per array of what was learned
"""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import Recipe, WarmStart
from livetrain.modules.fitted import State, fitted
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.evaluate import selection
from livetrain.trainers.evaluate.evaluation import Evaluation
from livetrain.trainers.export.fitted import answering, learned, state_in, state_of
from livetrain.trainers.fitted import finding, ranking
from livetrain.trainers.observe.weights_and_biases import Tracker
from livetrain.trainers.runtime import arrays, manifest, run_folder, runlog, scratch
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
        self.model, self._ways = fitted(job.recipe), _ways(job.recipe)

    def finish(self) -> dict[str, Any]:
        """Fit, write, evaluate, and return what result.json holds."""
        found, started = run_folder.committed(self.job.run), time.perf_counter()
        self.log = RunLog(self.job.run, STEP if found else 0)
        tracker = Tracker(self.recipe, self.job.run, lambda text: self.log.write("note", step=STEP, text=text))
        with tracker:
            self.log.listeners.append(tracker.line)
            position = run_folder.content(found[-1])["position"] if found else self._fit(started)
            return self._result(position)

    def _fit(self, started: float) -> dict[str, Any]:
        """Fit, evaluate valid/, and write the checkpoint; return its position."""
        before = None
        if self._begun is not None:
            before = state_in(self._begun)
            self.log.write("note", step=0, text=f"begins with {self._begun}")
        self.log.write("stage", step=0, text="fitting")
        assert self.job.statistics is not None  # who fits has looked at the data
        rows = self.job.statistics.rows
        scratch.sweep(self.job.run, ".fit-")
        with scratch.place(self.job.run, ".fit-") as place:
            state = self._ways.fit(self.model, self.job, place, before)
        for text in self.model.notes:
            self.log.write("note", step=STEP, text=text)
        seconds = time.perf_counter() - started
        self.log.write("train", step=STEP, steps=STEP, epoch=1.0, rows=rows, rows_per_s=rows / max(seconds, 1e-9))
        found = answering(self.model, self.recipe, state)
        self._note(self._ways.told(self._ways.sizes(self.model, found, state)))
        valid, _ = self._measured(found, "valid", 0)
        position = {"best_step": STEP, "waited": 0, "rows": rows, "seconds": seconds, "valid": manifest.finite(valid)}
        position |= {"mean": self.job.statistics.mean, "std": self.job.statistics.std}  # for the signature of an export
        _write(self.job.run, self.recipe, state, position, self.job.sources["train"])
        return position

    def _note(self, text: str) -> None:
        self.log.write("note", step=STEP, text=text)

    def _measured(self, found: nn.Module, split: str, draws: int) -> tuple[dict[str, float], Evaluation]:
        def tell(what: str, done: int, of: int) -> None:
            if not done:
                self.log.write("stage", step=STEP, text=what)

        metrics, evaluation = self._ways.measure(found, self.recipe, self.job.sources, split, draws, tell)
        self.log.write("eval", step=STEP, split=split, **metrics)
        for text in remarks(self.recipe, split, metrics, evaluation.bounded):
            self.log.write("note", step=STEP, text=text)
        return metrics, evaluation

    def _result(self, position: dict[str, Any]) -> dict[str, Any]:
        state = state_of(self.recipe, run_folder.checkpoint(self.job.run, STEP))
        found = answering(self.model, self.recipe, state)
        test: dict[str, float] = {}
        curves: dict[str, Any] = {}
        if self.job.test:
            test, evaluation = self._measured(found, "test", self.recipe.evaluate.bootstrap)
            evaluation.draws.write(self.job.run)
            curves = evaluation.curves()
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
            "fitted": self._ways.sizes(self.model, found, state),
            "curves": curves,
            "spectra": {},
        }


def _ways(recipe: Recipe) -> Any:
    """Return how a run fits, measures and tells: `finding` or `ranking`."""
    return finding if recipe.model.finds else ranking


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
    recipe = job.recipe
    metrics, found = _ways(recipe).measure(learned(recipe, path), recipe, job.sources, split, recipe.evaluate.bootstrap)
    found.draws.write(told)
    for text in remarks(recipe, split, metrics, found.bounded):
        runlog.note(told, "note", text=text)
    return {f"{split}.{key}": value for key, value in metrics.items()}
