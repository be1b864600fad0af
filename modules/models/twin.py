"""TWIN: attention to what suits the candidate most in long histories (Chang et al., KDD 2023, arXiv 2302.02352)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.schema import Section, Task
from livetrain.configs.values import Few, Length, Size
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.layers.bottom import (
    Attention,
    Bottom,
    BottomConfig,
    PerHistory,
    Query,
    Reading,
    check_history,
    check_parallel,
)
from livetrain.modules.layers.search import Search
from livetrain.modules.models.multitask import MultiTask, MultiTaskConfig, Towers
from livetrain.modules.models.registry import register_model
from livetrain.modules.tasks.heads import Heads


class TWINKeys(Section):
    """What stands between the features and the tasks."""

    kind: Literal["twin"]
    search: list[Attention] = Field(
        min_length=1, description="long histories, of up to 10,000 events; model.attention has the short ones"
    )
    nearest: Length = Field(50, description="events of a long history that each head attends to")
    heads: Few = 2
    head_width: Size = Field(16, description="size of a head's queries, keys and values")

    has_unit: ClassVar[bool] = True

    def bottom(self, config: BottomConfig, inputs: Inputs) -> Reading:
        """Return what reads a row's features."""
        return TWINBottom(self, config, inputs)


class TWINConfig(TWINKeys, MultiTaskConfig):
    """Search in long histories beside attention to short ones; then a tower per task."""

    kind: Literal["twin"] = "twin"

    @property
    def jumps(self) -> bool:
        return True


class _Long(nn.Module):
    """A `Search` with the names of the features it reads."""

    events: list[str]
    side: list[str]

    def __init__(self, part: Attention, keys: TWINKeys, inputs: Inputs) -> None:
        super().__init__()
        self.query = Query(part, inputs)
        self.events, self.side = list(part.events), list(part.side)
        size = sum(inputs.sequences[name] for name in part.events)
        side = [inputs.sequences[name] for name in part.side]
        self.search = Search(size, side, keys.heads, keys.head_width, keys.nearest)
        self.width = self.search.width

    def forward(self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor) -> Tensor:
        """Return what each row found, (B, width); arguments as `Bottom`'s."""
        check_parallel(lengths, self.events + self.side)
        events = torch.cat([values[name] for name in self.events], 1)
        side = events[:, :0]
        if len(self.side) > 0:
            side = torch.cat([values[name] for name in self.side], 1)
        query, count = self.query(values, lengths, dense), lengths[self.events[0]]
        request = jagged.request_of(lengths)
        if count.size(0) == dense.size(0):
            request = torch.arange(dense.size(0), device=dense.device)
        elif request is None:  # one history for all rows
            request = torch.zeros(dense.size(0), dtype=torch.long, device=dense.device)
        return self.search(query, events, side, count, request)


class TWINBottom(Reading):
    """x = [ids, pooled, dense, each attention's sums, each search's answer], see `Bottom` and `Search`.

    Args:
        keys: of the search.
        config: of `Bottom`.
        inputs: the recipe's features.
    """

    def __init__(self, keys: TWINKeys, config: BottomConfig, inputs: Inputs) -> None:
        super().__init__()
        long: set[str] = set()
        for i, part in enumerate(keys.search):
            check_history(f"model.search.{i}", part, inputs)
            long |= {*part.events, *part.side}
        short = {*config.pooled, *(name for part in config.attention for name in part.events + part.side)}
        rest = {name: size for name, size in inputs.sequences.items() if name not in long - short}
        self.bottom = Bottom(config, replace(inputs, sequences=rest))
        parts = [_Long(part, keys, inputs) for part in keys.search]
        self.long = cast(Sequence[_Long], PerHistory(parts, keys.search, [part.width for part in parts]))
        self.width = self.bottom.width + sum(part.width for part in parts)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """See `Reading`."""
        parts = [self.bottom(values, lengths, dense, weights)]
        for long in self.long:
            parts.append(long(values, lengths, dense))
        return torch.cat(parts, 1)


@register_model("twin", TWINConfig)
class TWIN(MultiTask):
    """y_k = tower_k(x), x from `TWINBottom`.

    Args:
        config: see `TWINConfig`.
        inputs: the recipe's features.
        tasks: one tower each.

    Raises:
        BadInput: the config does not fit the features, see `Bottom`.
    """

    def __init__(self, config: TWINConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        bottom = TWINBottom(config, config, inputs)
        super().__init__(bottom, Towers(config, tasks, bottom.width), Heads(tasks))
