"""Every row of a batch against the other rows of all ranks, in memory that is linear in them.

Where a run on a CPU has compiled passes, the sums of exponentials are those of others.cpp.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from livetrain.modules.layers.compiled import Library
from livetrain.modules.layers.events import passes_for

CELLS = 2**22  # scores in memory at once: 16 MB of float32, or one per row where there are more rows
NEVER = -1e30  # the log of a sum of nothing; its opposite is a logit with no loss


class _OfOthers:
    """A sum over a row's others as two operations, forward and backward, that make `CELLS` scores at a time.

    Two operations to a compiled graph, and to autograd; torch.library.custom_op would load the compiler for every run.

    Args:
        name: of the operation.
        nothing: the sum of no score.
        passes: whether a library has passes for it, those of others.cpp.
        add: a running sum (B,) and some scores (B, n), -inf where they do not count -> the sum with those.
        share: some scores, which it may overwrite, and the whole sum -> derivative of the sum by each of them.
    """

    library = torch.library.Library("livetrain", "FRAGMENT")

    def __init__(
        self,
        name: str,
        nothing: float,
        passes: bool,
        add: Callable[[Tensor, Tensor], Tensor],
        share: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self._nothing, self._passes, self._add, self._share = nothing, passes, add, share
        columns = "Tensor rows, Tensor columns, Tensor bias, Tensor mark, Tensor marks"
        self.library.define(f"{name}({columns}) -> Tensor")
        self.library.define(f"{name}_backward(Tensor gradient, {columns}, Tensor total) -> (Tensor, Tensor)")
        self.library.impl(name, self._forward, "CompositeExplicitAutograd")
        self.library.impl(f"{name}_backward", self._backward, "CompositeExplicitAutograd")
        self._through: Any = getattr(torch.ops.livetrain, f"{name}_backward")
        fake, whole = torch.library.register_fake, f"livetrain::{name}"
        fake(whole, lambda rows, *_: rows.new_empty(rows.size(0)), lib=self.library)
        fake(
            f"{whole}_backward",
            lambda _, rows, columns, *__: (rows.new_empty(rows.shape), columns.new_empty(columns.shape)),
            lib=self.library,
        )
        torch.library.register_autograd(whole, self._gradients, setup_context=_keep, lib=self.library)

    def _forward(self, rows: Tensor, columns: Tensor, bias: Tensor, mark: Tensor, marks: Tensor) -> Tensor:
        total = rows.new_full([rows.size(0)], self._nothing)
        library = self._library(rows)
        if library is not None:
            library.call("others_forward", *_read(rows, columns, bias, mark, marks), total)
            return total
        for _, scores in _blocks(rows, columns, bias, mark, marks):
            total = self._add(total, scores)
        return total

    def _backward(
        self, gradient: Tensor, rows: Tensor, columns: Tensor, bias: Tensor, mark: Tensor, marks: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of rows and columns; the scores are made again."""
        of_rows, of_columns = rows.new_zeros(rows.shape), columns.new_empty(columns.shape)
        library = self._library(rows)
        if library is not None:
            given = (*_read(rows, columns, bias, mark, marks), total, gradient.contiguous())
            library.call("others_backward", *given, of_rows, of_columns)
            return of_rows, of_columns
        for block, scores in _blocks(rows, columns, bias, mark, marks):
            shares = self._share(scores, total.unsqueeze(1)).mul_(gradient.unsqueeze(1))  # (B, n)
            of_rows.addmm_(shares, columns[block])
            torch.mm(shares.t(), rows, out=of_columns[block])
        return of_rows, of_columns

    def _library(self, rows: Tensor) -> Library | None:
        return passes_for(rows, rows.size(1)) if self._passes else None

    def _gradients(self, ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *self._through(gradient, *ctx.saved_tensors), None, None, None


def _read(rows: Tensor, columns: Tensor, *others: Tensor) -> tuple[int | Tensor, ...]:
    """Return what passes read: sizes, and tensors as they want them."""
    return len(rows), len(columns), rows.size(1), *(x.contiguous() for x in (rows, columns, *others))


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


_LOGSUMEXP = _OfOthers(
    "logsumexp_of_others",
    NEVER,
    True,
    lambda total, scores: torch.logaddexp(total, scores.logsumexp(1)),
    lambda scores, total: scores.sub_(total).exp_(),
)
_SOFTPLUS = _OfOthers(
    "softplus_of_others",
    0.0,
    False,
    lambda total, scores: total + functional.softplus(scores).sum(1),
    lambda scores, _: scores.sigmoid_(),
)


def _blocks(rows: Tensor, columns: Tensor, bias: Tensor, mark: Tensor, marks: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the scores of some columns at a time, (B, n), -inf where a column is none of a row's others."""
    step = max(CELLS // max(rows.size(0), 1), 1)
    for start in range(0, columns.size(0), step):
        block = slice(start, start + step)
        scores = torch.addmm(bias[block], rows, columns[block].t())
        yield block, scores.masked_fill_(mark.unsqueeze(1) == marks[block], -float("inf"))


def logsumexp_of_others(rows: Tensor, columns: Tensor, bias: Tensor, mark: Tensor, marks: Tensor) -> Tensor:
    """Return log sum_j exp(rows_i . columns_j + bias_j) over the columns of another mark than the row's.

    The (B, N) scores, which on R ranks are R times as many as those of a rank's own rows, never exist: a few columns
    at a time are added to a running sum, and backward, to which the sum's log is left, makes each block again.

    Source: the running log-sum-exp of FlashAttention, Dao et al., 2205.14135; for a softmax over very many classes as
    in Wijmans et al., "Cut your losses in large-vocabulary language models", 2411.09009.

    Args:
        rows: (B, d).
        columns: (N, d).
        bias: (N,), without a gradient; -inf leaves a column out.
        mark: (B,) integer.
        marks: (N,) integer.

    Returns:
        (B,); `NEVER` where there is no other column.

    Example:
        >>> rows, ids = torch.eye(3), torch.tensor([7, 7, 9])
        >>> logsumexp_of_others(rows, rows, torch.zeros(3), ids, ids).exp().round()  # one other, one, two
        tensor([1., 1., 2.])
    """
    found: Tensor = torch.ops.livetrain.logsumexp_of_others(rows, columns, bias, mark, marks)
    return found


def softplus_of_others(rows: Tensor, columns: Tensor, bias: Tensor, mark: Tensor, marks: Tensor) -> Tensor:
    """Return sum_j log(1 + exp(rows_i . columns_j + bias_j)) over the columns of another mark than the row's.

    Arguments and memory as of `logsumexp_of_others`.

    Returns:
        (B,); 0 where there is no other column.

    Example:
        >>> rows, ids = torch.zeros(3, 2), torch.tensor([7, 7, 9])
        >>> softplus_of_others(rows, rows, torch.zeros(3), ids, ids)  # one other, one, two
        tensor([0.6931, 0.6931, 1.3863])
    """
    found: Tensor = torch.ops.livetrain.softplus_of_others(rows, columns, bias, mark, marks)
    return found
