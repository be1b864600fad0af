"""Labels of 0 and 1 whose positives are to stand before the negatives of their group."""

import math

from torch import Tensor
from torch.nn import functional as F

from livetrain.configs.schema import GroupTask
from livetrain.modules.tasks.groups import Members
from livetrain.modules.tasks.ranked import Ranked
from livetrain.modules.tasks.registry import register_task


@register_task("pairwise", GroupTask)
class Pairwise(Ranked):
    """A label of 0 or 1: Bayesian personalised ranking within a group.

    loss = mean over groups of the mean over their pairs (i, j), y_i = 1 and y_j = 0, of -log sigmoid(z_i - z_j)

    A pair weighs w_i w_j in its group's mean, and every group weighs 1. A group of one class has no pair and does not
    count. The prediction is z itself: it orders the rows of a group, and says nothing across groups.

    A step holds all pairs of its global batch: with groups of g rows of batch_size B, at most B g / 4 of them.

    Source: Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009, 1205.2618, section 4.
    """

    by_group = True
    untrained = math.log(2)

    def group_loss(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each row adds; that of a pair is its positive's."""
        members = Members(groups)
        of_positive, of_negative = weights * labels, weights * (1 - labels)
        positives, negatives = (members.each(members.sum(part)) for part in (of_positive, of_negative))
        i, j = members.pairs(of_positive > 0, of_negative > 0)
        each = F.softplus(logits[j] - logits[i]) * weights[i] * weights[j] / (positives[i] * negatives[i])
        count = of_positive / positives.where(of_positive > 0, 1.0) * (negatives > 0)
        return logits.new_zeros(len(logits)).index_add(0, i, each), count
