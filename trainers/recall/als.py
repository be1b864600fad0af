"""Weighted alternating least squares, users and items in blocks over the ranks.

    L = sum_S w (x_u . y_i - 1)^2 + a sum_{u, i} (x_u . y_i)^2 + sum_u l_u |x_u|^2 + sum_i l_i |y_i|^2

    l_u = regularisation (sum_{i in S_u} w + a items)^power,  l_i = regularisation (sum_{u in S_i} w + a users)^power

S are the events, w > 0 what each weighs, a (`unobserved`) the weight of every pair of a user and an item. With the
items fixed each user's vector is one linear system, and the other way round:

    (sum_{i in S_u} w y_i y_i^T + a Y^T Y + l_u 1) x_u = sum_{i in S_u} w y_i

Hu et al., "Collaborative filtering for implicit feedback datasets", ICDM 2008, as weighed by Rendle et al., "Revisiting
the performance of iALS on item recommendation benchmarks", RecSys 2022 (2110.14037). Hu's confidence c = 1 + w / a, its
constant regularisation r = l / a with power 0: the same items' order, vectors that differ by factors.

Rows of both sides are numbered; row n lies on rank n mod R of R, at place n div R. A rank has the vectors of its own
users and items, their events (each event lies on two ranks: its user's and its item's), and for a step those vectors of
the other side that the step's rows are paired with. All of it falls with the number of ranks (as in Mehta et al.,
"ALX", 2112.02194).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from livetrain.modules.tables.hashing import mix
from livetrain.trainers.runtime import ranks

STEP = 2**24  # numbers of the largest tensor of a step: 64 MiB of float32


@dataclass(frozen=True)
class Weighing:
    """What the loss weighs, see above."""

    unobserved: float
    regularisation: float
    power: float


@dataclass(frozen=True)
class Pairs:
    """The events of this rank's rows of one side, row after row.

    Args:
        starts: (n + 1,) int64; row r's are starts[r]:starts[r + 1].
        others: (N,) int64, the rows of the other side, as they are numbered over all ranks.
        weights: (N,) w of each event.
    """

    starts: Tensor
    others: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rows: Tensor, others: Tensor, weights: Tensor, count: int) -> "Pairs":
        """Sort events by their rows.

        Args:
            rows: (N,) places on this rank, below `count`.
            others, weights: (N,), see above.
            count: n.

        Example:
            >>> pairs = Pairs.of(torch.tensor([2, 0, 2]), torch.tensor([5, 6, 7]), torch.ones(3), 3)
            >>> pairs.starts.tolist(), pairs.others.tolist()
            ([0, 1, 1, 3], [6, 5, 7])
        """
        order = rows.argsort(stable=True)
        starts = torch.zeros(count + 1, dtype=torch.long, device=rows.device)
        starts[1:] = torch.bincount(rows, minlength=count).cumsum(0)
        return cls(starts, others[order], weights[order])

    @property
    def lengths(self) -> Tensor:
        """(n,) int64, how many events each row has."""
        return self.starts.diff()

    def weight(self) -> Tensor:
        """Return (n,) the sum of each row's weights."""
        rows = torch.repeat_interleave(self.lengths)
        return self.weights.new_zeros(len(self.starts) - 1).index_add(0, rows, self.weights)


def routed(to: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """Send rows to other ranks, and return those that come, by the rank that sent them. Collective.

    Args:
        to: (N,) int64, the rank that each row goes to.
        columns: (N, ...) each.
    """
    if ranks.world() == 1:
        return columns
    order = to.argsort(stable=True)
    sent = torch.bincount(to, minlength=ranks.world())
    come = torch.empty_like(sent)
    dist.all_to_all_single(come, sent)
    return tuple(_exchanged(column[order], sent.tolist(), come.tolist()) for column in columns)


def _exchanged(column: Tensor, sent: list[int], come: list[int]) -> Tensor:
    out = column.new_empty(sum(come), *column.shape[1:])
    dist.all_to_all_single(out, column.contiguous(), come, sent)
    return out


def fetch(block: Tensor, wanted: Tensor) -> Tensor:
    """Return rows of a matrix that lies in blocks over the ranks. Collective.

    Args:
        block: (n, d), this rank's rows.
        wanted: (m,) int64, as they are numbered over all ranks.

    Returns:
        (m, d).
    """
    world = ranks.world()
    if world == 1:
        return block[wanted]
    owner = wanted % world
    order = owner.argsort(stable=True)
    asked = torch.bincount(owner, minlength=world)
    come = torch.empty_like(asked)
    dist.all_to_all_single(come, asked)
    sizes, others = asked.tolist(), come.tolist()
    places = _exchanged(wanted[order] // world, sizes, others)
    found = _exchanged(block[places], others, sizes)
    return torch.empty_like(found).index_copy_(0, order, found)


def gram(block: Tensor) -> Tensor:
    """Return Y^T Y, (d, d) of Y's type, of all ranks' rows, summed in float64. Collective."""
    wide = block.double()
    return ranks.summed(wide.t() @ wide).to(block.dtype)


def regularisation(weighing: Weighing, weight: Tensor, others: float) -> Tensor:
    """Return l of each row, (n,).

    Args:
        weighing: of the loss.
        weight: (n,) sums of the rows' weights.
        others: how many rows the other side has.
    """
    return weighing.regularisation * (weight + weighing.unobserved * others) ** weighing.power


def solve(pairs: Pairs, block: Tensor, background: Tensor, regular: Tensor) -> tuple[Tensor, float]:
    """Return the best vectors of one side while the other side's stay as they are. Collective.

    A step solves many short rows, or a piece of one long row; rows are taken by their lengths, so that few numbers of a
    step are padding. Every rank takes as many steps as the one with most of them.

    Args:
        pairs: of this rank's n rows.
        block: (m, d), this rank's rows of the other side.
        background: (d, d), a Y^T Y.
        regular: (n,) l of each row.

    Returns:
        (n, d), zeros for rows without events, and the part of the loss that all ranks' rows have with them: all of L
        but the other side's regularisation.
    """
    size, loss = block.size(1), 0.0
    out = block.new_zeros(len(regular), size)
    identity = torch.eye(size, dtype=block.dtype, device=block.device)
    steps = list(_steps(pairs.lengths, size))
    nobody = torch.zeros(0, dtype=torch.long, device=block.device)
    matrix = target = block.new_zeros(0)
    for number in range(max(ranks.gather(len(steps)))):
        if number >= len(steps):
            fetch(block, nobody)
            continue
        rows, first, last, whole = steps[number]
        place = pairs.starts[rows].unsqueeze(1) + torch.arange(first, last, device=rows.device)  # (r, W)
        real = place < pairs.starts[rows + 1].unsqueeze(1)
        place = place[real]
        wanted, index = pairs.others[place].unique(return_inverse=True)
        weights = pairs.weights[place].to(block.dtype)
        root = block.new_zeros(real.shape).masked_scatter_(real, weights.sqrt())
        vectors = block.new_zeros(*real.shape, size)
        vectors[real] = fetch(block, wanted)[index] * weights.sqrt().unsqueeze(1)
        across = vectors.transpose(1, 2)  # (r, d, W)
        if not first:
            matrix, target = background + regular[rows].view(-1, 1, 1) * identity, block.new_zeros(len(rows), size)
        matrix = torch.baddbmm(matrix, across, vectors)
        target = target + (across @ root.unsqueeze(2)).squeeze(2)
        loss += float(weights.double().sum())
        if whole:
            found = torch.cholesky_solve(target.unsqueeze(2), torch.linalg.cholesky(matrix)).squeeze(2)
            loss -= float((found.double() * target.double()).sum())  # at the best x: x^T M x = x . b
            out[rows] = found
    return out, sum(ranks.gather(loss))


def _steps(lengths: Tensor, size: int) -> Iterator[tuple[Tensor, int, int, bool]]:
    """Yield the rows of each step, which of their events it takes, and whether these are their last."""
    order = lengths.argsort(descending=True, stable=True)
    order = order[: int((lengths > 0).sum())]
    most = max(STEP // size, 1)  # events
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        stop = start + max(min(most // longest, STEP // size**2), 1)
        rows = order[start:stop]
        for first in range(0, longest, most):
            last = min(first + most, longest)
            yield rows, first, last, last == longest
        start = stop


def both_sides(users: Tensor, items: Tensor, weights: Tensor, rows: int) -> tuple[Pairs, Pairs]:
    """Bring every event to the rank of its user and to that of its item. Collective.

    Args:
        users: (N,) int64 ids of any kind, of the events that this rank has read.
        items: (N,) int64 numbers of rows, below `rows`.
        weights: (N,) w.
        rows: how many rows the items have over all ranks, with those that no event is of.

    Returns:
        This rank's users, by rising id, with their events, and its items with theirs.
    """
    world, rank = ranks.world(), ranks.rank()
    users, items, weights = routed(mix(users) % world, users, items, weights)
    known, place = users.unique(return_inverse=True)
    by_user = Pairs.of(place, items, weights, len(known))
    items, users, weights = routed(items % world, items, place * world + rank, weights)
    return by_user, Pairs.of(items // world, users, weights, own_rows(rows))


def own_rows(rows: int) -> int:
    """Return how many of so many rows lie on this rank."""
    return max(-(-(rows - ranks.rank()) // ranks.world()), 0)


def sweep(users: Pairs, items: Pairs, block: Tensor, weighing: Weighing) -> tuple[Tensor, float]:
    """Solve all users and then all items. Collective.

    Args:
        users, items: this rank's, see `both_sides`.
        block: (n, d), the vectors of this rank's items; at first small random numbers, or those of an earlier fit.
        weighing: of the loss.

    Returns:
        The items' new vectors, (n, d), zeros for items without events; and the loss, as it was between the halves.

    Example: two groups of users and items.
        >>> at = torch.arange(8)
        >>> both = both_sides(at // 2, at // 4 * 2 + at % 2, torch.ones(8), 4)
        >>> vectors = torch.eye(4, 2) + 0.1
        >>> for _ in range(5):
        ...     vectors, loss = sweep(*both, vectors, Weighing(0.1, 0.01, 1.0))
        >>> [round(float(vectors[0] @ vectors[other] / vectors[0].norm() ** 2)) for other in (1, 2)]
        [1, 0]
    """
    a = weighing.unobserved
    lengths, weights = [pairs.lengths for pairs in (users, items)], [pairs.weight() for pairs in (users, items)]
    n_users, n_items = (sum(ranks.gather(int((length > 0).sum()))) for length in lengths)
    of_users, of_items = (
        regularisation(weighing, *of).to(block.dtype) for of in ((weights[0], n_items), (weights[1], n_users))
    )
    block = block * (lengths[1] > 0).unsqueeze(1)
    own, loss = solve(users, block, a * gram(block), of_users)
    loss += sum(ranks.gather(float((of_items * block.square().sum(1)).double().sum())))
    return solve(items, own, a * gram(own), of_items)[0], loss
