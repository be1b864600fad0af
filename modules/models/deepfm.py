"""DeepFM: a factorisation machine and a tower on the same factors (Guo et al., IJCAI 2017, arXiv 1703.04247)."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.factorisation import Factorisation
from livetrain.modules.layers.fields import Fields
from livetrain.modules.layers.kernel import Kernel
from livetrain.modules.models.dnn import TowerConfig
from livetrain.modules.models.interactions import Interactions, PenalisedConfig
from livetrain.modules.models.registry import register_model
from livetrain.modules.models.wide_deep import Deep
from livetrain.modules.tasks.heads import Heads, outputs


class DeepFMConfig(TowerConfig, PenalisedConfig):
    """First-order weights, products of factors, and a tower on factors and dense features."""

    kind: Literal["deepfm"] = "deepfm"
    products: Literal["plain", "kernel"] = Field(
        "plain", description="of factors; or each pair of features through a learned matrix, as in kfm"
    )


class _Term(nn.Module):
    def __init__(self, config: DeepFMConfig, fields: Fields, dense: int) -> None:
        super().__init__()
        self.products = (Kernel if config.products == "kernel" else Factorisation)(fields, dense)
        self.deep = Deep(config, fields, dense)

    def forward(self, factors: list[Tensor], dense: Tensor, weights: Tensor | None) -> Tensor:
        """Args: factors (B, k) per field, dense (B, D), weights (B,). Returns: (B, T)."""
        return self.products(factors, dense, weights) + self.deep(factors, dense, weights)


@register_model("deepfm", DeepFMConfig)
class DeepFM(Interactions):
    """logit = first order + sum_{i<j} v_i . v_j + MLP([factors, dense]), see `Fields` and `Factorisation`.

    With `products: kernel` the products are those of KFM, v_i^T W_ij v_j, see `Kernel`.

    The tower reads dense features as they are, not times their vectors: its first layer learns the same functions of
    both.

    Args:
        config: see `DeepFMConfig`.
        inputs: the recipe's features.
        tasks: one logit each.

    Raises:
        BadInput: the tables do not fit, see `Fields` and `BiInteraction`.
    """

    def __init__(self, config: DeepFMConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        fields = Fields(inputs, sum(outputs(tasks)))
        super().__init__(fields, _Term(config, fields, len(inputs.dense)), Heads(tasks), config.l2)
