"""HSTU as a retriever: pointwise attention over the events and their times (Zhai et al., ICML 2024, 2402.17152)."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.errors import BadInput
from livetrain.configs.values import Few, Length, Size
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.layers.hstu import HSTULayer, Places
from livetrain.modules.layers.pointwise import clocks
from livetrain.modules.models.next_item import Body, NextItem, NextItemConfig, check_heads, check_places
from livetrain.modules.models.registry import register_model


class HSTURetrievalConfig(NextItemConfig):
    """Pointwise causal attention over one history, which looks at times where the history has some."""

    kind: Literal["hstu_retrieval"] = "hstu_retrieval"
    blocks: Few = Field(2, description="layers")
    heads: Size = 1
    length: Length = Field(
        50, description="what attention's sums are divided by, and events that have a place: the history's max_length"
    )
    seen_from: Literal["next", "event"] = Field(
        "next", description="with times: an event sees those before it from the time of the next one, or from its own"
    )


class HSTUBody(Body):
    """h = layers(Dropout(sqrt(d) v + place))

    With times each layer knows how long before the *next* event those seen were: the one whose item is to be found, and
    behind the newest the row's own time, which a server knows when it is asked. With ``seen_from: event`` it knows how
    long before the event itself.

    Args:
        config: see `HSTURetrievalConfig`.
        inputs: the recipe's features.
        width: d.
    """

    def __init__(self, config: HSTURetrievalConfig, inputs: Inputs, width: int) -> None:
        super().__init__()
        check_heads(config.heads, width)
        check_places("length", config.length, config, inputs)
        timed = [name for name in config.attention[0].events if name in inputs.timed]
        if not timed and config.seen_from != "next":
            raise BadInput(
                "model.seen_from: counts where the history has times; say those by times and until of the history's "
                "feature, or leave it out"
            )
        self.timed, self.ahead = timed[0] if timed else "", config.seen_from == "next"
        self.places = Places(config.length, width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            HSTULayer(width, config.heads, config.length, config.dropout, bool(timed)) for _ in range(config.blocks)
        )

    def forward(self, events: Tensor, count: Tensor, values: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        """See `Body`."""
        clock: Tensor | None = None
        if self.timed != "":
            clock = clocks(jagged.gaps_of(values, self.timed), count, self.ahead)
        states = self.dropout(self.places(events, count))
        for layer in self.layers:
            states = layer(states, count, clock)
        return states


@register_model("hstu_retrieval", HSTURetrievalConfig)
class HSTURetrieval(NextItem):
    """HSTU: see `NextItem` for targets and losses, `HSTUBody` for what reads the events.

    Args:
        config: see `HSTURetrievalConfig`.
        inputs: the recipe's features.
        tasks: one.
    """

    def body(self, config: HSTURetrievalConfig, inputs: Inputs, width: int) -> Body:
        """See `NextItem`."""
        return HSTUBody(config, inputs, width)
