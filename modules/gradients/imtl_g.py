"""IMTL-G: a gradient that is as long along every task's."""

from torch import Tensor
from torchjd.aggregation import IMTLGWeighting

from livetrain.modules.gradients.combiner import Start, register_combiner
from livetrain.modules.gradients.of_gram import ScaledConfig, Solver


@register_combiner("imtl_g", ScaledConfig)
class ImtlG(Solver[ScaledConfig]):
    """w such that sum_i w_i g_i has one projection on all g_j / |g_j|: v = pinv(K) sqrt(diag K), w = v / sum(v).

    Weights may be negative. Where v adds up to nearly nothing, the step is that of the plain sum.

    Source: Liu et al., "Towards impartial multi-task learning", ICLR 2021, section 3.1; its arithmetic is torchjd's.
    """

    def __init__(self, config: ScaledConfig, start: Start) -> None:
        super().__init__(config, start)
        self._of_gram = IMTLGWeighting()

    def solve(self, gram: Tensor) -> Tensor:
        return self._of_gram(gram)
