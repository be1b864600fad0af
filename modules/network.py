"""The contract of a model: what a network is given, what it answers, and what else it can do."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from livetrain.modules.layers import jagged

REGULARISER = "(regulariser)"  # no task can have this name
TARGETS = "(targets)"  # nor this


class PerTask(nn.ModuleList):
    """A list with one module per task of the recipe, in the recipe's order.

    A warm start takes its entries by the tasks' names, those of any other list by their places.

    Example:
        >>> towers = PerTask(nn.Linear(4, 1) for task in ("click", "like"))
        >>> len(towers)
        2
    """


class Network(nn.Module):
    """The dense part of a model: embeddings and numbers in, a logit per row and task out.

    A network is built as ``network(config, inputs, tasks)``: its own section of the recipe, the features with their
    sizes (see `Inputs`), and the recipe's tasks. It answers by modules.tasks.heads.Heads, which makes the tasks' logits
    of its last layer. torch.jit.script must accept it; a run proves that before it trains (modules.serving.proof).

    What else it can do it says by these members. A subclass sets those that it has, after ``super().__init__()``.

    Attributes:
        shares: class attribute. True: `forward` also takes features that rows of `dense` share: when serving, one row
            of a feature for all of them; of data of requests, one row per request. `row` and `pool` know which, and
            modules.layers.jagged.of_rows gives each row its own of anything that is computed once per request. For
            the other networks the features are repeated for each row.
        key: name of an id feature whose raw ids `forward` is given as `keys` wherever it is given `weights`.
        events: name of a sequence feature of such ids: then `keys` has, behind those of `key`, all of its ids.
        trunk: module that all tasks share, called once per step as ``trunk(x, ...)`` with x (B, width): where
            gradients of `scope: trunk` are compared.
        towers: module such as modules.models.dssm.Towers, which gives a user's and an item's vector. A network with
            it finds items by the vectors' product: it learns tasks of kind retrieval, and no other network does. With a
            member `interests`, K, above 1 a user has K vectors, (B, K, d), and the largest product counts.
        takes_shared: class attribute. True: where the rows of a step share items (data.negatives.shared), `forward`
            finds these behind the rows: `dense`, and `lengths`, have B + n rows, `weights` has B, and so has the
            answer.
        several: class attribute. True: in training it answers several logits of a row, see below, so no task may
            compare rows of a group.

    A network that learns several targets of a row, as the next item of each event, answers in training a logit of each
    target, those of a row one after the other, and ``TARGETS -> (B,)``, how many each row has. Then the task's loss is
    the mean over the global batch's targets.

    A network with a loss of its own, which no combiner of the tasks' gradients weighs, adds it to what `forward`
    answers in training, as ``REGULARISER -> ()``. It is weighted already, R times this rank's part of the global
    batch's (R ranks), as trainers' losses are, and reaches nothing beyond `trunk`.

    Example:
        >>> import torch
        >>> values, lengths = {"user": torch.ones(2, 4)}, {"user": torch.tensor([1, 0, 1])}
        >>> Network().row(values, lengths, "user", 3).sum(1)  # the second row has no user
        tensor([4., 0., 4.])
    """

    if TYPE_CHECKING:  # TorchScript would read these
        key: str | None
        events: str | None
        trunk: nn.Module | None
        towers: Any

    shares = takes_shared = several = False
    key = events = None

    def __init__(self) -> None:
        super().__init__()
        self.trunk = self.towers = None  # of the instance, or they would hide the modules of these names

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Score a batch of B rows.

        Which row an entry of `values` belongs to is in `lengths` alone: a row may lack an id, and a history has any
        length. `row` and `pool` read both; modules.layers.jagged has more.

        Args:
            values: feature -> (N, dim) embeddings of all rows one after another, N = the sum of its lengths.
            lengths: feature -> (B,), 0 or 1 of an id feature; (1,) or (R,) of a feature that rows share, if `shares`.
            dense: (B, D), normalised; the columns are `Inputs.dense`.
            weights: (B,), 0 marks padding rows, which must not change what others learn; None when serving.

        A network with a `key` takes a further argument, ``keys``: (N,) raw ids of that feature, in training; one that
        `takes_shared` another one, ``often``: (B + n,), how often each row's item is expected among the shared ones,
        or None where there are none.

        Returns:
            task -> (B,) logits; in training perhaps `REGULARISER` -> (), or `TARGETS` -> (B,) and as many logits.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def row(self, values: dict[str, Tensor], lengths: dict[str, Tensor], feature: str, size: int) -> Tensor:
        """Return an id feature's embedding of each row, (size, dim): zeros where a row has none.

        Args:
            values: as `forward` got them.
            lengths: likewise.
            feature: name of an id feature.
            size: B, which is ``dense.size(0)``.
        """
        return jagged.of_rows(jagged.rows(values[feature], lengths[feature]), lengths, size)

    def pool(self, values: dict[str, Tensor], lengths: dict[str, Tensor], feature: str, size: int) -> Tensor:
        """Return the mean of a sequence feature's embeddings of each row, (size, dim): zeros where a row has none.

        Args:
            values: as `forward` got them.
            lengths: likewise.
            feature: name of a sequence feature.
            size: B, which is ``dense.size(0)``.
        """
        return jagged.of_rows(jagged.pool(values[feature], lengths[feature], True), lengths, size)
