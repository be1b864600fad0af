"""How the tasks' gradients are combined."""

from typing import Annotated, Literal

from pydantic import Field

from livetrain.configs.schema.section import Section
from livetrain.configs.values import Count, Positive, real

Scope = Annotated[
    Literal["shared", "trunk"],
    Field(description="where gradients are compared: in all that is shared, or, cheaper, at the input of the trunk"),
]
MeasureEvery = Annotated[
    Count | None, Field(description="steps between measurements of the tasks' gradients, which cost as in pcgrad")
]


class SumOfGradients(Section):
    """The tasks' losses, each with its task's weight, are added."""

    kind: Literal["sum"] = "sum"
    scope: Scope = "shared"
    measure_every: MeasureEvery = None


class PCGrad(Section):
    """Gradients of tasks are projected so that none points against another (2001.06782)."""

    kind: Literal["pcgrad"]
    scope: Scope = "shared"


class GradNorm(Section):
    """Task weights that make the tasks train at similar rates (1711.02257)."""

    kind: Literal["gradnorm"]
    scope: Scope = "shared"
    alpha: Annotated[float, real(0, 100)] = Field(1.5, description="how strongly the rates are pulled together")
    lr: Positive = Field(0.025, description="of the task weights, whatever the schedule")


class Uncertainty(Section):
    """Task weights exp(-s) with a learned s per task (1705.07115)."""

    kind: Literal["uncertainty"]
    scope: Scope = "shared"
    lr: Positive = Field(0.025, description="of s, whatever the schedule")
    measure_every: MeasureEvery = None


Gradients = SumOfGradients | PCGrad | GradNorm | Uncertainty
