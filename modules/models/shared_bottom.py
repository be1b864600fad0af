"""Shared bottom: one network for all tasks up to a small tower each (Caruana, "Multitask learning", 1997)."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.mlp import MLP
from livetrain.modules.models.multitask import Layers, MultiTask, towers
from livetrain.modules.models.registry import register_model
from livetrain.modules.models.trunks import TrunkedConfig, bottom_of
from livetrain.modules.tasks.heads import Heads


class SharedBottomConfig(TrunkedConfig):
    """Shared layers, then a tower per task."""

    kind: Literal["shared_bottom"] = "shared_bottom"
    shared_units: Layers = Field([128], description="layers that all tasks share")


class _Trunk(nn.Module):
    def __init__(self, config: SharedBottomConfig, tasks: dict[str, Task], width: int) -> None:
        super().__init__()
        self.shared = MLP(width, config.shared_units, "relu", config.dropout)
        self.towers = towers(config, tasks, config.shared_units[-1])

    def forward(self, x: Tensor, weights: Tensor | None) -> list[Tensor]:
        """Args: x (B, width). Returns: the tasks' outputs, (B,) each."""
        shared = self.shared(x)
        out: list[Tensor] = []
        for tower in self.towers:
            out += tower(shared).unbind(1)
        return out


@register_model("shared_bottom", SharedBottomConfig)
class SharedBottom(MultiTask):
    """y_k = tower_k(shared(x)), x from `Bottom`.

    Args:
        config: see `SharedBottomConfig`.
        inputs: the recipe's features.
        tasks: one tower each.

    Raises:
        BadInput: the config does not fit the features, see `Bottom`.
    """

    def __init__(self, config: SharedBottomConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        bottom = bottom_of(config, inputs)
        super().__init__(bottom, _Trunk(config, tasks, bottom.width), Heads(tasks))
