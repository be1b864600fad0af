"""The frame of FM and its kin: first-order weights, and a term of the fields' factors."""

from torch import Tensor, nn

from livetrain.modules.layers.fields import Fields
from livetrain.modules.network import Network
from livetrain.modules.tasks.heads import Heads


class Interactions(Network):
    """logits = heads(first order + term(factors)), both from `Fields`.

    `term` is called as term(factors, dense, weights) -> (B, T), with a (B, d) factor per field.

    Args:
        fields: the recipe's features.
        term: what the factors add to the first-order logits.
        heads: turns the sums into what the tasks' losses and predictions take.
    """

    shares = True

    def __init__(self, fields: Fields, term: nn.Module, heads: Heads) -> None:
        super().__init__()
        self.fields = fields
        self.term = term
        self.heads = heads

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        first, factors = self.fields(values, lengths, dense)
        return self.heads((first + self.term(factors, dense, weights)).unbind(1))
