"""CAGrad: near the mean gradient, the direction that helps the worst task most."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import minimize
from torch import Tensor

from livetrain.configs.values import real
from livetrain.modules.gradients.combiner import register_combiner
from livetrain.modules.gradients.of_gram import ScaledConfig, Solver


class CAGradConfig(ScaledConfig):
    """Near the mean gradient, the direction that helps the worst task most (2110.14048)."""

    c: Annotated[float, real(0, 0.9999)] = Field(
        0.5, description="how far from the mean gradient g0, in parts of its length; 0 is the plain sum's direction"
    )


@register_combiner("cagrad", CAGradConfig)
class CAGrad(Solver[CAGradConfig]):
    """argmax over |x - g0| <= c |g0| of min_i <x, g_i>, g0 the mean of the gradients.

    Its dual is over weights m that are at least 0 and add up to 1: with g_m = sum_i m_i g_i, minimise
    <g_m, g0> + c |g0| |g_m|; then x = g0 + c |g0| / |g_m| g_m.

    Source: Liu et al., "Conflict-averse gradient descent", 2110.14048, algorithm 1, without its factor 1 / (1 + c^2).
    """

    def solve(self, gram: Tensor) -> Tensor:
        k, n = (gram / gram.diagonal().mean()).numpy(), len(gram)
        mean = np.full(n, 1 / n)
        with_mean = k @ mean
        radius = self.config.c * np.sqrt(max(mean @ with_mean, 0.0))

        def length(m: np.ndarray) -> float:
            return float(np.sqrt(max(m @ k @ m, 1e-24)))

        found = minimize(
            lambda m: m @ with_mean + radius * length(m),
            mean,
            jac=lambda m: with_mean + radius * (k @ m) / length(m),
            bounds=[(0, 1)] * n,
            constraints={"type": "eq", "fun": lambda m: m.sum() - 1, "jac": lambda m: np.ones(n)},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 200},
        )
        m = np.clip(found.x, 0, None)
        return torch.from_numpy(mean + radius / length(m / m.sum()) * m / m.sum())
