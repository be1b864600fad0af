"""Re-ranking: a list of ranked items that are good and differ from one another."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DPP(nn.Module):
    """Greedy search for the list Y of largest probability under a determinantal point process.

        log P(Y) = theta sum_{i in Y} r_i + (1 - theta) log det S_Y + const

    r is the relevance of each item, S the cosines of the items' vectors. Each place goes to the item that adds most,
    theta r_i + (1 - theta) log d_i^2, where d_i^2 is what S_ii leaves beside the chosen items: after item j

        e_i = (S_ji - <c_j, c_i>) / d_j,   c_i <- [c_i e_i],   d_i^2 <- d_i^2 - e_i^2

    The paper puts the relevance into the kernel, L = Diag(q) S Diag(q), q = exp(alpha r), alpha = theta /
    (2 (1 - theta)); its determinant is the same, and here no exponential can overflow. Once the chosen items span all
    that is left (with vectors of width w after w places at the latest), the rest comes by relevance. O(places^2 N) for
    N items, beside places times their cosines with one of them.

    Args:
        places: length of the list.
        theta: 1 is relevance alone, near 0 difference counts most. What suits depends on the scale of r.

    Source: Chen et al., "Fast greedy MAP inference for determinantal point process to improve recommendation
    diversity", NeurIPS 2018 (1709.05135), algorithm 1.

    Example:
        >>> vectors = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
        >>> DPP(places=3, theta=0.5)(torch.tensor([[3.0, 2.9, 2.0]]), vectors)
        tensor([[0, 2, 1]])
    """

    def __init__(self, places: int, theta: float) -> None:
        super().__init__()
        if places < 1 or not 0 <= theta <= 1:
            raise ValueError(f"places must be 1 or more and theta between 0 and 1, not {places} and {theta}")
        self.places, self.theta = places, theta
        self.spent = 1e-6  # d^2 of an item that the chosen ones span already, rounding apart

    def forward(self, relevance: Tensor, vectors: Tensor, valid: Tensor | None = None) -> Tensor:
        """Order the items of B requests.

        Args:
            relevance: (B, N), as a model's logits.
            vectors: (B, N, w) of any length but 0, as the item tower's.
            valid: (B, N) bool, false for padding; all by default.

        Returns:
            (B, places) int64, the chosen items in their order; -1 where a request has no more.
        """
        size, items = relevance.shape[0], relevance.shape[1]
        row = torch.arange(size, device=relevance.device)
        free = torch.ones_like(relevance, dtype=torch.bool) if valid is None else valid.clone()
        units = F.normalize(vectors.float(), dim=2)
        left = torch.ones(size, items, device=relevance.device)  # d^2
        basis = torch.zeros(size, items, self.places, device=relevance.device)  # c
        chosen: list[Tensor] = []
        for place in range(self.places):
            differs = free & (left > self.spent)
            any_differs = differs.any(1, keepdim=True)  # (B, 1)
            gain = self.theta * relevance + (1 - self.theta) * left.clamp(min=self.spent).log()
            gain = torch.where(any_differs, gain.masked_fill(~differs, -float("inf")), relevance)
            best = gain.masked_fill(~free, -float("inf")).argmax(1)  # (B,)
            share = torch.einsum("bnw,bw->bn", units, units[row, best])
            share = share - torch.einsum("bnp,bp->bn", basis, basis[row, best])
            share = share * any_differs / left[row, best].clamp(min=self.spent).sqrt().unsqueeze(1)  # e
            basis[:, :, place] = share
            left = left - share.square()
            chosen.append(torch.where(free.any(1), best, -1))
            free[row, best] = False
        return torch.stack(chosen, 1)
