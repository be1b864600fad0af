"""STEM: embeddings of each task beside shared ones (Su et al., AAAI 2024, arXiv 2308.13537)."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Task
from livetrain.configs.values import Few, Units
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.bottom import Bottom, Reading
from livetrain.modules.layers.experts import Experts, Gate, mix
from livetrain.modules.layers.mlp import MLP
from livetrain.modules.models.multitask import Layers, MultiTask, MultiTaskConfig, towers
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import PerTask
from livetrain.modules.tasks.heads import Heads


class STEMConfig(MultiTaskConfig):
    """Embeddings and experts of each task and of all; a gate per task over all experts; then a tower per task."""

    kind: Literal["stem"] = "stem"
    own: Few = Field(1, description="experts of each task")
    shared: Few = Field(1, description="experts of all tasks")
    expert_units: Layers = Field([128], description="layers of an expert")
    gate_units: Units = Field([64], description="hidden layers of a gate")


class Streams(Reading):
    """x = [x_1, ..., x_K, x_S]: a `Bottom` of each task, and one of all, each on its part of every embedding.

    A row of a table is cut into K + 1 vectors of one size, so that a lookup finds all of them. Dense features, and
    vectors that events carry, are the same in every stream.

    Args:
        config: of `Bottom`.
        inputs: the recipe's features.
        count: K + 1.

    Attributes:
        stream: width of one stream.
        width: of x.

    Raises:
        BadInput: a table's dim is no multiple of K + 1.
    """

    dims: dict[str, int]

    def __init__(self, config: MultiTaskConfig, inputs: Inputs, count: int) -> None:
        super().__init__()
        self.count = count
        self.dims = dict(inputs.ids)
        for name, size in inputs.sequences.items():
            self.dims[name] = size - inputs.beside(name)[1]
        fitting = math.lcm(count, 4)  # a table's dim is a multiple of 4
        for name, dim in self.dims.items():
            if dim % count:
                table = inputs.tables.get(name, name)
                raise BadInput(
                    f"tables.{table}.dim: 'stem' cuts a row into {count} vectors, one for each task and one for all, "
                    f"and {dim} is no multiple of {count}; set it to {fitting * -(-dim // fitting)}"
                )
        part = Inputs(
            ids={name: dim // count for name, dim in inputs.ids.items()},
            sequences={name: size - self.dims[name] // count * (count - 1) for name, size in inputs.sequences.items()},
            dense=inputs.dense,
            like=inputs.like,
            timed=inputs.timed,
            tables=inputs.tables,
            limits=inputs.limits,
        )
        bottoms = [Bottom(config, part) for _ in range(count)]
        self.bottoms = nn.ModuleList(bottoms)
        self.stream = bottoms[0].width
        self.width = count * self.stream

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """See `Reading`."""
        streams: list[Tensor] = []
        for i, bottom in enumerate(self.bottoms):
            own: dict[str, Tensor] = {}
            for name, dim in self.dims.items():
                size = dim // self.count
                own[name] = torch.cat([values[name][:, i * size : (i + 1) * size], values[name][:, dim:]], 1)
            streams.append(bottom(own, lengths, dense, weights))
        return torch.cat(streams, 1)


class _Trunk(nn.Module):
    def __init__(self, config: STEMConfig, tasks: dict[str, Task], width: int) -> None:
        super().__init__()
        self.count = len(tasks)
        self.own = PerTask(Experts(config.own, width, config.expert_units, config.dropout) for _ in tasks)
        self.shared = Experts(config.shared, width, config.expert_units, config.dropout)
        names = [f"{task}_own{i}" for task in tasks for i in range(config.own)]
        names += [f"shared{i}" for i in range(config.shared)]
        last = [width, *config.gate_units][-1]
        self.gate_layers = PerTask(MLP(width, config.gate_units, "relu") for _ in tasks)
        self.gates = PerTask(Gate(last, task, names) for task in tasks)
        self.towers = towers(config, tasks, config.expert_units[-1])

    def forward(self, x: Tensor, weights: Tensor | None) -> list[Tensor]:
        """Args: x (B, (K + 1) width), the streams. Returns: the tasks' outputs, (B,) each."""
        streams = x.chunk(self.count + 1, 1)
        experts: list[Tensor] = []  # (B, m, d) each
        for i, own in enumerate(self.own):
            experts.append(own(streams[i]))
        shared = self.shared(streams[-1])
        out: list[Tensor] = []
        for k, (layers, gate, tower) in enumerate(zip(self.gate_layers, self.gates, self.towers)):  # noqa: B905
            shares = gate(layers(streams[k] + streams[-1]))
            groups = [expert if i == k else expert.detach() for i, expert in enumerate(experts)]
            out += tower(mix(shares, groups + [shared])).unbind(1)
        return out


@register_model("stem", STEMConfig)
class STEM(MultiTask):
    """y_k = tower_k(sum_i g_k(x_k + x_S)_i E_i),  E_i the experts of all tasks and the shared ones

    Task j's experts read x_j, the shared ones x_S (see `Streams`). Every task sees the experts of all, and of other
    tasks' experts it learns nothing: their outputs are cut off from its gradient. So the loss of task k reaches the
    embeddings and experts of task k and the shared ones alone. There is one level, for with several the shared stream
    would carry each task's loss into the others' embeddings.

    Args:
        config: see `STEMConfig`.
        inputs: the recipe's features; K tasks cut their embeddings into K + 1.
        tasks: embeddings, experts, a gate and a tower each.

    Raises:
        BadInput: the config does not fit the features, see `Bottom`; a table's dim is no multiple of K + 1.

    Source: 2308.13537, section 4.2; the gate's input, and that gates see all experts, as in the authors' code.
    """

    def __init__(self, config: STEMConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        bottom = Streams(config, inputs, len(tasks) + 1)
        super().__init__(bottom, _Trunk(config, tasks, bottom.stream), Heads(tasks))
