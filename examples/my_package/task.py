"""A kind of task of one's own, for ``tasks: {click: {label: click, kind: focal, gamma: 1.5}}`` (1708.02002)."""

import torch
from pydantic import Field
from torch import Tensor

from livetrain.configs.schema import Task
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.registry import register_task


class FocalTask(Task):
    gamma: float = Field(2.0, ge=0, description="how little well predicted rows count")


@register_task("focal", FocalTask)
class Focal(Binary):
    odds = False  # it makes predictions moderate

    def __init__(self, task: FocalTask) -> None:
        super().__init__(task)
        self.gamma, self.untrained = task.gamma, Binary.untrained / 2**task.gamma

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (torch.sigmoid(logits) - labels).abs() ** self.gamma * super().loss(logits, labels)
