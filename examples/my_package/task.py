"""A kind of task of one's own, for ``tasks: {click: {label: click, kind: poly, epsilon: 1.5}}`` (2204.12511)."""

import torch
from pydantic import Field
from torch import Tensor

from livetrain.configs.schema import Task
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.registry import register_task


class PolyTask(Task):
    epsilon: float = Field(1.0, ge=0, description="weight of the distance between label and prediction")


@register_task("poly", PolyTask)
class Poly(Binary):
    odds = False  # the distance draws predictions to 0 and 1

    def __init__(self, task: PolyTask) -> None:
        super().__init__(task)
        self.epsilon, self.untrained = task.epsilon, Binary.untrained + task.epsilon / 2

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().loss(logits, labels) + self.epsilon * (torch.sigmoid(logits) - labels).abs()
