"""HSTU as a ranker: the candidate behind the events, in one stack of layers (Zhai et al., ICML 2024, 2402.17152)."""

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Section, Task
from livetrain.configs.values import Dropout, Few, Length, Size
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.layers.bottom import HistoriesConfig, Reading, check_features
from livetrain.modules.layers.domain import Space
from livetrain.modules.layers.gather import Gather
from livetrain.modules.layers.hstu import HSTULayer, Places, paired
from livetrain.modules.layers.pointwise import ago, clocks
from livetrain.modules.models.multitask import MultiTask, Towers, TowersConfig
from livetrain.modules.models.registry import register_model
from livetrain.modules.tasks.heads import Heads


class HSTUKeys(Section):
    """What stands between the features and the tasks."""

    kind: Literal["hstu"]
    width: Size = Field(32, description="size of an event and of the candidate")
    blocks: Few = Field(2, description="layers")
    heads: Size = 2
    length: Length = Field(50, description="events that have a place of their own: the history's max_length")
    block_dropout: Dropout = Field(0.0, description="in the layers")

    has_unit: ClassVar[bool] = False

    @model_validator(mode="after")
    def _divides(self) -> "HSTUKeys":
        if self.width % self.heads:
            raise BadInput(f"model.heads: {self.heads} heads do not divide width {self.width}; set another width")
        return self

    def bottom(self, config: HistoriesConfig, inputs: Inputs) -> Reading:
        """Return what reads a row's features."""
        return HSTUBottom(self, config, inputs)


class HSTUConfig(HSTUKeys, HistoriesConfig, TowersConfig):
    """Pointwise attention over one history with the candidate behind it; then a tower per task."""

    kind: Literal["hstu"] = "hstu"


class HSTUBottom(Reading):
    """x = [ids, pooled, dense, LayerNorm(c)],  c = layers(Dropout(sqrt(d) v + place)) at the candidate

    of the row's events v_k = W e_k + U s_k, oldest first, and behind them the candidate W e + a, with a learned vector
    a in the place of what was done: that is the label. Events see those before them, and no candidate; the candidate
    sees all events and itself. So events are computed once per request, and candidates do not change each other.

    Where the events have times, each layer knows how long before those that look they were; a candidate looks from the
    row's own time.

    Args:
        keys: of the layers.
        config: names the history.
        inputs: the recipe's features.

    Raises:
        BadInput: there is not one history, or it is longer than `length`; or see `check_features`.
    """

    def __init__(self, keys: HSTUKeys, config: HistoriesConfig, inputs: Inputs) -> None:
        super().__init__()
        check_features(config.attention, config.pooled, inputs)
        if len(config.attention) != 1:
            raise BadInput(
                f"model.attention: 'hstu' reads one history and not {len(config.attention)}; leave one here, and name "
                "other sequences in model.pooled"
            )
        part = config.attention[0]
        if inputs.limits.get(part.events[0], 0) > keys.length:
            raise BadInput(
                f"model.length: {keys.length} is less than the max_length {inputs.limits[part.events[0]]} of "
                f"'{part.events[0]}', whose newest events would share a place; give both one number"
            )
        timed = [name for name in part.events if name in inputs.timed]
        self.timed = timed[0] if timed else ""
        self.gather = Gather(inputs, config.pooled)
        self.space = Space(part, inputs, keys.width)
        self.waiting = nn.Parameter(torch.randn(keys.width) * 0.02)
        self.places = Places(keys.length + 1, keys.width)
        self.dropout = nn.Dropout(keys.block_dropout)
        layers = (
            HSTULayer(keys.width, keys.heads, keys.length + 1, keys.block_dropout, bool(timed))
            for _ in range(keys.blocks)
        )
        self.layers = cast(Sequence[HSTULayer], nn.ModuleList(layers))
        self.norm = nn.LayerNorm(keys.width)
        self.width = self.gather.width + keys.width

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """See `Reading`."""
        size = dense.size(0)
        events, count = self.space(values, lengths)
        clock: Tensor | None = None
        seconds: Tensor | None = None
        if self.timed != "":
            gaps = jagged.gaps_of(values, self.timed)
            clock, seconds = clocks(gaps, count, False), ago(gaps, count)
        event, own = jagged.seen_by(lengths, self.space.events[0], size, events.size(0))
        pairs = paired(event, own, seconds)
        candidates = self.space.projected(values, lengths, dense) + self.waiting
        candidates = self.dropout(self.places.behind(candidates, own))
        events = self.dropout(self.places(events, count))
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            events, candidates = layer.beside(events, count, clock, candidates, pairs, last)
        return torch.cat([self.gather(values, lengths, dense), self.norm(candidates)], 1)


@register_model("hstu", HSTUConfig)
class HSTU(MultiTask):
    """y_k = tower_k(x), x from `HSTUBottom`.

    The layers are those of `hstu_retrieval`: silu over u, v, q and k, a bias by place and time, LayerNorms without
    parameters. The authors' ranker has others; from it are the order of events and candidate, the mask, and the
    candidate's vector in the place of an action. Decided here: the row's other features, which there are tokens before
    the events, meet the candidate's state in the towers.

    Args:
        config: see `HSTUConfig`.
        inputs: the recipe's features.
        tasks: one tower each.

    Raises:
        BadInput: the config does not fit the features, see `HSTUBottom`.
    """

    def __init__(self, config: HSTUConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        bottom = HSTUBottom(config, config, inputs)
        super().__init__(bottom, Towers(config, tasks, bottom.width), Heads(tasks))
