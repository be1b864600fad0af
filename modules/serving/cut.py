"""The cut of a pre-rank: which candidates of a request go on to the ranker."""

import torch
from torch import Tensor, nn


class Cut(nn.Module):
    """Keeps the best candidates of each request, some of the user's regulars among them, and not too many of one kind.

    First the best `regulars` of those that the user often visits are kept. Then candidates are kept by score while
    fewer than `most` of their kind are. Where places are left, the best of the others follow. The kept ones stand in
    the order of their scores: it is the ranker that orders them.

    Args:
        places: kept candidates per request.
        regulars: places that the user's regulars get, whatever their scores.
        most: places that candidates of one kind get at most, while others are there; 0 does not limit them.

    Example: without rules 0, 1 and 2 would be kept.
        >>> scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
        >>> regular = torch.tensor([[False, False, False, False, True]])
        >>> kinds = torch.tensor([[7, 7, 7, 8, 8]])
        >>> Cut(places=3, regulars=1, most=1)(scores, regular, kinds)
        tensor([[0, 1, 4]])
    """

    def __init__(self, places: int, regulars: int = 0, most: int = 0) -> None:
        super().__init__()
        if places < 1 or not 0 <= regulars <= places or most < 0:
            raise ValueError(f"places ({places}) is 1 or more, regulars ({regulars}) up to it, most ({most}) 0 or more")
        self.places, self.regulars, self.most = places, regulars, most

    def forward(self, scores: Tensor, regular: Tensor, kinds: Tensor, valid: Tensor | None = None) -> Tensor:
        """Choose among the candidates of B requests.

        Args:
            scores: (B, N); of equal ones the first is the better, and one that is NaN is not kept.
            regular: (B, N) bool, what the user often visits.
            kinds: (B, N) int64; a negative one is of no kind, and is not limited.
            valid: (B, N) bool, false for padding; all by default.

        Returns:
            (B, places) int64, the kept ones, the best first; -1 where a request has no more.
        """
        there = ~scores.isnan() if valid is None else valid & ~scores.isnan()
        order = scores.masked_fill(~there, -float("inf")).argsort(stable=True, dim=1, descending=True)
        there, regular, kinds = there.gather(1, order), (regular & there).gather(1, order), kinds.gather(1, order)
        kept = regular & (regular.long().cumsum(1) <= self.regulars)
        over = torch.zeros_like(kept)
        if self.most > 0:
            first = (~kept).long().argsort(stable=True, dim=1)  # regulars that are kept, then the others by score
            by_kind = first.gather(1, kinds.gather(1, first).argsort(stable=True, dim=1))
            sorted_kinds = kinds.gather(1, by_kind)
            place = torch.arange(scores.size(1), device=scores.device).expand_as(order)
            begins = torch.ones_like(kept)
            begins[:, 1:] = sorted_kinds[:, 1:] != sorted_kinds[:, :-1]
            nth = place - torch.where(begins, place, 0).cummax(1)[0]  # of its kind
            over = over.scatter(1, by_kind, (nth >= self.most) & (sorted_kinds >= 0)) & ~kept
        # 0: a regular that is kept, 1: by score, 2: over its kind's share, 3: padding
        turn = torch.where(there, (~kept).long() + over.long(), 3)
        chosen = turn.argsort(stable=True, dim=1)[:, : self.places].sort(1)[0]
        found = torch.where(there.gather(1, chosen), order.gather(1, chosen), -1)
        found = found.gather(1, (found < 0).long().argsort(stable=True, dim=1))
        missing = self.places - found.size(1)
        return nn.functional.pad(found, [0, missing], value=-1.0) if missing > 0 else found
