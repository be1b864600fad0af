"""CGC and PLE: progressive layered extraction (Tang et al., RecSys 2020, 10.1145/3383313.3412236)."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.schema import Task
from livetrain.configs.values import Few, whole
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.experts import Level
from livetrain.modules.models.multitask import Layers, MultiTask, MultiTaskConfig, towers
from livetrain.modules.models.registry import register_model
from livetrain.modules.models.trunks import TrunkedConfig, bottom_of
from livetrain.modules.tasks.heads import Heads


class ExpertsConfig(MultiTaskConfig):
    """The keys of every model with experts of each task and of all."""

    own: Few = Field(1, description="experts of each task, a level")
    shared: Few = Field(1, description="experts of all tasks, a level")
    expert_units: Layers = Field([128], description="layers of an expert")


class CGCConfig(ExpertsConfig, TrunkedConfig):
    """One level of own and shared experts, a gate and a tower per task."""

    kind: Literal["cgc"] = "cgc"


class PLEConfig(ExpertsConfig, TrunkedConfig):
    """CGC in several levels."""

    kind: Literal["ple"] = "ple"
    levels: Annotated[int, *whole(1, 32)] = 2


class Trunk(nn.Module):
    """`Level`s, then a tower per task.

    Args:
        config: experts and towers.
        tasks: own experts, a gate in each level, and a tower, each.
        width: of the input.
        levels: how many.
    """

    def __init__(self, config: ExpertsConfig, tasks: dict[str, Task], width: int, levels: int) -> None:
        super().__init__()
        sizes = [width] + [config.expert_units[-1]] * levels
        self.streams = len(tasks) + 1
        self.levels = nn.ModuleList(
            Level(
                list(tasks),
                sizes[level],
                config.own,
                config.shared,
                config.expert_units,
                config.dropout,
                label="" if levels == 1 else f"level{level}.",
                last=level == levels - 1,
            )
            for level in range(levels)
        )
        self.towers = towers(config, tasks, sizes[-1])

    def forward(self, x: Tensor, weights: Tensor | None) -> list[Tensor]:
        """Args: x (B, width). Returns: the tasks' outputs, (B,) each."""
        streams = [x] * self.streams
        for level in self.levels:
            streams = level(streams)
        out: list[Tensor] = []
        for i, tower in enumerate(self.towers):
            out += tower(streams[i]).unbind(1)
        return out


@register_model("cgc", CGCConfig)
class CGC(MultiTask):
    """y_k = tower_k(the k-th stream of one `Level` on x), x from `Bottom`.

    Args:
        config: see `CGCConfig`.
        inputs: the recipe's features.
        tasks: own experts, a gate and a tower each.

    Raises:
        BadInput: the config does not fit the features, see `Bottom`.
    """

    def __init__(self, config: CGCConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        bottom = bottom_of(config, inputs)
        super().__init__(bottom, Trunk(config, tasks, bottom.width, levels=1), Heads(tasks))


@register_model("ple", PLEConfig)
class PLE(MultiTask):
    """y_k = tower_k(the k-th stream after several `Level`s on x), x from `Bottom`.

    Args:
        config: see `PLEConfig`.
        inputs: the recipe's features.
        tasks: own experts and a gate in each level, and a tower, each.

    Raises:
        BadInput: the config does not fit the features, see `Bottom`.
    """

    def __init__(self, config: PLEConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        bottom = bottom_of(config, inputs)
        super().__init__(bottom, Trunk(config, tasks, bottom.width, config.levels), Heads(tasks))
