"""Aligned-MTL: gradients made orthogonal and of one length."""

from torch import Tensor
from torchjd.aggregation import AlignedMTLWeighting

from livetrain.modules.gradients.combiner import Start, register_combiner
from livetrain.modules.gradients.of_gram import ScaledConfig, Solver


@register_combiner("aligned_mtl", ScaledConfig)
class AlignedMTL(Solver[ScaledConfig]):
    """K = V L V', w = s V L^-1/2 V' 1/T: of the closest gradients that are orthogonal and all of one length, the mean.

    As the paper has it, s^2 is the smallest eigenvalue, so the step shrinks where two tasks nearly agree; with
    scale: tasks it does not.

    Source: Senushkin et al., "Independent component alignment for multi-task learning", 2305.19000, algorithm 1; its
    arithmetic is torchjd's.
    """

    def __init__(self, config: ScaledConfig, start: Start) -> None:
        super().__init__(config, start)
        self._of_gram = AlignedMTLWeighting()

    def solve(self, gram: Tensor) -> Tensor:
        return self._of_gram(gram)
