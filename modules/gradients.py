"""How the gradients of several tasks become one: task weights from the Gram matrix of the gradients.

Every combiner answers with weights w (T,), and the combined gradient is sum_t w_t g_t. What it needs to know of the
gradients g_t is in their Gram matrix K_ij = <g_i, g_j>, a few numbers however large the model and however many ranks
hold it. So this is plain arithmetic in float64, on the host, the same on every rank.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Gradients

# GradNorm's weights stay above this: a weight of 0 would have no gradient left to measure, one below would ascend.
_LEAST = 1e-3


class Combiner(nn.Module, ABC):
    """Gram matrix and losses -> task weights. What a combiner learns lies in its buffers, which checkpoints keep.

    A call takes one step: the weights are those before it, the buffers those after.
    """

    needs_gram = False
    needs_losses = False

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


class Sum(Combiner):
    """w = 1: the gradient of the sum of the losses.

    Args:
        tasks: T.

    Example:
        >>> Sum(2)(None, None, 0).tolist()
        [1.0, 1.0]
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks

    def forward(self, gram: Tensor | None, losses: Tensor | None, step: int) -> Tensor:
        return torch.ones(self.tasks, dtype=torch.float64)


class PCGrad(Combiner):
    """Project each task's gradient onto the normal planes of those it conflicts with, then add up.

    for each i: g = g_i;  for j != i in random order: if <g, g_j> < 0: g -= <g, g_j> / |g_j|^2 g_j;  the sum over i

    with the original g_j throughout. The random orders are a function of (seed, step), so nothing is left to save.

    Args:
        tasks: T.
        seed: of the orders.

    Example: two gradients of length 1 at 120 degrees, each made orthogonal to the other.
        >>> PCGrad(2, seed=1)(torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64), None, 0).tolist()
        [1.5, 1.5]

    Source: Yu et al., "Gradient surgery for multi-task learning", 2001.06782, algorithm 1.
    """

    needs_gram = True

    def __init__(self, tasks: int, seed: int) -> None:
        super().__init__()
        self.tasks, self.seed = tasks, seed

    def forward(self, gram: Tensor | None, losses: Tensor | None, step: int) -> Tensor:
        assert gram is not None  # see needs_gram; likewise below
        return project(gram, orders(self.tasks, self.seed, step))


def orders(tasks: int, seed: int, step: int) -> Tensor:
    """Return (T, T) int64: in row i a random order of all tasks, i included, a function of the arguments alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.stack([torch.randperm(tasks, generator=generator) for _ in range(tasks)])


def project(gram: Tensor, order: Tensor) -> Tensor:
    """Return PCGrad's weights: the projected gradients written in terms of the original ones, summed.

    A gradient g = sum_k c_k g_k has <g, g_j> = (K c)_j, and projecting it changes c_j alone.

    Args:
        gram: (T, T) float64.
        order: (T, T), row i the order in which task i meets the others; itself is passed over.

    Returns:
        (T,) float64, each at least 1.
    """
    total = torch.zeros(len(gram), dtype=gram.dtype)
    for i, others in enumerate(order.tolist()):
        c = torch.zeros(len(gram), dtype=gram.dtype)
        c[i] = 1.0
        for j in others:
            product = gram[j] @ c
            if j != i and product < 0 and gram[j, j] > 0:
                c[j] -= product / gram[j, j]
        total += c
    return total


class GradNorm(Combiner):
    """Learn weights under which all tasks train at similar rates.

    G_i = w_i |g_i|,  r_i = (L_i / L_i(0)) / mean,  L_grad = sum_i |G_i - constant(mean(G) r_i^alpha)|

    w descends the gradient of L_grad, which is sign(G_i - target_i) |g_i| since |w_i g_i| is linear in w_i: no graph of
    second order. Then the weights are scaled to sum to T. The paper takes |g_i| at the last shared layer; here it is
    the norm over all that the Gram matrix was measured on. Weights stay above a small positive number.

    Args:
        alpha: how strongly rates are pulled together; 0 only equals the norms.
        lr: of the weights.
        initial: (T,) float64, L_i(0); 0 takes the loss of the first step that has one.

    Source: Chen et al., "GradNorm", 1711.02257, equation 2 and algorithm 1. A binary task's L_i(0) is log 2, the loss
    of knowing nothing, as the paper suggests: the first batch's is noisy.
    """

    needs_gram = needs_losses = True

    weights: Tensor
    initial: Tensor

    def __init__(self, alpha: float, lr: float, initial: Tensor) -> None:
        super().__init__()
        self.alpha, self.lr = alpha, lr
        self.register_buffer("weights", torch.ones_like(initial))
        self.register_buffer("initial", initial.clone())

    def forward(self, gram: Tensor | None, losses: Tensor | None, step: int) -> Tensor:
        assert gram is not None
        assert losses is not None
        used = self.weights.clone()
        self.initial.copy_(torch.where(self.initial > 0, self.initial, losses))
        rates = torch.where(self.initial > 0, losses / self.initial, 1.0)
        norms = gram.diagonal().clamp(min=0).sqrt()
        weighted = used * norms
        target = weighted.mean() * (rates / rates.mean().clamp(min=torch.finfo(rates.dtype).tiny)) ** self.alpha
        self.weights -= self.lr * torch.sign(weighted - target) * norms
        self.weights.clamp_(min=_LEAST).mul_(len(used) / self.weights.sum())
        return used


class Uncertainty(Combiner):
    """Weigh by a learned variance per task: L = sum_i exp(-s_i) L_i + s_i / 2, s = log sigma^2, from s = 0.

    s follows plain gradient descent; at rest exp(-s_i) = 1 / (2 L_i).

    Args:
        tasks: T.
        lr: of s.

    Example:
        >>> combiner = Uncertainty(2, lr=0.1)
        >>> [combiner(None, torch.tensor([0.5, 2.0], dtype=torch.float64), step).tolist() for step in (0, 1)]
        [[1.0, 1.0], [1.0, 0.8607079764250578]]

    Source: Kendall, Gal and Cipolla, "Multi-task learning using uncertainty", 1705.07115, section 3.2, the form for
    classification.
    """

    needs_losses = True

    log_variance: Tensor

    def __init__(self, tasks: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.register_buffer("log_variance", torch.zeros(tasks, dtype=torch.float64))

    def forward(self, gram: Tensor | None, losses: Tensor | None, step: int) -> Tensor:
        assert losses is not None
        used = torch.exp(-self.log_variance)
        self.log_variance -= self.lr * (0.5 - used * losses)
        return used


def combiner(config: Gradients, initial: Tensor, seed: int) -> Combiner:
    """Build the combiner of a recipe.

    Args:
        config: the recipe's section.
        initial: (T,) float64, each task's loss before it has learned anything; 0 where that is not known.
        seed: of PCGrad's orders.
    """
    if config.kind == "pcgrad":
        return PCGrad(len(initial), seed)
    if config.kind == "gradnorm":
        return GradNorm(config.alpha, config.lr, initial)
    if config.kind == "uncertainty":
        return Uncertainty(len(initial), config.lr)
    return Sum(len(initial))


def cosines(gram: Tensor) -> Tensor:
    """Return the (T, T) cosines of a Gram matrix; 0 for a gradient that is zero."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    products = norms.unsqueeze(0) * norms.unsqueeze(1)
    return torch.where(products > 0, gram / products, 0.0)


def conflicting(gram: Tensor) -> bool:
    """Return whether any two gradients point against each other."""
    return bool((gram < 0).any())
