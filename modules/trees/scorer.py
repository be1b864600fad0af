"""What boosted trees answer: features in, a logit per task out."""

import torch
from torch import Tensor, nn

from livetrain.modules.fusion import Fused
from livetrain.modules.serving.answers import Answers
from livetrain.modules.serving.inputs import repeated
from livetrain.modules.trees.columns import Columns
from livetrain.modules.trees.trees import Trees


class Boosted(nn.Module):
    """Columns of a row's features, then a forest per task.

    Args:
        columns: what makes the numbers.
        trees: a forest per task, in the tasks' order.
        tasks: their names.
    """

    tasks: list[str]

    def __init__(self, columns: Columns, trees: list[Trees], tasks: list[str]) -> None:
        super().__init__()
        self.columns = columns
        self.trees = nn.ModuleList(trees)
        self.tasks = tasks

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return task -> (B,) float32 logits; arguments as of an exported file."""
        numbers = self.columns(ids, lengths, dense)
        out: dict[str, Tensor] = {}
        for i, trees in enumerate(self.trees):
            out[self.tasks[i]] = trees(numbers).float()
        return out


class Ranker(nn.Module):
    """What is exported of a fitted ranker: predictions by task.

    Args:
        logits: as `FittedRanker.module` has it.
        kinds: the tasks' kinds, by name.
        names: the recipe's features.
        fused: the formula that makes one score more of the predictions, `FUSED`.
    """

    names: list[str]

    def __init__(
        self, logits: nn.Module, kinds: dict[str, nn.Module], names: list[str], fused: Fused | None = None
    ) -> None:
        super().__init__()
        self.logits = logits
        self.answers = Answers(kinds, fused)
        self.names = names

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Score B rows.

        Args:
            ids: feature -> (N,), see modules.serving.inputs.Ids.
            lengths: feature -> (B,), likewise.
            dense: feature -> (B,) numbers, or (B, w), NaN = missing; or what lies beside a feature's ids.

        Returns:
            task -> (B,) float32 predictions.

        Raises:
            ValueError: a feature is missing or does not fit the others.
        """
        return self.answers(self.logits(ids, lengths, dense))

    @torch.jit.export
    def rank(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """Score B candidates of one user: `forward` of B rows, of which features that are one row's count for all.

        Args:
            ids, lengths, dense: of one row, or of B rows, one per candidate.

        Returns:
            task -> (B,) float32 predictions.

        Raises:
            ValueError: a feature is missing, or has neither one row nor as many as the others.
        """
        every, counts, numbers = repeated(self.names, ids, lengths, dense)
        return self.forward(every, counts, numbers)
