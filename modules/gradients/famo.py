"""FAMO: weights under which all losses fall at one rate, found without any task's gradient."""

import torch
from pydantic import Field
from torch import Tensor

from livetrain.configs.schema import Measured
from livetrain.configs.values import Positive, PositiveOrZero
from livetrain.modules.gradients.combiner import Combiner, Start, register_combiner

_TINY = 1e-8  # added to losses, whose logarithm is taken
_MOMENTS, _EPS = (0.9, 0.999), 1e-8  # of Adam


class FAMOConfig(Measured):
    """Task weights under which all losses fall at one rate (2306.03792); a second forward pass per step."""

    lr: Positive = Field(0.025, description="of the task weights' logits, whatever the schedule")
    weight_decay: PositiveOrZero = Field(1e-3, description="of those logits")


@register_combiner("famo", FAMOConfig)
class FAMO(Combiner[FAMOConfig]):
    """w_i = c z_i / L_i with z = softmax(xi) and c such that the weights add up to 1.

    A task of which a batch tells nothing is left out.

    After the step the losses of the *same* batch are measured again, d_i = log L_i(before) - log L_i(after), and xi
    takes a step of Adam along J d, J the softmax's derivative: a task whose loss fell faster than the others' loses
    weight. Losses of the next batch instead would be mostly noise.

    Example: the first task's loss halves, the second's stays.
        >>> combiner = FAMO(FAMOConfig(kind="famo"), Start(torch.zeros(2), seed=1))
        >>> before = torch.tensor([1.0, 1.0], dtype=torch.float64)
        >>> combiner(None, before, 0).tolist()
        [0.5, 0.5]
        >>> combiner.learn(before, torch.tensor([0.5, 1.0], dtype=torch.float64))
        >>> bool(combiner(None, before, 1)[0] < 0.5)
        True

    Source: Liu et al., "FAMO: fast adaptive multitask optimization", 2306.03792, algorithm 1, losses being at least 0.
    """

    needs_losses = looks_again = True

    logits: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, config: FAMOConfig, start: Start) -> None:
        super().__init__(config, start)
        for name in ("logits", "mean", "square"):
            self.register_buffer(name, torch.zeros(self.tasks, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))

    def forward(self, gram: Tensor | None, losses: Tensor | None, step: int) -> Tensor:
        assert losses is not None  # see needs_losses
        there = losses > 0  # that of a task without a known label in the batch is 0, and so is its gradient
        shares = torch.where(there, self.logits.softmax(0) / (losses + _TINY), 0.0)
        return torch.where(there, shares / shares.sum(), 1.0)

    def learn(self, before: Tensor, after: Tensor) -> None:
        there, z = before > 0, self.logits.softmax(0)
        if not bool(there.any()):
            return
        fell = (before + _TINY).log() - (after + _TINY).log()
        fell = torch.where(there, fell, (z * fell)[there].sum() / z[there].sum())  # so that the others' mean stays
        slope = z * (fell - z @ fell) + self.config.weight_decay * self.logits
        self.steps += 1
        for moment, value, decay in ((self.mean, slope, _MOMENTS[0]), (self.square, slope.square(), _MOMENTS[1])):
            moment.mul_(decay).add_(value, alpha=1 - decay)
        mean, square = (
            moment / (1 - decay**self.steps) for moment, decay in zip((self.mean, self.square), _MOMENTS, strict=True)
        )
        self.logits -= self.config.lr * mean / (square.sqrt() + _EPS)
