"""Labels of 0 and 1 whose probability is to order the rows of a group too."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from livetrain.configs.schema import GroupTask
from livetrain.configs.values import real
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.groups import Members
from livetrain.modules.tasks.registry import register_task


class JRCTask(GroupTask):
    """A label of 0 or 1, predicted in itself and within its group."""

    alpha: Annotated[float, real(0, 1)] = Field(0.5, description="share of the cross-entropy; the rest is the group's")


@register_task("jrc", JRCTask)
class JRC(Binary):
    """A label of 0 or 1: joint optimisation of ranking and calibration, by one logit per class, f_0 and f_1.

    loss_i = alpha CE(z_i, y_i) - (1 - alpha) log(e^f_i[y_i] / sum_{j of i's group} e^f_j[y_i]),  z = f_1 - f_0,
    prediction = sigmoid(z)

    The second term is that of a generative model: which row of the group is it, given the label? It leaves f_1 and f_0
    free by a constant per group, so that the first term can calibrate their difference. The loss is the mean over
    rows; a row of weight w counts as w rows, in the sum over the group too.

    With `negatives_kept` the correction is added to f_1, and cancels in the second term.

    Args:
        task: see `JRCTask`.

    Source: Sheng et al., "Joint optimization of ranking and calibration with contextualized hybrid model", KDD 2023,
    2208.06164, section 3 and its listing: all rows of the context are in the sum, those with the row's own label too.
    """

    by_group = True
    outputs = 2
    untrained = 0.0  # it depends on how large groups are

    def __init__(self, task: JRCTask) -> None:
        super().__init__(task)
        self.alpha = task.alpha

    def score(self, outputs: Tensor) -> Tensor:
        return outputs[:, 1] - outputs[:, 0]

    def group_loss(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        members, log_weights = Members(groups), weights.log()
        sums = [members.each(members.logsumexp(column + log_weights)) for column in logits.unbind(1)]
        generative = torch.where(labels > 0, sums[1] - logits[:, 1], sums[0] - logits[:, 0])
        calibrated = F.binary_cross_entropy_with_logits(self.score(logits), labels, reduction="none")
        return (self.alpha * calibrated + (1 - self.alpha) * generative) * weights, weights
