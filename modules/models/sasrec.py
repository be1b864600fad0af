"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018, arXiv 1808.09781), as a ranker."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import ModelConfig, Task
from livetrain.configs.values import Dropout, FeatureName, Few, Length, Size, Units
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.layers.bottom import Attention, check_features
from livetrain.modules.layers.domain import Domain
from livetrain.modules.layers.gather import Gather
from livetrain.modules.layers.mlp import MLP, Activation
from livetrain.modules.layers.sequence import Block, Positions, laid_out, newest
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network
from livetrain.modules.tasks.heads import Heads, outputs


class SASRecConfig(ModelConfig):
    """Causal self-attention over one history, whose newest state meets the candidate; then one tower."""

    kind: Literal["sasrec"] = "sasrec"
    attention: list[Attention] = Field(min_length=1, max_length=1, description="the history")
    pooled: list[FeatureName] = Field([], description="sequence features that are only averaged")
    width: Size = Field(32, description="size of an event")
    blocks: Few = Field(2, description="self-attention blocks")
    heads: Size = 1
    positions: Length = Field(64, description="newest events that have a position of their own")
    units: Units = Field([200, 80], description="hidden layers of the tower")
    activation: Activation = "dice"
    dropout: Dropout = Field(0.0, description="in blocks and tower")

    @model_validator(mode="after")
    def _divides(self) -> "SASRecConfig":
        if self.width % self.heads:
            raise BadInput(f"model.heads: {self.heads} heads do not divide model.width {self.width}")
        return self


@register_model("sasrec", SASRecConfig)
class SASRec(Network):
    """logits = MLP([ids, pooled, dense, h, q, h * q]),  h = LayerNorm(blocks(V + position)) of the newest event

    SASRec ranks items by h . q after learning which item comes next, at every position. Impressions have labels and
    features of their own, so here h and the candidate q meet in a tower, and there is one target per row. What is
    SASRec's is the reading of the history: causal blocks, positions, the newest state. A row without events has h = 0.

    Args:
        config: see `SASRecConfig`.
        inputs: the recipe's features.
        tasks: one logit each.

    Raises:
        BadInput: the config does not fit the features.
    """

    shares = True

    def __init__(self, config: SASRecConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        check_features(config.attention, config.pooled, inputs)
        width = config.width
        self.gather = Gather(inputs, config.pooled)
        self.domain = Domain(config.attention[0], inputs, width)
        self.positions = Positions(config.positions, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.dropout, causal=True) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width)
        x = self.gather.width + 3 * width
        self.tower = MLP(x, config.units, config.activation, config.dropout, sum(outputs(tasks)))
        self.heads = Heads(tasks)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        size = dense.size(0)
        events, count = self.domain(values, lengths)
        events = self.dropout(self.positions(events, count))
        layout = laid_out(count, events.size(0))
        for block in self.blocks:
            events = block(events, layout)
        state = jagged.of_rows(newest(self.norm(events), count), lengths, size)  # (B, d)
        query = self.domain.candidate(values, lengths, dense)
        x = torch.cat([self.gather(values, lengths, dense), state, query, state * query], 1)
        return self.heads(self.tower(x, weights).unbind(1))
