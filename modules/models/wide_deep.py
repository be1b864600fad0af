"""Wide & Deep: a linear model and a tower (Cheng et al., DLRS 2016, arXiv 1606.07792)."""

from typing import Literal

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.fields import Fields
from livetrain.modules.layers.mlp import MLP
from livetrain.modules.models.dnn import TowerConfig
from livetrain.modules.models.interactions import Interactions
from livetrain.modules.models.registry import register_model
from livetrain.modules.tasks.heads import Heads, outputs


class WideDeepConfig(TowerConfig):
    """First-order weights, and a tower on factors and dense features."""

    kind: Literal["wide_deep"] = "wide_deep"


class Deep(nn.Module):
    """MLP([factors, dense]).

    Args:
        config: the tower.
        fields: whose factors it reads.
        dense: D, number of dense features.
    """

    def __init__(self, config: TowerConfig, fields: Fields, dense: int) -> None:
        super().__init__()
        width = sum(fields.dims.values()) + dense
        self.tower = MLP(width, config.units, config.activation, config.dropout, fields.tasks)

    def forward(self, factors: list[Tensor], dense: Tensor, weights: Tensor | None) -> Tensor:
        """Args: factors (B, d) per field, dense (B, D), weights (B,). Returns: (B, T)."""
        return self.tower(torch.cat(factors + [dense], 1), weights)


@register_model("wide_deep", WideDeepConfig)
class WideDeep(Interactions):
    """logit = first order + MLP([factors, dense]), see `Fields`.

    The paper's wide part also has products of ids, picked by hand; such a product is an id feature of the data. Its two
    parts have an optimizer each; here the tables have one and everything else the other.

    Args:
        config: see `WideDeepConfig`.
        inputs: the recipe's features.
        tasks: one logit each.

    Raises:
        BadInput: a table has too few columns, see `Fields`.
    """

    def __init__(self, config: WideDeepConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        fields = Fields(inputs, sum(outputs(tasks)))
        super().__init__(fields, Deep(config, fields, len(inputs.dense)), Heads(tasks))
