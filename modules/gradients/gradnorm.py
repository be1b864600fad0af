"""GradNorm: weights under which all tasks train at similar rates."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from livetrain.configs.schema import Gradients
from livetrain.configs.values import Positive, real
from livetrain.modules.gradients.combiner import Combiner, Start, register_combiner

# Weights stay above this: a weight of 0 would have no gradient left to measure, one below would ascend.
_LEAST = 1e-3


class GradNormConfig(Gradients):
    """Task weights that make the tasks train at similar rates (1711.02257)."""

    alpha: Annotated[float, real(0, 100)] = Field(1.5, description="how strongly the rates are pulled together")
    lr: Positive = Field(0.025, description="of the task weights, whatever the schedule")


@register_combiner("gradnorm", GradNormConfig)
class GradNorm(Combiner[GradNormConfig]):
    """Learn weights under which all tasks train at similar rates.

    G_i = w_i |g_i|,  r_i = (L_i / L_i(0)) / mean,  L_grad = sum_i |G_i - constant(mean(G) r_i^alpha)|

    w descends the gradient of L_grad, which is sign(G_i - target_i) |g_i| since |w_i g_i| is linear in w_i: no graph of
    second order. Then the weights are scaled to sum to T. The paper takes |g_i| at the last shared layer; here it is
    the norm over all that the Gram matrix was measured on. Weights stay above a small positive number.

    L_i(0) of a task that predicts a probability is the entropy of its label, p the share of positives in the training
    split: -p log p - (1 - p) log(1 - p). With log 2, which is that at p = 1/2, a task with rare positives would look
    trained from the first step on, and its weight would fall. Of any other task it is the first loss that is not 0.

    Source: Chen et al., "GradNorm", 1711.02257, equation 2 and algorithm 1; there L_i(0) is the first batch's.
    """

    needs_gram = needs_losses = True

    weights: Tensor
    initial: Tensor

    def __init__(self, config: GradNormConfig, start: Start) -> None:
        super().__init__(config, start)
        self.register_buffer("weights", torch.ones_like(start.losses))
        self.register_buffer("initial", start.losses.clone())

    def begin(self, losses: Tensor) -> None:
        self.initial.copy_(torch.where(losses > 0, losses, self.initial))

    def forward(self, gram: Tensor | None, losses: Tensor | None, step: int) -> Tensor:
        assert gram is not None
        assert losses is not None
        used = self.weights.clone()
        self.initial.copy_(torch.where(self.initial > 0, self.initial, losses))
        rates = torch.where(self.initial > 0, losses / self.initial, 1.0)
        norms = gram.diagonal().clamp(min=0).sqrt()
        weighted = used * norms
        target = weighted.mean() * (rates / rates.mean().clamp(min=torch.finfo(rates.dtype).tiny)) ** self.config.alpha
        self.weights -= self.config.lr * torch.sign(weighted - target) * norms
        self.weights.clamp_(min=_LEAST).mul_(len(used) / self.weights.sum())
        return used
