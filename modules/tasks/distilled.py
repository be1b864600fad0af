"""Another model's predictions, which a task of this model learns beside its own label."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from livetrain.configs.schema import Follower, GroupTask
from livetrain.configs.values import real
from livetrain.modules.tasks.groups import Members
from livetrain.modules.tasks.kind import Array
from livetrain.modules.tasks.number import Number
from livetrain.modules.tasks.registry import register_task

_LEAST = 1e-6  # of a teacher's probability, whose logit would be infinite


@register_task("distilled", Follower)
class Distilled(Number):
    """A teacher's probability p: the cross-entropy of the logit z that the task `of` has.

    loss = -p log sigmoid(z) - (1 - p) log(1 - sigmoid(z)),  prediction = sigmoid(z)

    Where the label of `of` is null, as of a candidate that was never shown, the row teaches by p alone. The metrics
    compare with the teacher: xAUC is how often two rows stand in its order.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 1503.02531, for two classes.
    """

    wanted = "a probability, from 0 to 1"
    output = "probability"
    follows = True

    @staticmethod
    def fits(labels: Array) -> Array:
        return (labels >= 0) & (labels <= 1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def forward(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)


class DistilledListTask(Follower, GroupTask):
    """A teacher's probability, whose order within a group is learned."""

    temperature: Annotated[float, real(0.01, 100)] = Field(
        1.0, description="divides the logits of both; the higher, the more the whole order counts beside the top"
    )


@register_task("distilled_list", DistilledListTask)
class DistilledList(Distilled):
    """A teacher's probabilities within a group: the divergence of two softmaxes.

    loss = mean over groups of sum_i q_i (log q_i - log s_i),  q = softmax(logit(p) / t),  s = softmax(z / t)

    over the rows i of a group; t is the temperature. A row of weight w counts as w rows, and every group counts alike.

    Args:
        task: see `DistilledListTask`.

    Source: Cao et al., "Learning to rank", ICML 2007, ListNet's top-one distributions, with a teacher's scores for
    relevance; Hinton et al., 1503.02531, for the temperature.
    """

    by_group = True

    def __init__(self, task: DistilledListTask) -> None:
        super().__init__(task)
        self.temperature = task.temperature

    def group_loss(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        members, weighed = Members(groups), weights.log()

        def log_shares(z: Tensor) -> Tensor:  # of one of the w rows that a row of weight w counts as
            z = z / self.temperature
            return z - members.each(members.logsumexp(z + weighed))

        teacher, student = log_shares(labels.logit(_LEAST)), log_shares(logits)
        added = torch.where(weights > 0, weights * teacher.exp() * (teacher - student), 0.0)
        return added, weights / members.each(members.sum(weights)).clamp(min=1e-30)
