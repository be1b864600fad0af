"""The frame of the multi-task networks: one bottom, a trunk with an output per task, heads."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.schema import ModelConfig, Task
from livetrain.configs.values import Dropout, Units
from livetrain.modules.layers.bottom import BottomConfig, Reading
from livetrain.modules.layers.mlp import MLP
from livetrain.modules.network import Network, PerTask
from livetrain.modules.tasks.heads import Heads, outputs

Layers = Annotated[Units, Field(min_length=1)]


class TowersConfig(ModelConfig):
    """The keys of every model with a tower per task."""

    tower_units: Units = Field([64], description="hidden layers of each task's tower")
    dropout: Dropout = Field(0.0, description="in experts and towers")


class MultiTaskConfig(BottomConfig, TowersConfig):
    """The keys of most multi-task models: those of the bottom, and of each task's tower."""


def towers(config: TowersConfig, tasks: dict[str, Task], width: int) -> PerTask:
    """Return a perceptron with ReLU per task, (B, width) -> (B, the task's outputs)."""
    return PerTask(MLP(width, config.tower_units, "relu", config.dropout, count) for count in outputs(tasks))


class Towers(nn.Module):
    """The trunk of a network whose tasks share everything up to their towers: y_k = tower_k(x).

    Args:
        config: of the towers.
        tasks: one tower each.
        width: of x.
    """

    def __init__(self, config: TowersConfig, tasks: dict[str, Task], width: int) -> None:
        super().__init__()
        self.towers = towers(config, tasks, width)

    def forward(self, x: Tensor, weights: Tensor | None) -> list[Tensor]:
        """Args: x (B, width). Returns: the tasks' outputs, (B,) each."""
        out: list[Tensor] = []
        for tower in self.towers:
            out += tower(x).unbind(1)
        return out


class MultiTask(Network):
    """logits = heads(trunk(bottom(features))).

    A task's logit is built by modules of its own wherever the tasks part: autograd reaches a parameter from one logit
    alone exactly if it is that task's own, and a task's backward pass never computes another task's part.

    `trunk` is called once a step, as trunk(x, weights) -> the tasks' outputs, (B,) each, with x (B, width) what the
    bottom made: the place at which the tasks' gradients can be compared. Beyond x everything is ReLU, whose backward
    pass can be batched over tasks.

    Args:
        bottom: the recipe's features as one vector per row.
        trunk: everything from there to the logits.
        heads: turns them into what the tasks' losses and predictions take.
    """

    shares = True

    if TYPE_CHECKING:  # TorchScript would read it
        trunk: nn.Module

    def __init__(self, bottom: Reading, trunk: nn.Module, heads: Heads) -> None:
        super().__init__()
        self.bottom = bottom
        self.trunk = trunk
        self.heads = heads

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = self.bottom(values, lengths, dense, weights)
        return self.heads(self.trunk(x, weights))
