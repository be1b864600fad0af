"""DIN: deep interest network (Zhou et al., KDD 2018, arXiv 1706.06978)."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from livetrain.configs.schema import Task
from livetrain.configs.values import Dropout, Units
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.bottom import Attention, Bottom, BottomConfig
from livetrain.modules.layers.mlp import MLP
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network
from livetrain.modules.tasks.heads import Heads, outputs


class DINConfig(BottomConfig):
    """Attention over histories, then one tower."""

    kind: Literal["din"] = "din"
    attention: list[Attention] = Field(min_length=1)
    units: Units = Field([200, 80], description="hidden layers of the tower")
    dropout: Dropout = Field(0.0, description="in the tower")


@register_model("din", DINConfig)
class DIN(Network):
    """logits = MLP([ids, mean of each pooled sequence, dense, each attention's sums]), one output per task.

    Args:
        config: see `DINConfig`.
        inputs: the recipe's features.
        tasks: one logit each.

    Raises:
        BadInput: the config does not fit the features, see `Bottom`.
    """

    shares = True

    def __init__(self, config: DINConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        self.bottom = Bottom(config, inputs)
        self.tower = MLP(self.bottom.width, config.units, config.activation, config.dropout, sum(outputs(tasks)))
        self.heads = Heads(tasks)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = self.bottom(values, lengths, dense, weights)
        return self.heads(self.tower(x, weights).unbind(1))
