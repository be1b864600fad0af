"""A network of one's own, for ``model: {kind: gated, user: user}``."""

import torch
from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import ModelConfig
from livetrain.modules.layers.gather import Gather
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network
from livetrain.modules.tasks.heads import Heads


class GatedConfig(ModelConfig):
    user: str = Field("user", description="id feature of the user")
    width: int = Field(16, gt=0)


@register_model("gated", GatedConfig)
class Gated(Network):
    """logits = W (sigmoid(U u) * relu(V x)),  u the user's embedding, x all features of the row"""

    shares = True  # a server may give the user's features once

    def __init__(self, config, inputs, tasks) -> None:
        super().__init__()
        if config.user not in inputs.ids:
            raise BadInput(f"model.user: there is no id feature '{config.user}'{nearest(config.user, inputs.ids)}")
        self.user, self.gather = config.user, Gather(inputs, list(inputs.sequences))
        self.gate = nn.Linear(inputs.ids[config.user], config.width)
        self.hidden, self.last = nn.Linear(self.gather.width, config.width), nn.Linear(config.width, len(tasks))
        self.heads = Heads(tasks)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        gate = torch.sigmoid(self.gate(self.row(values, lengths, self.user, dense.size(0))))
        hidden = torch.relu(self.hidden(self.gather(values, lengths, dense)))
        return self.heads(self.last(gate * hidden).unbind(1))
