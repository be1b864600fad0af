"""How the tasks' gradients are combined."""

from typing import Literal

from pydantic import Field

from livetrain.configs.schema.section import Section
from livetrain.configs.values import Count


class Gradients(Section):
    """How the tasks' gradients become one. Kinds have classes of their own, beside their arithmetic."""

    kind: str = Field("sum", description="sum, pcgrad, gradnorm, uncertainty, or a registered kind")
    scope: Literal["shared", "rows", "trunk"] = Field(
        "shared",
        description="where gradients are compared: in all that is shared; there, and besides in every row of tables, "
        "which all have sharding: data_parallel; or, cheaper, at the input of the trunk",
    )


class Measured(Gradients):
    """Of kinds that need no gradients, and can measure them all the same."""

    measure_every: Count | None = Field(
        None, description="steps between measurements of the tasks' gradients, which cost as in pcgrad"
    )
