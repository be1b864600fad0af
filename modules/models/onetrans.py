"""OneTrans: one transformer for a row's events and features (Zhang et al., 2025, arXiv 2510.26104)."""

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Section, Task
from livetrain.configs.values import Few, Length, Size
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.layers.bottom import HistoriesConfig, PerHistory, Reading, check_features
from livetrain.modules.layers.domain import Space
from livetrain.modules.layers.gather import Gather
from livetrain.modules.layers.onetrans import OneTransBlock, of_rows
from livetrain.modules.layers.pointwise import ago
from livetrain.modules.models.multitask import MultiTask, Towers, TowersConfig
from livetrain.modules.models.registry import register_model
from livetrain.modules.tasks.heads import Heads


class OneTransKeys(Section):
    """What stands between the features and the tasks."""

    kind: Literal["onetrans"]
    width: Size = Field(32, description="size of a token")
    tokens: Few = Field(4, description="tokens of the features that are no events")
    blocks: Few = 2
    heads: Size = 2
    expansion: Few = Field(2, description="hidden units of a token's perceptron for each of its numbers")
    length: Length = Field(50, description="newest events of each history that are tokens")
    newest: Length = Field(8, description="of all these, the ones that leave the last block; blocks between lose alike")

    has_unit: ClassVar[bool] = False

    @model_validator(mode="after")
    def _divides(self) -> "OneTransKeys":
        if self.width % self.heads:
            raise BadInput(f"model.heads: {self.heads} heads do not divide width {self.width}; set another width")
        return self

    def bottom(self, config: HistoriesConfig, inputs: Inputs) -> Reading:
        """Return what reads a row's features."""
        return OneTransBottom(self, config, inputs)


class OneTransConfig(OneTransKeys, HistoriesConfig, TowersConfig):
    """Events and features as tokens of one transformer; then a tower per task."""

    kind: Literal["onetrans"] = "onetrans"


class OneTransBottom(Reading):
    """x = [feature tokens, mean of the events left], behind `OneTransBlock`s

    Feature tokens: W [ids, pooled, dense], cut into L. Event tokens: W_i e + U_i s of each history i plus a vector of
    their place, the newest last. Histories that all have times are merged by them, with a vector for the history that
    an event is of; others follow each other as named, with a learned vector between them.

    No event sees a feature, so events are computed once per request, and their keys and values serve all candidates.

    Args:
        keys: of the blocks.
        config: names the histories.
        inputs: the recipe's features.

    Raises:
        BadInput: there is no history, or fewer events than `newest`; or see `check_features`.
    """

    counts: list[int]
    kept: list[int]
    timed: list[str]

    def __init__(self, keys: OneTransKeys, config: HistoriesConfig, inputs: Inputs) -> None:
        super().__init__()
        check_features(config.attention, config.pooled, inputs)
        if not config.attention:
            raise BadInput(
                "model.attention: 'onetrans' has no history here, and reads events; name one, or use kind: rankmixer"
            )
        names = [part.events[0] for part in config.attention]
        timed = [[name for name in part.events if name in inputs.timed][:1] for part in config.attention]
        merged = len(names) > 1 and all(timed)
        self.timed = [each[0] for each in timed] if merged else []
        self.counts = [min(keys.length, inputs.limits.get(name, keys.length)) for name in names]
        total = sum(self.counts) + (0 if merged else len(names) - 1)
        if total < keys.newest:
            raise BadInput(f"model.newest: {keys.newest} events leave the last block, of {total} in all; lower it")
        steps = range(1, keys.blocks + 1)
        self.kept = [total - (total - keys.newest) * step // keys.blocks for step in steps]
        self.gather = Gather(inputs, config.pooled)
        spaces = [Space(part, inputs, keys.width) for part in config.attention]
        widths = [keys.width] * len(names)
        self.spaces = cast(Sequence[Space], PerHistory(spaces, config.attention, widths))
        self.between = nn.Parameter(torch.randn(len(names) if merged else len(names) - 1, keys.width) * 0.02)
        self.places = nn.Parameter(torch.randn(total, keys.width) * 0.02)
        self.split = nn.Linear(self.gather.width, keys.tokens * keys.width)
        blocks = (OneTransBlock(keys.tokens, keys.width, keys.heads, keys.expansion) for _ in range(keys.blocks))
        self.blocks = cast(Sequence[OneTransBlock], nn.ModuleList(blocks))
        self.size = keys.width
        self.width = (keys.tokens + 1) * keys.width

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """See `Reading`."""
        size = dense.size(0)
        events, there = self._events(values, lengths, size)
        features = self.split(self.gather(values, lengths, dense)).unflatten(1, [-1, self.size])
        for i, block in enumerate(self.blocks):
            keep = self.kept[i]
            events, features = block(events, there, features, lengths, keep)
            there = there[:, there.size(1) - keep :]
        shown = there.unsqueeze(2)
        left = (events * shown).sum(1) / shown.sum(1).clamp(min=1)
        return torch.cat([features.flatten(1), jagged.of_rows(left, lengths, size)], 1)

    def _events(self, values: dict[str, Tensor], lengths: dict[str, Tensor], size: int) -> tuple[Tensor, Tensor]:
        """Return the event tokens (R, T, d), newest last, and which of them are there, (R, T)."""
        parts: list[Tensor] = []
        held: list[Tensor] = []
        since: list[Tensor] = []
        for i, space in enumerate(self.spaces):
            events, count = space(values, lengths)
            x, there = jagged.recent(events, count, self.counts[i])
            parts.append(x)
            held.append(there)
            if len(self.timed) > 0:
                seconds = ago(jagged.gaps_of(values, self.timed[i]), count).unsqueeze(1)
                since.append(jagged.recent(seconds, count, self.counts[i])[0].squeeze(2))
        rows = max([part.size(0) for part in parts])
        for i, part in enumerate(parts):  # a history that rows share beside one of each row's own
            if part.size(0) < rows:
                parts[i], held[i] = of_rows(part, lengths, rows), of_rows(held[i], lengths, rows)
                if len(self.timed) > 0:
                    since[i] = of_rows(since[i], lengths, rows)
        if len(self.timed) > 0:
            return self._merged(parts, held, since)
        tokens: list[Tensor] = []
        marks: list[Tensor] = []
        for i, part in enumerate(parts):
            if i > 0:
                tokens.append(self.between[i - 1].expand(rows, 1, -1))
                marks.append(torch.ones_like(held[i][:, :1]))
            tokens.append(part)
            marks.append(held[i])
        return torch.cat(tokens, 1) + self.places, torch.cat(marks, 1)

    def _merged(self, parts: list[Tensor], held: list[Tensor], since: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Sort the events of all histories by their time."""
        tokens = torch.cat([part + self.between[i] for i, part in enumerate(parts)], 1)
        there = torch.cat(held, 1)
        seconds = torch.cat(since, 1).masked_fill(~there, 2**62)  # what is not there comes first
        order = torch.argsort(seconds, dim=1, descending=True, stable=True)
        tokens = tokens.gather(1, order.unsqueeze(2).expand_as(tokens))
        return tokens + self.places, there.gather(1, order)


@register_model("onetrans", OneTransConfig)
class OneTrans(MultiTask):
    """y_k = tower_k(x), x from `OneTransBottom`.

    Decided here, as the paper leaves it open: learned places counted from the newest event; W is one linear layer; the
    towers read all feature tokens side by side, and the mean of the events that are left.

    Args:
        config: see `OneTransConfig`.
        inputs: the recipe's features.
        tasks: one tower each.

    Raises:
        BadInput: the config does not fit the features, see `OneTransBottom`.
    """

    def __init__(self, config: OneTransConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        bottom = OneTransBottom(config, config, inputs)
        super().__init__(bottom, Towers(config, tasks, bottom.width), Heads(tasks))
