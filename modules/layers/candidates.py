"""Items that rows of the global batch are compared with, and what a score has to lose against them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from livetrain.modules.layers.distributed import all_gather
from livetrain.modules.layers.others import NEVER, logsumexp_of_others, softplus_of_others
from livetrain.modules.layers.rarity import Rarity


class Candidates(NamedTuple):
    """The items of all ranks, the same on every rank.

    Args:
        vectors: (C, d).
        keys: (C,) int64, their ids.
        log_q: (C,), log of how often each is expected among the candidates; of no meaning where there is no item.
        there: (C,) bool, false where there is no item.
        first: where this rank's rows begin.
    """

    vectors: Tensor
    keys: Tensor
    log_q: Tensor
    there: Tensor
    first: int

    def bias(self, log_q: bool) -> Tensor:
        """Return what is added to a score of each, (C,): -log q, or 0 without it; -inf where there is no item."""
        bias = -self.log_q if log_q else torch.zeros_like(self.log_q)
        return bias.masked_fill(~self.there, -float("inf"))

    def others(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many candidates are other items than each of some, (P,), and the sum of their 1 / q, (P,).

        Args:
            keys: (P,) ids.

        Example: of three candidates two are item 7.
            >>> made = [torch.zeros(3, 2), torch.tensor([7, 9, 7]), torch.zeros(3), torch.ones(3, dtype=torch.bool), 0]
            >>> Candidates(*made).others(torch.tensor([7, 8]))
            (tensor([1., 3.]), tensor([1., 3.]))
        """
        order = self.keys.argsort()
        known, weights = self.keys[order], self.bias(True).exp()[order].double()
        sums = torch.stack([self.there[order].double(), weights]).cumsum(1)
        sums = F.pad(sums, (1, 0))  # of those before each place
        same = sums[:, torch.searchsorted(known, keys, right=True)] - sums[:, torch.searchsorted(known, keys)]
        count, negatives = (sums[:, -1:] - same).to(self.log_q.dtype).unbind(0)
        return count, negatives


def gathered(
    items: Tensor, keys: Tensor, own: Tensor, shared: Tensor, often: Tensor | None, rarity: Rarity | None
) -> Candidates:
    """Return the candidates of all ranks. Collective.

        q_j = (how often j is among the ranks' own rows) + (how often it is among the shared ones)

    The draw of shared items is known, and so is their part of q, exactly; that of the own rows is measured (`Rarity`).

    Args:
        items: (B + n, d) vectors of this rank's rows and of the shared ones behind them.
        keys: (B + n,) ids.
        own: (B,) bool, whose items are candidates.
        shared: (n,) bool, where there is a shared item.
        often: (B + n,) how often each is expected among the shared ones of all ranks; None where there are none.
        rarity: measures the own rows; None where nothing is to be corrected for them.
    """
    vectors, first = all_gather(items)
    owned = torch.cat([own, torch.zeros_like(shared)])
    marks, _ = all_gather(torch.stack([keys, owned.long(), torch.cat([own, shared]).long()], 1))
    keys, owned, there = marks[:, 0], marks[:, 1] > 0, marks[:, 2] > 0
    expected = torch.zeros_like(vectors[:, 0]).detach()
    if often is not None:
        expected = expected + all_gather(often.to(vectors.dtype))[0]
    if rarity is not None:
        expected = expected + rarity(keys, owned).to(vectors.dtype).exp()
    return Candidates(vectors, keys, expected.log(), there, first)


def against_others(states: Tensor, scores: Tensor, keys: Tensor, candidates: Candidates, log_q: bool) -> Tensor:
    """Return the logit of each target against the candidates: its sigmoid is the target's softmax.

        z_p = s_p - log sum_{j != y_p} exp(u_p . v_j - log q_j)

    Each of the others stands for 1 / q_j items like it, so that their sum is in the mean that over the whole catalogue;
    with every item once, q = 1, it is that sum: the full softmax. The target is there in any case and not drawn, so
    nothing corrects its score; where it is drawn too it does not count twice.

    Args:
        states: (P, d) u, divided by the temperature.
        scores: (P,) of the targets, likewise.
        keys: (P,) ids of the targets.
        candidates: see `gathered`.
        log_q: False leaves q out: every other counts as one.

    Source: importance sampling of the softmax's sum, Jean et al., 1412.2007, section 3.1; of a target that is not among
    the draws, Khrylchenko et al., 2507.09331.
    """
    bias = candidates.bias(log_q)
    return scores - logsumexp_of_others(states, candidates.vectors, bias, keys, candidates.keys)


def gbce(states: Tensor, scores: Tensor, keys: Tensor, candidates: Candidates, calibration: float) -> Tensor:
    """Return the logit whose -log sigmoid is the generalised binary cross-entropy of each target.

        loss_p = (beta softplus(-s_p) + sum_{j != y_p} softplus(u_p . v_j)) / (n + 1),   beta = a t - t + 1

    n is the number of candidates other than the target. t is the calibration: with 0 it is plain BCE, and with 1 the
    sampled negatives raise no score. a is the share of all negatives that these n are, n / sum_{j != y_p} 1 / q_j, with
    a sum that is in the mean the number of other items: where items are drawn alike n / (items - 1).

    Args:
        states, scores, keys, candidates: as of `against_others`.
        calibration: t, in [0, 1].

    Source: Petrov and Macdonald, gSASRec, RecSys 2023, 2308.07192, equations 12 and 13.
    """
    count, negatives = candidates.others(keys)
    share = count / negatives.clamp(min=1)
    beta = share.clamp(max=1) * calibration - calibration + 1
    others = softplus_of_others(states, candidates.vectors, candidates.bias(False), keys, candidates.keys)
    return likelihood_to_logit((beta * F.softplus(-scores) + others) / (count + 1))


def likelihood_to_logit(loss: Tensor) -> Tensor:
    """Return the z with softplus(-z) = loss, for losses above 0: -log(e^loss - 1).

    Example:
        >>> F.softplus(-likelihood_to_logit(torch.tensor([1e-4, 1.0, 90.0])))
        tensor([1.0000e-04, 1.0000e+00, 9.0000e+01])
    """
    loss = loss.clamp(min=1e-12)
    return -(loss + (-torch.expm1(-loss)).log())


def none_where(valid: Tensor, logits: Tensor) -> Tensor:
    """Return the logits, with one that has no loss where a target is not valid."""
    return torch.where(valid, logits, -NEVER)
