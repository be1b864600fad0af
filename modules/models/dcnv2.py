"""DCN-V2: deep and cross network (Wang et al., WWW 2021, arXiv 2008.13535)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.schema import Task
from livetrain.configs.values import Few, Size
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.cross import Cross
from livetrain.modules.layers.gather import Gather
from livetrain.modules.layers.mlp import MLP
from livetrain.modules.models.dnn import TowerConfig
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network
from livetrain.modules.tasks.heads import Heads, outputs


class DCNv2Config(TowerConfig):
    """A cross network and a tower on embeddings, mean-pooled sequences and dense features."""

    kind: Literal["dcnv2"] = "dcnv2"
    cross_layers: Few = 2
    rank: Size | None = Field(None, description="of the cross layers' matrices, by default whole")
    structure: Literal["parallel", "stacked"] = Field(
        "parallel", description="the tower beside the cross network, or on top of it"
    )


@register_model("dcnv2", DCNv2Config)
class DCNv2(Network):
    """logits = W [Cross(x), MLP(x)], or W MLP(Cross(x)) when stacked, x = [ids, mean of each sequence, dense].

    Args:
        config: see `DCNv2Config`.
        inputs: the recipe's features.
        tasks: one logit each.
    """

    shares = True

    def __init__(self, config: DCNv2Config, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        self.gather = Gather(inputs, list(inputs.sequences))
        width = self.gather.width
        self.parallel = config.structure == "parallel"
        self.cross = Cross(width, config.cross_layers, config.rank)
        self.tower = MLP(width, config.units, config.activation, config.dropout)
        sizes = [width, *config.units]
        self.last = nn.Linear(sizes[-1] + (width if self.parallel else 0), sum(outputs(tasks)))
        self.heads = Heads(tasks)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = self.gather(values, lengths, dense)  # (B, width)
        crossed = self.cross(x)  # (B, width)
        hidden = torch.cat([crossed, self.tower(x, weights)], 1) if self.parallel else self.tower(crossed, weights)
        return self.heads(self.last(hidden).unbind(1))
