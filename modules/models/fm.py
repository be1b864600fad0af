"""FM: factorisation machine (Rendle, ICDM 2010, 10.1109/ICDM.2010.127)."""

from typing import Literal

from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.factorisation import Factorisation
from livetrain.modules.layers.fields import Fields
from livetrain.modules.models.interactions import Interactions, PenalisedConfig
from livetrain.modules.models.registry import register_model
from livetrain.modules.tasks.heads import Heads, outputs


class FMConfig(PenalisedConfig):
    """First-order weights and products of factors."""

    kind: Literal["fm"] = "fm"


@register_model("fm", FMConfig)
class FM(Interactions):
    """logit = first order + sum_{i<j} v_i . v_j, see `Fields` and, for several tasks, `Factorisation`.

    On two id features alone this is matrix factorisation with biases.

    Args:
        config: see `FMConfig`.
        inputs: the recipe's features.
        tasks: one logit each.

    Raises:
        BadInput: the tables do not fit, see `Fields` and `BiInteraction`.
    """

    def __init__(self, config: FMConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        fields = Fields(inputs, sum(outputs(tasks)))
        super().__init__(fields, Factorisation(fields, len(inputs.dense)), Heads(tasks), config.l2)
