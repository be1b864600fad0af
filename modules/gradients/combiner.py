"""How the gradients of several tasks become one: task weights from the Gram matrix of the gradients.

Every combiner answers with weights w (T,), and the combined gradient is sum_t w_t g_t. What it needs to know of the
gradients g_t is in their Gram matrix K_ij = <g_i, g_j>, a few numbers however large the model and however many ranks
hold it. So this is plain arithmetic in float64, on the host, the same on every rank.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from livetrain.configs.registry import COMBINERS
from livetrain.configs.schema import Gradients

Config = TypeVar("Config", bound=Gradients)


@dataclass(frozen=True)
class Start:
    """What is known of the tasks before the first step.

    Args:
        losses: (T,) float64, each task's loss before it has learned anything; 0 where that is not known.
        seed: of the run.
    """

    losses: Tensor
    seed: int

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.losses)


class Combiner(nn.Module, ABC, Generic[Config]):
    """Gram matrix and losses -> task weights. What a combiner learns lies in its buffers, which checkpoints keep.

    A call takes one step: the weights are those before it, the buffers those after.

    Args:
        config: the recipe's section.
        start: what is known of the tasks.

    Attributes:
        needs_gram: it asks for the tasks' gradients.
        needs_losses: it asks for the tasks' losses.
        looks_again: it asks, by `learn`, for the losses of a batch once the parameters have moved too.
        by_rows: it weighs the tasks in each row of a table too, by `of_rows`; scope `rows` asks for that.
    """

    needs_gram = needs_losses = looks_again = by_rows = False

    def __init__(self, config: Config, start: Start) -> None:
        super().__init__()
        self.config, self.tasks = config, start.tasks

    def begin(self, losses: Tensor) -> None:
        """Take in, before the first step, the loss of a model that knows how often labels are positive and no more.

        Args:
            losses: (T,) float64; 0 where that is not known.
        """

    @abstractmethod
    def forward(self, gram: Tensor | None, losses: Tensor | None, step: int) -> Tensor:
        """Return the weights of a step.

        Args:
            gram: (T, T) float64, inner products of the tasks' gradients; may be None unless `needs_gram`.
            losses: (T,) float64, the tasks' losses over the global batch; may be None unless `needs_losses`.
            step: steps before this one.

        Returns:
            (T,) float64.
        """

    def of_rows(self, grams: Tensor, step: int) -> Tensor:
        """Return the weights of a step in each of n rows, if the combiner compares `by_rows`. Changes no buffer.

        Args:
            grams: (n, T, T) float64, inner products of the tasks' gradients of each row, on any device.
            step: steps before this one.

        Returns:
            (n, T) float64, on the same device.
        """
        raise NotImplementedError

    def learn(self, before: Tensor, after: Tensor) -> None:
        """Take in what a step has done to the losses of its own batch, if the combiner `looks_again`.

        Args:
            before: (T,) float64, those of `forward`.
            after: (T,) float64, of the same rows by the moved parameters, with the same random draws.
        """


def register_combiner(kind: str, config: type[Gradients] = Gradients) -> Callable[[type[Combiner]], type[Combiner]]:
    """Make the decorated `Combiner` that of ``gradients.kind: kind``.

    Args:
        kind: the name in recipes.
        config: checks the recipe's section; a subclass of `Gradients` where the kind has keys of its own.

    Raises:
        TypeError: the class is no `Combiner`.
    """

    return COMBINERS.entering(kind, config, Combiner)


def combiner(config: Gradients, start: Start) -> Combiner:
    """Build the combiner of a recipe's section."""
    return COMBINERS.owner(config.kind)(config, start)


def cosines(gram: Tensor) -> Tensor:
    """Return the (T, T) cosines of a Gram matrix; 0 for a gradient that is zero."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    products = norms.unsqueeze(0) * norms.unsqueeze(1)
    return torch.where(products > 0, gram / products, 0.0)


def conflicting(gram: Tensor) -> bool:
    """Return whether any two gradients point against each other."""
    return bool((gram < 0).any())
