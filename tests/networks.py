"""A small multi-task network: attention below, experts in the middle, a tower a task above."""

from typing import Literal

import torch
from torch import Tensor, nn

from configs.schema import ModelConfig
from modules.inputs import Inputs
from modules.layers.attention import ActivationUnit
from modules.layers.gather import Gather
from modules.layers.mlp import MLP
from modules.models.registry import register


class ExpertsConfig(ModelConfig):
    kind: Literal["test_experts"] = "test_experts"
    activation: Literal["dice", "relu"] = "dice"


class Trunk(nn.Module):
    """One shared expert and one of each task's own, mixed by the task's own gate."""

    def __init__(self, width: int, tasks: int, activation: str) -> None:
        super().__init__()
        self.shared = MLP(width, [8], activation)
        self.own = nn.ModuleList(MLP(width, [8], activation) for _ in range(tasks))
        self.gates = nn.ModuleList(nn.Linear(width, 2) for _ in range(tasks))

    def forward(self, x: Tensor, weights: Tensor | None) -> list[Tensor]:
        shared, out = self.shared(x, weights), []
        for own, gate in zip(self.own, self.gates, strict=True):
            mix = gate(x).softmax(1)
            out.append(mix[:, :1] * own(x, weights) + mix[:, 1:] * shared)
        return out


@register("test_experts", ExpertsConfig)
class Experts(nn.Module):
    """Of the recipe in `tests.twins`: the history looked at by the movie, the rest side by side."""

    def __init__(self, config: ExpertsConfig, inputs: Inputs, tasks) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.gather = Gather(inputs, [])
        dim, side = inputs.sequences["history"], inputs.sequences["rating"]
        self.unit = ActivationUnit(dim, side, [8], config.activation)
        self.trunk = Trunk(self.gather.width + dim + side, len(self.tasks), config.activation)
        self.towers = nn.ModuleList(MLP(8, [4], config.activation, outputs=1) for _ in self.tasks)

    def forward(self, values, lengths, dense: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        x = self.gather(values, lengths, dense)
        history = self.unit(x[:, 8:16], values["history"], values["rating"], lengths["history"], weights)
        hidden = self.trunk(torch.cat([x, history], 1), weights)
        return {task: tower(h, weights)[:, 0] for task, tower, h in zip(self.tasks, self.towers, hidden, strict=True)}


def own_of(name: str) -> int | None:
    """Return the task that alone uses a parameter of `Experts`, by the parameter's name."""
    parts = name.split(".")
    for kind in ("own", "gates", "towers"):
        if kind in parts:
            return int(parts[parts.index(kind) + 1])
    return None
