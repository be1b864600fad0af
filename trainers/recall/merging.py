"""Lists of several channels as one: each item once, by the sum of what its ranks are worth.

    score(item) = sum_c weight_c / (60 + rank_c(item)), over the channels c in whose first quota_c items it is

which is reciprocal rank fusion with weights (Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms
Condorcet and individual rank learning methods", SIGIR 2009): channels' own scores have no common unit, ranks have.
Items that a channel has reserved places for come before all others.
"""

from typing import NamedTuple

import numpy as np

_LATE = 60  # the paper's constant: how little more the first rank is worth than the tenth


class Settings(NamedTuple):
    """What each of C channels counts, in their order."""

    weights: np.ndarray  # (C,) float64
    quotas: np.ndarray  # (C,) int64
    reserves: np.ndarray  # (C,) int64, at most the quotas


class Pairs(NamedTuple):
    """What C channels bring to n requests: P pairs of a request and an item, by request, each once."""

    requests: int
    request: np.ndarray  # (P,) int64, rising
    item: np.ndarray  # (P,) int64, rising within a request
    ranks: np.ndarray  # (P, C) uint16, from 1; 0 where a channel has not brought it


def pairs(lists: list[np.ndarray]) -> Pairs:
    """Join the channels' lists.

    Args:
        lists: of each channel (n, m) int64 items per request, the best first; -1 is none.

    Example:
        >>> found = pairs([np.array([[7, 3]]), np.array([[3, -1]])])
        >>> found.item.tolist(), found.ranks.tolist()
        ([3, 7], [[2, 1], [1, 0]])
    """
    count, items = len(lists[0]), max(int(part.max(initial=0)) for part in lists) + 1
    codes, owners, ranks = [], [], []
    for channel, part in enumerate(lists):
        row, place = np.nonzero(part >= 0)
        codes.append(row * items + part[row, place])
        owners.append(np.full(len(row), channel, np.uint8))
        ranks.append((place + 1).astype(np.uint16))
    every, pair = np.unique(np.concatenate(codes), return_inverse=True)
    table = np.zeros((len(every), len(lists)), np.uint16)
    table[pair, np.concatenate(owners)] = np.concatenate(ranks)
    return Pairs(count, every // items, every % items, table)


def scores(found: Pairs, settings: Settings) -> np.ndarray:
    """Return (P,) what each pair is worth; 0 where it is within no channel's quota."""
    total, first = np.zeros(len(found.ranks)), settings.weights.sum() + 1  # more than all weights together are worth
    for channel, (weight, quota, reserve) in enumerate(zip(*settings, strict=True)):
        rank = np.arange(int(found.ranks[:, channel].max(initial=0)) + 1)
        worth = np.where(rank <= quota, weight / (_LATE + rank) + np.where(rank <= reserve, first, 0), 0)
        worth[0] = 0
        total += worth[found.ranks[:, channel]]
    return total


def brought(found: Pairs, settings: Settings) -> np.ndarray:
    """Return (P, C) bool: the channel has brought the pair, within its quota; of weight 0 it brings its reserve alone.

    A pair that some channel has brought is worth more than 0, and no other.

    Example:
        >>> found = pairs([np.array([[7, 3]]), np.array([[3, 5]])])
        >>> brought(found, Settings(np.array([1.0, 0.0]), np.array([2, 2]), np.array([0, 1]))).tolist()
        [[True, True], [False, False], [True, False]]
    """
    most = np.where(settings.weights > 0, settings.quotas, np.minimum(settings.reserves, settings.quotas))
    return (found.ranks > 0) & (found.ranks <= most)


def places(found: Pairs, worth: np.ndarray) -> np.ndarray:
    """Return (P,) each pair's place in its request's list, from 1; of equal ones the first pairs come first.

    Pairs that are worth nothing come last, and are no candidates.
    """
    order = np.lexsort((-worth, found.request))
    begins = np.searchsorted(found.request, np.arange(found.requests))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - begins[found.request] + 1
    return place


def of_items(found: Pairs, wanted: np.ndarray) -> np.ndarray:
    """Return (n,) the pair of each request with an item, (n,); -1 where no channel has brought it."""
    pair = np.flatnonzero(found.item == wanted[found.request])
    at = np.full(found.requests, -1)
    at[found.request[pair]] = pair
    return at


def place_of(found: Pairs, worth: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return (n,) what `places` has for one pair per request, without sorting; a number beyond all where it is none.

    Args:
        found: the pairs.
        worth: (P,) see `scores`.
        at: (n,) see `of_items`.
    """
    own = np.full(found.requests, np.inf)
    own[at >= 0] = worth[at[at >= 0]]
    there, of = own[found.request], at[found.request]
    before = (worth > there) | ((worth == there) & (np.arange(len(worth)) < of))
    place = np.bincount(found.request[before], minlength=found.requests) + 1
    return np.where((at >= 0) & (own > 0), place, np.iinfo(np.int64).max)
