"""MGDA: the shortest vector that the tasks' gradients span between them."""

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from livetrain.modules.gradients.combiner import register_combiner
from livetrain.modules.gradients.of_gram import ScaledConfig, Solver, root


@register_combiner("mgda", ScaledConfig)
class MGDA(Solver[ScaledConfig]):
    """w = argmin of |sum_i w_i g_i|^2 over weights that are at least 0 and add up to 1.

    No task's loss rises along the negative of that vector, and it is zero where none can fall without another's rising.
    Tasks with small gradients, as those of rare labels, get most of the weight.

    With K = R'R it is a problem of least squares with coefficients of at least 0: the minimum of
    |R v|^2 + (sum(v) - 1)^2, scaled to add up to 1, fulfils the conditions of the one above.

    Example: of two orthogonal gradients the longer one counts less.
        >>> from livetrain.modules.gradients.combiner import Start
        >>> combiner = MGDA(ScaledConfig(kind="mgda"), Start(torch.zeros(2), seed=1))
        >>> combiner(torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64), None, 0)
        tensor([0.4000, 1.6000], dtype=torch.float64)

    Source: Désidéri, "Multiple-gradient descent algorithm", 2012; Sener and Koltun, 1810.04650, section 3.1.
    """

    def solve(self, gram: Tensor) -> Tensor:
        factor = root(gram / gram.diagonal().mean())
        ones = np.ones((1, len(gram)))
        found, _ = nnls(np.concatenate([factor, ones]), np.append(np.zeros(len(gram)), 1.0))
        return torch.from_numpy(found / found.sum())
