"""MMoE: multi-gate mixture of experts (Ma et al., KDD 2018, 10.1145/3219819.3220007)."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.schema import Task
from livetrain.configs.values import Few
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.experts import Experts, Gate, mix
from livetrain.modules.models.multitask import Layers, MultiTask, towers
from livetrain.modules.models.registry import register_model
from livetrain.modules.models.trunks import TrunkedConfig, bottom_of
from livetrain.modules.network import PerTask
from livetrain.modules.tasks.heads import Heads


class MMoEConfig(TrunkedConfig):
    """Experts that all tasks share, a gate and a tower per task."""

    kind: Literal["mmoe"] = "mmoe"
    experts: Few = 4
    expert_units: Layers = Field([128], description="layers of an expert")


class _Trunk(nn.Module):
    def __init__(self, config: MMoEConfig, tasks: dict[str, Task], width: int) -> None:
        super().__init__()
        names = [f"shared{i}" for i in range(config.experts)]
        self.experts = Experts(config.experts, width, config.expert_units, config.dropout)
        self.gates = PerTask(Gate(width, task, names) for task in tasks)
        self.towers = towers(config, tasks, config.expert_units[-1])

    def forward(self, x: Tensor, weights: Tensor | None) -> list[Tensor]:
        """Args: x (B, width). Returns: the tasks' outputs, (B,) each."""
        experts = [self.experts(x)]
        out: list[Tensor] = []
        for gate, tower in zip(self.gates, self.towers):  # noqa: B905  TorchScript knows no strict=
            out += tower(mix(gate(x), experts)).unbind(1)
        return out


@register_model("mmoe", MMoEConfig)
class MMoE(MultiTask):
    """y_k = tower_k(sum_i softmax(W_k x)_i E_i(x)), x from `Bottom`.

    Args:
        config: see `MMoEConfig`.
        inputs: the recipe's features.
        tasks: one gate and one tower each.

    Raises:
        BadInput: the config does not fit the features, see `Bottom`.
    """

    def __init__(self, config: MMoEConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        bottom = bottom_of(config, inputs)
        super().__init__(bottom, _Trunk(config, tasks, bottom.width), Heads(tasks))
