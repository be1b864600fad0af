"""eSASRec: SASRec whose blocks are LiGR's, with gates (2502.03417), found best among its kin by 2508.06450."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.configs.values import Few, Length, Size
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.buckets import Buckets
from livetrain.modules.layers.sequence import Attention, Positions, laid_out
from livetrain.modules.models.next_item import Body, NextItem, NextItemConfig, check_heads, xavier
from livetrain.modules.models.registry import register_model


class ESASRecConfig(NextItemConfig):
    """Causal self-attention with gates over one history."""

    kind: Literal["esasrec"] = "esasrec"
    blocks: Few = Field(2, description="gated blocks")
    heads: Size = 1
    expansion: Few = Field(4, description="of the feed-forward layers")
    positions: Length = Field(64, description="newest events that have a position of their own")


class GatedBlock(nn.Module):
    """Self-attention, then a gated feed-forward layer, each added as much as a gate lets through.

        x <- x + sigmoid(W_a x + b_a) * Dropout(Attention(LN(x)))
        x <- x + sigmoid(W_b x + b_b) * Dropout(F(LN(x))),   F(f) = W_2 Dropout(silu(W_1 f) * W_3 f)

    The gates read the stream itself, not normalised; there is one per column.

    Args:
        width: d.
        heads: of the attention.
        expansion: W_1 and W_3 have so many times d rows.
        dropout: share dropped in training.

    Source: LiGR, 2502.03417, as RecTools' `LiGRLayers` computes it.
    """

    def __init__(self, width: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, bias=True)
        self.attention_gate, self.forward_gate = nn.Linear(width, width), nn.Linear(width, width)
        self.hidden = nn.Linear(width, 2 * expansion * width, bias=False)  # W_1 and W_3
        self.out = nn.Linear(expansion * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, layout: Buckets) -> Tensor:
        """Args: values (N, d) and how their rows lie. Returns: (N, d)."""
        x = self.norm(values)
        x = self.dropout(self.attention(x, layout, x, layout, True))
        values = values + self.attention_gate(values).sigmoid() * x
        one, other = self.hidden(self.forward_norm(values)).chunk(2, 1)
        x = self.dropout(self.out(self.dropout(F.silu(one) * other)))
        return values + self.forward_gate(values).sigmoid() * x


class ESASRecBody(Body):
    """h = blocks(Dropout(v + position))

    Args:
        config: see `ESASRecConfig`.
        width: d.
    """

    def __init__(self, config: ESASRecConfig, width: int) -> None:
        super().__init__()
        check_heads(config.heads, width)
        self.positions = Positions(config.positions, width)
        self.dropout = nn.Dropout(config.dropout)
        blocks = [GatedBlock(width, config.heads, config.expansion, config.dropout) for _ in range(config.blocks)]
        self.blocks = nn.ModuleList(blocks)
        xavier(self)
        for block in blocks:
            for matrix in block.hidden.weight.chunk(2):  # W_1 and W_3 are two
                nn.init.xavier_normal_(matrix)

    def forward(self, events: Tensor, count: Tensor, values: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        """See `Body`."""
        states = self.dropout(self.positions(events, count))
        layout = laid_out(count, events.size(0))
        for block in self.blocks:
            states = block(states, layout)
        return states


@register_model("esasrec", ESASRecConfig)
class ESASRec(NextItem):
    """SASRec with LiGR's blocks: see `NextItem` for targets and losses, `ESASRecBody` for what reads the events.

    Args:
        config: see `ESASRecConfig`.
        inputs: the recipe's features.
        tasks: one.
    """

    def body(self, config: ESASRecConfig, inputs: Inputs, width: int) -> Body:
        """See `NextItem`."""
        return ESASRecBody(config, width)
