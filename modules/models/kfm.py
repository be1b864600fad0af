"""KFM: kernel factorisation machine (Qu et al., TOIS 2018, arXiv 1807.00311)."""

from typing import Literal

from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.fields import Fields
from livetrain.modules.layers.kernel import Kernel
from livetrain.modules.models.interactions import Interactions, PenalisedConfig
from livetrain.modules.models.registry import register_model
from livetrain.modules.tasks.heads import Heads, outputs


class KFMConfig(PenalisedConfig):
    """First-order weights, and products of factors, with one learned matrix for each pair of fields."""

    kind: Literal["kfm"] = "kfm"


@register_model("kfm", KFMConfig)
class KFM(Interactions):
    """logit = first order + sum_{i<j} v_i^T W_ij v_j, see `Fields` and `Kernel`.

    Tables may differ in dim. With the identity as every W_ij this is FM, except that the dense features are one field.

    Args:
        config: see `KFMConfig`.
        inputs: the recipe's features.
        tasks: one logit each.

    Raises:
        BadInput: a table has too few columns, see `Fields`.
    """

    def __init__(self, config: KFMConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        fields = Fields(inputs, sum(outputs(tasks)))
        super().__init__(fields, Kernel(fields, len(inputs.dense)), Heads(tasks), config.l2)
