"""Nash-MTL: the bargain of tasks that each want their own gradient."""

import torch
from torch import Tensor

from livetrain.modules.gradients.combiner import register_combiner
from livetrain.modules.gradients.of_gram import ScaledConfig, Solver


@register_combiner("nash_mtl", ScaledConfig)
class NashMTL(Solver[ScaledConfig]):
    """w > 0 with K w = 1 / w: the direction in a ball that maximises the sum of log <x, g_i>.

    That w minimises w' K w / 2 - sum(log w), which is convex; Newton's method with halved steps finds it. No task's
    loss rises to first order, and what each gains counts by its share, however long its gradient is.

    Example:
        >>> from livetrain.modules.gradients.combiner import Start
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
        >>> weights = NashMTL(ScaledConfig(kind="nash_mtl"), Start(torch.zeros(2), seed=1)).solve(gram)
        >>> torch.allclose(gram @ weights, 1 / weights)
        True

    Source: Navon et al., "Multi-task learning as a bargaining game", 2202.01017, claim 3.1; there by a sequence of
    convex problems.
    """

    def solve(self, gram: Tensor) -> Tensor:
        size = gram.diagonal().mean()
        k = gram / size + _RIDGE * torch.eye(len(gram), dtype=gram.dtype)

        def value(at: Tensor) -> float:
            return float(at @ k @ at / 2 - at.log().sum()) if bool((at > 0).all()) else float("inf")

        w = torch.ones(len(k), dtype=torch.float64)
        for _ in range(_STEPS):
            slope = k @ w - 1 / w
            move = torch.linalg.solve(k + torch.diag(1 / w.square()), slope)
            part = 1.0
            while part > _SMALL and not value(w - part * move) < value(w):
                part /= 2
            if part <= _SMALL:  # as low as numbers tell
                break
            w = w - part * move
        return w / size.sqrt()


_STEPS = 100
_SMALL = 1e-9
_RIDGE = 1e-10  # where some sum of the gradients is zero, nothing else would bound w
