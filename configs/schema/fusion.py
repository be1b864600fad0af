"""One score of several tasks' predictions, and how its weights are searched."""

from typing import Annotated

from pydantic import Field, field_validator

from livetrain.configs import formula
from livetrain.configs.errors import BadInput
from livetrain.configs.schema.section import Section
from livetrain.configs.values import Name, Positive, TaskName, Text, real, whole

FUSED = "fused"  # the score's name among the tasks'

Bounds = Annotated[list[Annotated[float, real(-1e6, 1e6)]], Field(min_length=2, max_length=2)]


class Fusion(Section):
    """A formula over the tasks' predictions, by which rows are ranked."""

    score: Text = Field(description="formula over tasks and weights, as click ** a * (1 + b * watch) ** c")
    weights: dict[Name, Bounds] = Field(
        {}, max_length=32, description="[least, most] of each weight that is searched on the validation split"
    )
    by: Name = Field("gauc", description="metric of groups that is searched by, as gauc, list_ndcg_10")
    tasks: dict[TaskName, Positive] = Field(
        {}, description="how much each task's metric counts in choosing; by default 1 of each in the formula"
    )
    trials: Annotated[int, *whole(1, 10_000)] = Field(64, description="points of the weights that are tried")

    @field_validator("weights")
    @classmethod
    def _rise(cls, value: dict[str, list[float]]) -> dict[str, list[float]]:
        for name, (least, most) in value.items():
            if least >= most:
                raise BadInput(f"{name}: [{least:g}, {most:g}] does not rise; give the least number first")
        return value

    def steps(self, tasks: list[str]) -> list[formula.Step]:
        """Return the formula's steps, over these tasks.

        Raises:
            BadInput: it is none.
        """
        return formula.parse(self.score, [*tasks, *self.weights], "fusion.score")
