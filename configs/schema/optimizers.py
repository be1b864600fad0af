"""The optimizers of tables and of the dense part, and the learning rate's course."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from livetrain.configs import registry
from livetrain.configs.schema.data import MOST_ROWS
from livetrain.configs.schema.section import Section
from livetrain.configs.values import CountOrZero, Positive, PositiveOrZero, real, whole


class SparseOptimizer(Section):
    """The optimizer fused into the tables' backward pass."""

    kind: str = Field("rowwise_adagrad", description="rowwise_adagrad, adagrad, sgd, adam, or a registered kind")
    lr: Positive = 0.02
    eps: Positive = 1e-8
    weight_decay: PositiveOrZero = Field(0.0, description="L2 on the rows that a batch touches")


# A section that one of the kinds checks.
OfTables = Annotated[SerializeAsAny[SparseOptimizer], BeforeValidator(registry.OPTIMIZERS.parse)]


class DenseOptimizer(Section):
    """The optimizer of everything that is not a table."""

    kind: str = Field("adam", description="adam, adamw, adagrad, sgd, or a registered kind")
    lr: Positive = 1e-3
    weight_decay: PositiveOrZero = 0.0
    clip_norm: Positive | None = Field(None, description="largest global norm of the dense gradient")


class Schedule(Section):
    """The learning rates' factor by step, the same for all optimizers."""

    warmup_steps: CountOrZero = Field(0, description="steps of linear rise from 0")
    decay: Literal["constant", "linear", "cosine"] = "constant"
    final: Annotated[float, real(0, 1)] = Field(0.0, description="factor at the last step, for linear and cosine")


class Optimizers(Section):
    sparse: OfTables = SparseOptimizer()
    dense: Annotated[SerializeAsAny[DenseOptimizer], BeforeValidator(registry.DENSE_OPTIMIZERS.parse)] = (
        DenseOptimizer()
    )
    schedule: Schedule = Schedule()
    rates_for_batch: Annotated[int, *whole(1, MOST_ROWS)] | None = Field(
        None,
        description="data.batch_size that the rates are meant for: with another all are multiplied by the square root "
        "of that over this",
    )
    ema: Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)] | None = Field(
        None,
        description="decay of a running mean of everything that is not a table, as 0.999: evaluation and export use "
        "the mean",
    )
