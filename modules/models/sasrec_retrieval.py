"""SASRec as a retriever: which item comes next, at every event (Kang and McAuley, ICDM 2018, 1808.09781)."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.values import Few, Length, Size
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.buckets import Buckets
from livetrain.modules.layers.sequence import Attention, Positions, laid_out
from livetrain.modules.models.next_item import Body, NextItem, NextItemConfig, check_heads, xavier
from livetrain.modules.models.registry import register_model


class SASRecRetrievalConfig(NextItemConfig):
    """Causal self-attention over one history."""

    kind: Literal["sasrec_retrieval"] = "sasrec_retrieval"
    blocks: Few = Field(2, description="self-attention blocks")
    heads: Size = 1
    positions: Length = Field(64, description="newest events that have a position of their own")


class NormedBlock(nn.Module):
    """Self-attention, then a feed-forward layer, each added to its *normalised* input.

        q = LayerNorm(x),  x <- q + Attention(q, x, x);   f = LayerNorm(x),  x <- f + Dropout(W_2 Dropout(relu(W_1 f)))

    modules.layers.sequence.Block adds to the input itself, as plain pre-norm does, and looks at normalised events.

    Args:
        width: d.
        heads: of the attention.
        dropout: share dropped in training.

    Source: the block of the authors' code of SASRec, and of RecTools' `SASRecTransformerLayers`.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, bias=True)
        self.forward_norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, layout: Buckets) -> Tensor:
        """Args: values (N, d) and how their rows lie. Returns: (N, d)."""
        query = self.norm(values)
        values = query + self.attention(query, layout, values, layout, True)
        query = self.forward_norm(values)
        return query + self.dropout(self.out(self.dropout(self.hidden(query).relu())))


class SASRecBody(Body):
    """h = LayerNorm(blocks(Dropout(v + position)))

    Args:
        config: see `SASRecRetrievalConfig`.
        width: d.
    """

    def __init__(self, config: SASRecRetrievalConfig, width: int) -> None:
        super().__init__()
        check_heads(config.heads, width)
        self.positions = Positions(config.positions, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(NormedBlock(width, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width, eps=1e-8)
        xavier(self)

    def forward(self, events: Tensor, count: Tensor, values: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        """See `Body`."""
        states = self.dropout(self.positions(events, count))
        layout = laid_out(count, events.size(0))
        for block in self.blocks:
            states = block(states, layout)
        return self.norm(states)


@register_model("sasrec_retrieval", SASRecRetrievalConfig)
class SASRecRetrieval(NextItem):
    """SASRec: see `NextItem` for targets and losses, `SASRecBody` for what reads the events.

    Args:
        config: see `SASRecRetrievalConfig`.
        inputs: the recipe's features.
        tasks: one.
    """

    def body(self, config: SASRecRetrievalConfig, inputs: Inputs, width: int) -> Body:
        """See `NextItem`."""
        return SASRecBody(config, width)
