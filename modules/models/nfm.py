"""NFM: neural factorisation machine (He and Chua, SIGIR 2017, arXiv 1708.05027)."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.schema import Task
from livetrain.configs.values import Dropout, Units
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.factorisation import BiInteraction
from livetrain.modules.layers.fields import Fields
from livetrain.modules.layers.mlp import MLP
from livetrain.modules.models.dnn import TowerConfig
from livetrain.modules.models.interactions import Interactions
from livetrain.modules.models.registry import register_model
from livetrain.modules.tasks.heads import Heads, outputs


class NFMConfig(TowerConfig):
    """First-order weights, and a tower on the products of factors."""

    kind: Literal["nfm"] = "nfm"
    units: Units = Field([128, 128], description="hidden layers of the tower")
    dropout: Dropout = Field(0.0, description="of the products and in the tower")


class _Term(nn.Module):
    def __init__(self, config: NFMConfig, fields: Fields, dense: int) -> None:
        super().__init__()
        self.pairs = BiInteraction(fields, dense)
        self.dropout = nn.Dropout(config.dropout)
        self.tower = MLP(self.pairs.width, config.units, config.activation, config.dropout, fields.tasks)

    def forward(self, factors: list[Tensor], dense: Tensor, weights: Tensor | None) -> Tensor:
        """Args: factors (B, k) per field, dense (B, D), weights (B,). Returns: (B, T)."""
        return self.tower(self.dropout(self.pairs(factors, dense)), weights)


@register_model("nfm", NFMConfig)
class NFM(Interactions):
    """logit = first order + MLP(dropout(f)), f = sum_{i<j} v_i * v_j of `BiInteraction`.

    The paper also normalises f by the batch's statistics. It is left out here: to learn what one rank learns, all ranks
    would have to sum them in every step.

    Args:
        config: see `NFMConfig`.
        inputs: the recipe's features.
        tasks: one logit each.

    Raises:
        BadInput: the tables do not fit, see `Fields` and `BiInteraction`.
    """

    def __init__(self, config: NFMConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        fields = Fields(inputs, sum(outputs(tasks)))
        super().__init__(fields, _Term(config, fields, len(inputs.dense)), Heads(tasks))
