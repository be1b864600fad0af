"""UPGrad: each task's gradient projected onto the directions in which no task's loss rises."""

import torch
from scipy.optimize import nnls
from torch import Tensor

from livetrain.modules.gradients.combiner import register_combiner
from livetrain.modules.gradients.of_gram import ScaledConfig, Solver, root


@register_combiner("upgrad", ScaledConfig)
class UPGrad(Solver[ScaledConfig]):
    """w = sum_i argmin of v' K v over v >= e_i: the projections of all g_i onto the cone {x: <x, g_j> >= 0}, added up.

    PCGrad projects against one task after the other and may end in a conflict with the first; here K w >= 0 holds, so
    no task's loss rises to first order. Without conflicts w is 1.

    Each minimum is a problem of least squares with coefficients of at least 0: with K = R'R and v = e_i + d it is
    |R d + R e_i|^2 over d >= 0.

    Example: three gradients of which the last points against the sum of the others.
        >>> from livetrain.modules.gradients.combiner import Start
        >>> rows = torch.tensor([[1.0, 0.2], [0.0, 1.0], [-1.0, 0.1]], dtype=torch.float64)
        >>> combiner = UPGrad(ScaledConfig(kind="upgrad", scale="method"), Start(torch.zeros(3), seed=1))
        >>> weights = combiner(rows @ rows.T, None, 0)
        >>> bool(((rows @ rows.T @ weights) > -1e-9).all())
        True

    Source: Quinton and Rey, "Jacobian descent for multi-objective optimization", 2406.16232, section 3 and appendix B.
    """

    def solve(self, gram: Tensor) -> Tensor:
        factor = root(gram)
        weights = torch.ones(len(gram), dtype=torch.float64)
        for i in range(len(gram)):
            weights += torch.from_numpy(nnls(factor, -factor[:, i])[0])
        return weights
