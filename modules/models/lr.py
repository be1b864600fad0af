"""LR: logistic regression on ids, sequences and dense features."""

from typing import Literal

import torch
from torch import Tensor, nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import ModelConfig, Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network
from livetrain.modules.tasks.heads import Heads, outputs


class LRConfig(ModelConfig):
    """Logistic regression: a weight per id, a weight per dense feature and a bias."""

    kind: Literal["lr"] = "lr"


@register_model("lr", LRConfig)
class LR(Network):
    """logit_t = bias_t + w_t . dense + the weights of the row's ids, summed over features and events.

    The weight of an id for the t-th task is column t of its table row. Tables have a dim that is a multiple of 4
    because the fused kernels need one, so with one task a table of dim 4 serves and its columns 1 to 3 stay idle.

    Args:
        config: see `LRConfig`.
        inputs: the recipe's features.
        tasks: one logit each.

    Raises:
        BadInput: a table has fewer columns than there are tasks.
    """

    features: list[str]
    count: int

    def __init__(self, config: LRConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        self.count = sum(outputs(tasks))
        self.features = [*inputs.ids, *inputs.sequences]
        for name in inputs.like:
            raise BadInput(
                f"features.{name}.vectors: lr has a weight for each id and none for what it carries; leave vectors and "
                "like out, or use another model.kind"
            )
        for name, dim in {**inputs.ids, **inputs.sequences}.items():
            if dim < self.count:
                raise BadInput(
                    f"model.kind: lr keeps one column per output of the tasks, and the table of features.{name} has "
                    f"dim {dim} for {self.count}; raise its dim"
                )
        self.linear = nn.Linear(len(inputs.dense), self.count)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.heads = Heads(tasks)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        parts = [self.linear(dense)]  # (B, T)
        for name in self.features:
            parts.append(jagged.pool(values[name][:, : self.count], lengths[name], False))
        return self.heads(torch.stack(parts).sum(0).unbind(1))
