"""What the methods have in common that weigh tasks by the Gram matrix of their gradients and by nothing else."""

from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from livetrain.configs.schema import Gradients
from livetrain.configs.values import real
from livetrain.modules.gradients.combiner import Combiner, Config, Start

_MOST = 1e4  # a weight beyond this comes from a division by nearly nothing: gradients that cancel


class Averaged(Gradients):
    """Of methods that can take the gradients' products from several steps: one step's are mostly noise."""

    average: Annotated[float, real(0, 0.9999)] = Field(
        0.0, description="decay of a running mean of the gradients' products, as 0.99; 0: of this step alone"
    )


class OfGram(Combiner[Config]):
    """Answers with `weigh` of the step's Gram matrix, or of its running mean over steps.

    The mean has no bias towards its start: after n steps it is sum_s a^(n-s) K_s over sum_s a^(n-s).

    Args:
        config: the recipe's section, an `Averaged`.
        start: what is known of the tasks.
    """

    needs_gram = True

    mean: Tensor
    share: Tensor

    def __init__(self, config: Config, start: Start) -> None:
        super().__init__(config, start)
        self.average: float = getattr(config, "average", 0.0)
        if self.average:
            self.register_buffer("mean", torch.zeros(self.tasks, self.tasks, dtype=torch.float64))
            self.register_buffer("share", torch.zeros((), dtype=torch.float64))  # 1 - a^n

    def forward(self, gram: Tensor | None, losses: Tensor | None, step: int) -> Tensor:
        assert gram is not None  # see needs_gram
        if self.average:
            self.mean.mul_(self.average).add_(gram, alpha=1 - self.average)
            self.share.mul_(self.average).add_(1 - self.average)
            gram = self.mean / self.share
        return self.weigh(gram, step)

    @abstractmethod
    def weigh(self, gram: Tensor, step: int) -> Tensor:
        """Return the weights (T,) float64 of a Gram matrix (T, T)."""


class ScaledConfig(Averaged):
    """Of methods whose weights are a direction first of all."""

    scale: Literal["tasks", "method"] = Field(
        "tasks", description="tasks: weights add up to the number of tasks, as those of sum; method: as in its paper"
    )


class Solver(OfGram[Config]):
    """Answers with `solve` of the tasks that have a gradient; where that finds nothing, with 1, as a plain sum."""

    def weigh(self, gram: Tensor, step: int) -> Tensor:
        weights = torch.ones(self.tasks, dtype=torch.float64)
        there = gram.diagonal() > 0
        count = int(there.sum())
        if count > 1:
            found = self.solve(gram[there][:, there])
            if getattr(self.config, "scale", "tasks") == "tasks":
                found = found * (count / found.sum())
            if bool((found.abs() < _MOST).all()):  # not of nan either
                weights[there] = found
        return weights

    @abstractmethod
    def solve(self, gram: Tensor) -> Tensor:
        """Return the weights (n,) float64 of n gradients none of which is zero, by their Gram matrix (n, n) float64."""


def root(gram: Tensor) -> np.ndarray:
    """Return R (n, n) with R'R = K."""
    values, vectors = torch.linalg.eigh(gram)
    return (values.clamp(min=0).sqrt().unsqueeze(1) * vectors.T).numpy()
