"""Labels of 0 and 1 whose positives are to be picked out of their group."""

import torch
from torch import Tensor

from livetrain.configs.schema import GroupTask
from livetrain.modules.tasks.groups import Members
from livetrain.modules.tasks.ranked import Ranked
from livetrain.modules.tasks.registry import register_task


@register_task("listwise", GroupTask)
class Listwise(Ranked):
    """A label of 0 or 1: softmax within a group.

    loss = mean over groups of the mean over their positives i of -log(e^z_i / sum_{j of the group} e^z_j)

    A row weighs w in its group's mean and in the sum, and every group weighs 1. A group of one class has nothing to be
    ordered and does not count. The prediction is z itself: it orders the rows of a group, and says nothing across
    groups.

    Source: Cao et al., "Learning to rank: from pairwise approach to listwise approach", ICML 2007, ListNet's top-one
    cross-entropy, with labels that are shared out among the positives.
    """

    by_group = True

    def group_loss(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        members = Members(groups)
        of_positive = weights * labels
        positives, rest = (members.each(members.sum(part)) for part in (of_positive, weights * (1 - labels)))
        share = torch.where((of_positive > 0) & (rest > 0), of_positive / positives.clamp(min=1e-30), 0.0)
        return (members.each(members.logsumexp(logits + weights.log())) - logits) * share, share
