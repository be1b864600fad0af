"""PCGrad: gradients that conflict lose what points against each other."""

import torch
from torch import Tensor

from livetrain.modules.gradients.combiner import Start, register_combiner
from livetrain.modules.gradients.of_gram import Averaged, OfGram


@register_combiner("pcgrad", Averaged)
class PCGrad(OfGram[Averaged]):
    """Project each task's gradient onto the normal planes of those it conflicts with, then add up.

    for each i: g = g_i;  for j != i in random order: if <g, g_j> < 0: g -= <g, g_j> / |g_j|^2 g_j;  the sum over i

    with the original g_j throughout. The random orders are a function of (seed, step), so nothing is left to save.

    Example: two gradients of length 1 at 120 degrees, each made orthogonal to the other.
        >>> combiner = PCGrad(Averaged(kind="pcgrad"), Start(torch.zeros(2), seed=1))
        >>> combiner(torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64), None, 0).tolist()
        [1.5, 1.5]

    Source: Yu et al., "Gradient surgery for multi-task learning", 2001.06782, algorithm 1.
    """

    by_rows = True

    def __init__(self, config: Averaged, start: Start) -> None:
        super().__init__(config, start)
        self.seed = start.seed

    def weigh(self, gram: Tensor, step: int) -> Tensor:
        return project(gram, orders(self.tasks, self.seed, step))

    def of_rows(self, grams: Tensor, step: int) -> Tensor:
        return project(grams, orders(self.tasks, self.seed, step))  # one order per step, for all rows


def orders(tasks: int, seed: int, step: int) -> Tensor:
    """Return (T, T) int64: in row i a random order of all tasks, i included, a function of the arguments alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.stack([torch.randperm(tasks, generator=generator) for _ in range(tasks)])


def project(gram: Tensor, order: Tensor) -> Tensor:
    """Return PCGrad's weights: the projected gradients written in terms of the original ones, summed.

    A gradient g = sum_k c_k g_k has <g, g_j> = (K c)_j, and projecting it changes c_j alone.

    Args:
        gram: (T, T) float64, or (..., T, T): each matrix by itself.
        order: (T, T), row i the order in which task i meets the others; itself is passed over.

    Returns:
        (T,) or (..., T) float64, each at least 1.
    """
    lengths = gram.diagonal(dim1=-2, dim2=-1)
    total = torch.zeros_like(lengths)
    for i, others in enumerate(order.tolist()):
        c = torch.zeros_like(lengths)
        c[..., i] = 1.0
        for j in others:
            if j != i:
                product, length = (gram[..., j, :] * c).sum(-1), lengths[..., j]
                c[..., j] -= torch.where((product < 0) & (length > 0), product / length, 0.0)
        total += c
    return total
