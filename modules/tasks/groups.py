"""Sums over the groups of a batch."""

import torch
from torch import Tensor


class Members:
    """Which of N rows belong together.

    Args:
        groups: (N,) int64, in any order.

    Attributes:
        of: (N,) number of each row's group, from 0 and below N.

    Example:
        >>> members = Members(torch.tensor([7, -2, 7]))
        >>> members.each(members.sum(torch.tensor([1.0, 5.0, 2.0])))
        tensor([3., 5., 3.])
    """

    def __init__(self, groups: Tensor) -> None:
        ordered, places = groups.sort(stable=True)
        begins = torch.zeros_like(places)
        begins[1:] = ordered[1:] != ordered[:-1]
        self.of = torch.empty_like(places).scatter_(0, places, begins.cumsum(0))

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of (N,) over each group, (N,): by the group's number, and 0 where there is no such group.

        A device never has to be asked how many there are.
        """
        return torch.zeros_like(x).index_add(0, self.of, x)

    def logsumexp(self, x: Tensor) -> Tensor:
        """Return the log of the sum of e^x over each group, as `sum` does: of a group that is all -inf, some number."""
        most = torch.full_like(x.detach(), -torch.inf).scatter_reduce(0, self.of, x.detach(), "amax")
        most = torch.where(most.isfinite(), most, 0.0)
        total = self.sum((x - most[self.of]).exp())  # 1 or more, where a group has any
        return total.clamp(min=0.5).log() + most  # so that the gradient of a group that has none is 0

    def each(self, x: Tensor) -> Tensor:
        """Return each row's group's entry, (N,), of what `sum` or `logsumexp` returned."""
        return x[self.of]

    def pairs(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return every pair of a row of `left` and a row of `right` in one group. A device is asked how many there are.

        Args:
            left: (N,) bool.
            right: (N,) bool.

        Returns:
            Numbers of rows, (P,) both.
        """
        lefts, rights = left.nonzero().squeeze(1), right.nonzero().squeeze(1)
        rights = rights[self.of[rights].argsort(stable=True)]
        counts = torch.bincount(self.of[rights], minlength=len(left))  # of `right`, by group
        own = counts[self.of[lefts]]
        first = (counts.cumsum(0) - counts)[self.of[lefts]]  # where the group's begin in `rights`
        ends = own.cumsum(0)
        place = torch.arange(int(own.sum()), device=left.device)
        begins = (ends - own).repeat_interleave(own)
        return lefts.repeat_interleave(own), rights[place - begins + first.repeat_interleave(own)]
