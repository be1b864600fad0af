"""A sweep on disk: what was asked, and what became of every trial.

`<sweep>/recipe.yaml` and `space.yaml` are what was asked, `sweep.json` the rest and the trials, rewritten whole at
every change by the one process that runs the sweep. `<sweep>/trials/<name>` are normal run folders, whose logs and
checkpoints are the truth on each trial: a sweep that was killed needs nothing else to go on.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from livetrain.cluster.sweep.metric import Metric, parse
from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.load import dump_recipe, load_recipe, override
from livetrain.configs.schema import Recipe, Section
from livetrain.configs.space import Space, load_space
from livetrain.configs.trees import dump_tree
from livetrain.configs.values import Seed, whole
from livetrain.trainers.runtime import runlog
from livetrain.trainers.runtime.manifest import write_json, write_text
from livetrain.trainers.runtime.versions import versions

RECORD, ERROR = "sweep.json", "error.txt"
ENDED = ("finished", "stopped", "failed")


class Settings(Section):
    """How a sweep searches."""

    metrics: list[str] = Field(min_length=1, description="what is chosen by; several give a Pareto front")
    samples: Annotated[int, *whole(1, 10**6)] = Field(20, description="trials")
    search: Literal["random", "optuna"] = "random"
    scheduler: Literal["asha", "none"] = "asha"
    seed: Seed = 1


@dataclass
class Trial:
    """One training of a sweep."""

    number: int
    values: dict[str, Any]  # drawn for this trial, by recipe key
    state: str = "waiting"  # then running, then one of ENDED
    scores: list[float | None] = field(default_factory=list)  # of the sweep's metrics, at the checkpoint it keeps
    epoch: float = 0.0  # that its last evaluation was made at
    seconds: float = 0.0
    error: str | None = None

    @property
    def name(self) -> str:
        return f"{self.number:03d}"

    @property
    def scored(self) -> bool:
        """Whether the trial has finished with a number for every metric."""
        return self.state == "finished" and self.measured

    @property
    def measured(self) -> bool:
        """Whether the trial has a number for every metric by now, and has not failed."""
        return self.state != "failed" and bool(self.scores) and None not in self.scores


@dataclass
class Record:
    """What a sweep's folder holds of its trials."""

    folder: Path
    recipe: Recipe
    space: Space
    settings: Settings
    trials: list[Trial] = field(default_factory=list)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Read a sweep that runs, was killed or has ended.

        Raises:
            BadInput: the folder holds no sweep.
        """
        folder = Path(folder).resolve()
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except OSError:
            near = nearest(str(folder), [str(found.parent) for found in folder.parent.glob(f"*/{RECORD}")])
            raise BadInput(f"{folder}: this folder holds no sweep ({RECORD} is missing){near}") from None
        except ValueError:
            raise _damaged(folder) from None
        known = {part.name for part in fields(Trial)}
        try:
            trials = [Trial(**{k: v for k, v in trial.items() if k in known}) for trial in record["trials"]]
            settings = Settings.model_validate(record["settings"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(folder) from None
        recipe, space = load_recipe(folder / "recipe.yaml"), load_space(folder / "space.yaml")
        return cls(folder, recipe, space, settings, trials)

    def create(self) -> None:
        """Write what was asked.

        Raises:
            BadInput: the folder holds a sweep already, or cannot be written to.
        """
        if (self.folder / RECORD).exists():
            raise BadInput(
                f"{self.folder}: a sweep is there already; go on with it by --resume {self.folder}, "
                "or choose another folder with --out"
            )
        try:
            (self.folder / "trials").mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "recipe.yaml", dump_recipe(self.recipe))
            write_text(self.folder / "space.yaml", dump_tree(self.space.tree()))
        except OSError as error:
            raise BadInput(f"{self.folder}: cannot write here ({error.strerror}); choose another with --out") from error
        self.save()

    def save(self) -> None:
        """Write sweep.json, whole or not at all."""
        trials = [asdict(trial) | {"run": f"trials/{trial.name}"} for trial in self.trials]
        settings = self.settings.model_dump(mode="json")
        write_json(self.folder / RECORD, {"settings": settings, "trials": trials, "versions": versions()})

    @cached_property
    def metrics(self) -> list[Metric]:
        """The metrics that the sweep chooses by."""
        return [parse(text, self.recipe) for text in self.settings.metrics]

    def run(self, trial: Trial) -> Path:
        """Return a trial's run folder."""
        return self.folder / "trials" / trial.name

    def recipe_of(self, trial: Trial) -> Recipe:
        """Return the recipe that a trial trained: the sweep's with the trial's values, under the sweep's own name.

        Raises:
            BadInput: the values do not go together.
        """
        return override(self.recipe, trial.values)

    def evaluations(self, trial: Trial) -> list[dict[str, Any]]:
        """Return a trial's evaluations so far; see `read_evaluations`."""
        return read_evaluations(self.run(trial), self.recipe, self.metrics)

    @property
    def best(self) -> Trial:
        """The finished trial that is best by the first metric.

        Raises:
            BadInput: no trial has finished with a number.
        """
        found = [trial for trial in self.trials if trial.scored]
        if not found:
            raise BadInput(f"{self.folder}: {self._why_none()}")
        return max(found, key=lambda trial: (self.metrics[0].score(trial.scores[0]), -trial.number))

    def _why_none(self) -> str:
        """Say why no trial is the best, and what to do."""
        finished = [trial for trial in self.trials if trial.state == "finished"]
        if finished:
            return f"{self._undefined(finished)}; start a sweep by another --metric, or with other rows as valid"
        if len(self.trials) < self.settings.samples or any(trial.state not in ENDED for trial in self.trials):
            return f"no trial has finished yet; go on with --resume {self.folder}"
        return f"none of its {len(self.trials)} trials has finished; {RECORD} says why; mend it and start another sweep"

    def _undefined(self, finished: list[Trial]) -> str:
        """Say which metric is undefined in trials of which none has them all, and what it needs."""
        from livetrain.trainers.evaluate.selection import metric_of

        metric = next(
            m for place, m in enumerate(self.metrics) if any(trial.scores[place] is None for trial in finished)
        )
        lines = [line for trial in finished for line in self.evaluations(trial)]
        name = next((name for name in metric.names if any(line.get(name) is None for line in lines)), None)
        why = "its expression gives no number"
        if name:
            why = f"{name} needs {metric_of(self.recipe, name).needs} in valid"
        return f"{metric.text} is undefined in the {len(finished)} trials that have finished, for {why}"

    @property
    def front(self) -> list[Trial]:
        """The Pareto front: the finished trials than which no other is as good by all metrics and better by one."""
        known = [trial for trial in self.trials if trial.scored]
        points = {
            trial.number: [m.score(v) for m, v in zip(self.metrics, trial.scores, strict=True)] for trial in known
        }

        def beaten(point: list[float]) -> bool:
            return any(o != point and all(a >= b for a, b in zip(o, point, strict=True)) for o in points.values())

        return sorted(
            (trial for trial in known if not beaten(points[trial.number])),
            key=lambda trial: -points[trial.number][0],
        )

    def trial(self, number: int) -> Trial:
        """Return a trial by its number.

        Raises:
            BadInput: there is none.
        """
        for trial in self.trials:
            if trial.number == number:
                return trial
        raise BadInput(f"{self.folder}: there is no trial {number}; it has {len(self.trials)}, counted from 0")

    def ranked(self) -> list[Trial]:
        """Return the trials by how far they came, the finished ones first, and within that by the first metric."""
        order = ("finished", "running", "stopped", "waiting", "failed")
        metric = self.metrics[0]
        return sorted(
            self.trials,
            key=lambda t: (order.index(t.state), -metric.score(t.scores[0] if t.scores else None), t.number),
        )


def read_evaluations(run: Path, recipe: Recipe, metrics: list[Metric]) -> list[dict[str, Any]]:
    """Return what a run's log says of each evaluation on the validation split, in order of steps.

    Returns:
        By evaluation `step`, `epoch`, the metrics by their own names, and `scores`: the values of `metrics` at the
        best checkpoint by then, as ``train.select`` picks it, which is the one that is kept, measured and exported.
    """
    from livetrain.trainers.evaluate.selection import is_better

    lines = runlog.read(run)
    epochs = {line["step"]: line["epoch"] for line in lines if line.get("kind") == "train"}
    found = {line["step"]: line for line in lines if line.get("kind") == "eval" and line.get("split") == "valid"}
    out, best, kept = [], None, []
    for step in sorted(found):
        if is_better(recipe, found[step], best):
            best = found[step]
            kept = [None if math.isnan(v) else v for v in (metric.value(found[step]) for metric in metrics)]
        out.append(found[step] | {"epoch": epochs.get(step, 0.0), "scores": kept})
    return out


def _damaged(folder: Path) -> BadInput:
    return BadInput(f"{folder / RECORD}: this is no record of a sweep; put it back from a copy, or start a new sweep")
