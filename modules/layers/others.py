"""Every row of a batch against the other rows of all ranks, in memory that is linear in them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CELLS = 2**22  # scores in memory at once: 16 MB of float32, or one per row where there are more rows
NEVER = -1e30  # the log of a sum of nothing; its opposite is a logit with no loss


# Two operations to a compiled graph, and to autograd; torch.library.custom_op would load the compiler for every run.
_OPERATIONS = torch.library.Library("livetrain", "FRAGMENT")
_OPERATIONS.define("logsumexp_of_others(Tensor rows, Tensor columns, Tensor bias, Tensor mark, Tensor marks) -> Tensor")
_OPERATIONS.define(
    "logsumexp_of_others_backward(Tensor gradient, Tensor rows, Tensor columns, Tensor bias, Tensor mark, "
    "Tensor marks, Tensor total) -> (Tensor, Tensor)"
)


def _forward(rows: Tensor, columns: Tensor, bias: Tensor, mark: Tensor, marks: Tensor) -> Tensor:
    """See `logsumexp_of_others`; `CELLS` scores are made at a time."""
    total = rows.new_full([rows.size(0)], NEVER)
    for _, scores in _blocks(rows, columns, bias, mark, marks):
        total = torch.logaddexp(total, scores.logsumexp(1))
    return total


def _backward(
    gradient: Tensor, rows: Tensor, columns: Tensor, bias: Tensor, mark: Tensor, marks: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of rows and columns; the scores are made again."""
    of_rows, of_columns = torch.zeros_like(rows), torch.empty_like(columns)
    for block, scores in _blocks(rows, columns, bias, mark, marks):
        shares = scores.sub_(total.unsqueeze(1)).exp_().mul_(gradient.unsqueeze(1))  # (B, n)
        of_rows.addmm_(shares, columns[block])
        torch.mm(shares.t(), rows, out=of_columns[block])
    return of_rows, of_columns


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _through(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.livetrain.logsumexp_of_others_backward(gradient, *ctx.saved_tensors), None, None, None


_NAME = "livetrain::logsumexp_of_others"
_OPERATIONS.impl("logsumexp_of_others", _forward, "CompositeExplicitAutograd")
_OPERATIONS.impl("logsumexp_of_others_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake(_NAME, lambda rows, *_: rows.new_empty(rows.size(0)), lib=_OPERATIONS)
torch.library.register_fake(
    f"{_NAME}_backward",
    lambda _, rows, columns, *__: (rows.new_empty(rows.shape), columns.new_empty(columns.shape)),
    lib=_OPERATIONS,
)
torch.library.register_autograd(_NAME, _through, setup_context=_keep, lib=_OPERATIONS)


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
