"""The frame of FM and its kin: first-order weights, and a term of the fields' factors."""

from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.schema import ModelConfig
from livetrain.configs.values import real
from livetrain.modules.layers.distributed import Later
from livetrain.modules.layers.fields import Fields
from livetrain.modules.layers.precision import widen
from livetrain.modules.network import REGULARISER, Network
from livetrain.modules.tasks.heads import Heads


class PenalisedConfig(ModelConfig):
    """The keys of models whose rows may be held small."""

    l2: Annotated[float, real(0, 1e6)] = Field(
        0.0, description="times the sum of squares of what a row looks up, in the mean over rows, beside the loss"
    )


class Interactions(Network):
    """logits = heads(first order + term(factors)), both from `Fields`.

    `term` is called as term(factors, dense, weights) -> (B, T), with a (B, d) factor per field.

    In training with `l2` the answer has a further entry, `REGULARISER`: l2 times the mean over the global batch of
    sum_f |r_f|^2, r_f the table row of field f, so that an id is held the more often it is looked up. The tables'
    own weight_decay counts an id once a step, and not every optimizer has it.

    Args:
        fields: the recipe's features.
        term: what the factors add to the first-order logits.
        heads: turns the sums into what the tasks' losses and predictions take.
        l2: the penalty's weight; 0 leaves it out.
    """

    shares = True

    def __init__(self, fields: Fields, term: nn.Module, heads: Heads, l2: float = 0.0) -> None:
        super().__init__()
        self.fields = fields
        self.term = term
        self.heads = heads
        self.l2 = l2

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        first, factors = self.fields(values, lengths, dense)
        logits = self.heads((first + self.term(factors, dense, weights)).unbind(1))
        if self.training and not torch.jit.is_scripting():  # a scripted file only scores
            return logits | self._penalty(values, lengths, dense, weights)
        return logits

    @torch.jit.unused
    def _penalty(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the penalty, if there is one, as `REGULARISER` -> (): R times this rank's part, see `Network`."""
        if self.l2 == 0:
            return {}
        rows = torch.cat(self.fields.gather.each(values, lengths, dense.size(0)), 1)
        squares = widen(rows).square().sum(1)  # (B,)
        valid = torch.ones_like(squares) if weights is None else (weights > 0).to(squares.dtype)
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        return {REGULARISER: self.l2 * world * (squares * valid).sum() / Later(valid.sum()).total().clamp(min=1)}
