"""DNN: embeddings and a multi-layer perceptron, with every sequence averaged."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from livetrain.configs.schema import ModelConfig, Task
from livetrain.configs.values import Dropout, Units
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.gather import Gather
from livetrain.modules.layers.mlp import MLP, Activation
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network
from livetrain.modules.tasks.heads import Heads, outputs


class TowerConfig(ModelConfig):
    """The keys of every model with one tower."""

    units: Units = Field([200, 80], description="hidden layers of the tower")
    activation: Activation = "relu"
    dropout: Dropout = 0.0


class DNNConfig(TowerConfig):
    """A tower on embeddings, mean-pooled sequences and dense features."""

    kind: Literal["dnn"] = "dnn"


@register_model("dnn", DNNConfig)
class DNN(Network):
    """logits = MLP([ids, mean of each sequence, dense]), one output per task.

    Args:
        config: see `DNNConfig`.
        inputs: the recipe's features.
        tasks: one logit each.
    """

    shares = True

    def __init__(self, config: DNNConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        self.gather = Gather(inputs, list(inputs.sequences))
        self.tower = MLP(self.gather.width, config.units, config.activation, config.dropout, sum(outputs(tasks)))
        self.heads = Heads(tasks)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        return self.heads(self.tower(self.gather(values, lengths, dense), weights).unbind(1))
