"""A sweep as its users see it: its table, its plots, and its best trial as a recipe."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from livetrain.cluster.sweep import plots
from livetrain.cluster.sweep.trials import Record
from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe
from livetrain.trainers.runtime.versions import versions

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass
class Sweep(Record):
    """A sweep's folder, read: `Sweep.open(folder)`, or what `tune` returns."""

    @property
    def frame(self) -> "pandas.DataFrame":
        """All trials, best first, a row each: number, state, metrics, epoch, drawn values, run folder, error."""
        import pandas

        on_front = {trial.number for trial in self.front}
        rows = [
            {
                "trial": trial.number,
                "state": trial.state,
                **dict(zip((m.text for m in self.metrics), trial.scores or [None] * len(self.metrics), strict=True)),
                **({"pareto": trial.number in on_front} if len(self.metrics) > 1 else {}),
                "epoch": trial.epoch,
                "seconds": trial.seconds,
                **{key: trial.values.get(key) for key in self.space.domains},
                "run": str(self.run(trial)),
                "error": trial.error,
            }
            for trial in self.ranked()
        ]
        return pandas.DataFrame(rows)

    def plots(self) -> dict[str, "Figure"]:
        """Return the sweep's plots by name: parallel, importance, curves, best, and with several metrics pareto."""
        return plots.draw(self)

    def winner(self, number: int | None = None) -> str:
        """Return the recipe, as YAML, that trains like a trial: only what differs from the defaults, and its origin.

        Args:
            number: the trial, by default the best.

        Raises:
            BadInput: there is no such trial, or it has not finished.
        """
        trial = self.best if number is None else self.trial(number)
        if trial.state != "finished":
            raise BadInput(f"{self.folder}: trial {trial.number} is {trial.state}; choose one that has finished")
        pairs = zip(self.metrics, trial.scores, strict=True)
        reached = ", ".join(f"{metric.text} = {value!r}" for metric, value in pairs)
        made_with = versions()
        lines = [
            f"Trial {trial.number} of {len(self.trials)} of the sweep {self.folder.name}, "
            f"chosen on the validation split: {reached}",
            *(f"drawn: {key}: {value}" for key, value in trial.values.items()),
            "made with " + ", ".join(f"{name} {made_with[name]}" for name in ("livetrain", "torch", "torchrec")),
        ]
        recipe = self.recipe_of(trial).model_copy(update={"name": None})
        return "".join(f"# {line}\n" for line in lines) + dump_recipe(recipe, defaults=False)
