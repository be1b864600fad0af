"""What a blend brings, and each of its channels: recall of the wanted items, and whose the candidates are."""

from typing import Any

import numpy as np

from livetrain.trainers.recall import merging
from livetrain.trainers.recall.merging import Settings

SIZES = (100, 500)  # candidates of a request by which is measured, and the blend's size


class Measured:
    """Takes in the lists of requests, block by block. Memory: 10 bytes per request and channel.

    Args:
        channels: their names.
        settings: what each counts.
        size: candidates of a request.

    Attributes:
        sizes: candidates by which is measured.
    """

    def __init__(self, channels: list[str], settings: Settings, size: int) -> None:
        self.channels, self._settings, self._size = channels, settings, size
        self.sizes = sorted({*(least for least in SIZES if least < size), size})
        self._places: list[np.ndarray] = []  # (n,) of the wanted item in the blend, from 1; beyond `size` if not there
        self._ranks: list[np.ndarray] = []  # (n, C) of it in each channel's list
        self._owners: list[np.ndarray] = []  # (n, C) bool: whose quota brought it
        self._of_all = np.zeros(len(self.sizes))  # candidates
        self._brought = np.zeros((2, len(self.sizes), len(channels)))  # of them by each channel, and by it alone

    def add(self, lists: list[np.ndarray], wanted: np.ndarray) -> None:
        """Take in some requests.

        Args:
            lists: of each channel (n, size) places of items; -1 is none.
            wanted: (n,) place of each request's item; -1 if it has none.
        """
        found = merging.pairs(lists)
        worth = merging.scores(found, self._settings)
        whose = merging.brought(found, self._settings)
        place = np.where(whose.any(1), merging.places(found, worth), self._size + 1)
        at, none = merging.of_items(found, wanted), self._size + 1
        places, ranks = np.full(len(wanted), none), np.full((len(wanted), len(self.channels)), none)
        owners, there = np.zeros(ranks.shape, bool), at >= 0
        places[there], owners[there] = place[at[there]], whose[at[there]]
        ranks[there] = np.where(found.ranks[at[there]] > 0, found.ranks[at[there]], none)
        self._places.append(places)
        self._ranks.append(ranks)
        self._owners.append(owners)
        alone = whose & (whose.sum(1, keepdims=True) == 1)
        for number, size in enumerate(self.sizes):
            inside = place <= size
            self._of_all[number] += inside.sum()
            self._brought[0, number] += whose[inside].sum(0)
            self._brought[1, number] += alone[inside].sum(0)

    def part(self, inside: np.ndarray) -> dict[str, Any]:
        """Return the recall of some requests, (n,) bool: of the blend, of each channel alone, and of only it."""
        places, ranks, owners = (np.concatenate(part)[inside] for part in (self._places, self._ranks, self._owners))
        only = owners & (owners.sum(1, keepdims=True) == 1)
        found: dict[str, Any] = {"requests": len(places), "blend": {}, "channels": {name: {} for name in self.channels}}
        for size in self.sizes:
            hit = places <= size
            found["blend"][f"recall_{size}"] = _mean(hit)
            for channel, name in enumerate(self.channels):
                found["channels"][name] |= {
                    f"recall_{size}": _mean(ranks[:, channel] <= size),
                    f"only_{size}": _mean(hit & only[:, channel]),
                }
        return found

    def shares(self) -> dict[str, dict[str, float]]:
        """Return of each channel which share of the candidates it brought, and which it alone."""
        return {
            name: {
                f"{what}_{size}": float(self._brought[row, number, channel] / max(self._of_all[number], 1))
                for number, size in enumerate(self.sizes)
                for row, what in enumerate(("share", "sole"))
            }
            for channel, name in enumerate(self.channels)
        }

    def gain(self, groups: np.ndarray) -> dict[str, Any]:
        """Return by how much the blend is ahead of the best channel alone, and the standard error, by whole groups.

        Args:
            groups: (n,) int64, whose requests they are: those of one group are not independent.
        """
        places, ranks = np.concatenate(self._places), np.concatenate(self._ranks)
        found = {}
        for size in self.sizes:
            best = int((ranks <= size).mean(0).argmax())
            ahead = (places <= size).astype(float) - (ranks[:, best] <= size)
            apart = np.bincount(np.unique(groups, return_inverse=True)[1], ahead - ahead.mean())
            error = float(np.sqrt((apart**2).sum()) / len(ahead))
            found[str(size)] = {"over": self.channels[best], "recall": float(ahead.mean()), "standard_error": error}
        return found


def figures(measured: Measured, groups: np.ndarray, marks: np.ndarray, slices: list[str]) -> dict[str, Any]:
    """Return all figures of a day.

    Returns:
        `requests`; `blend`: ``recall_K``, the share of requests whose item is among the first K candidates; `channels`:
        of each ``recall_K`` of its own list, ``only_K``, the share of requests whose item is among the first K because
        of it alone, ``share_K`` of those candidates that it brought, others too or not, and ``sole_K`` that it alone
        brought; `gain`, see `Measured.gain`; and `slices`: of each the same without shares and gain.
    """
    whole = measured.part(np.ones(len(marks), bool))
    shares = measured.shares()
    whole["channels"] = {name: part | shares[name] for name, part in whole["channels"].items()}
    parts = {name: measured.part((marks >> bit & 1).astype(bool)) for bit, name in enumerate(slices)}
    return whole | {"gain": measured.gain(groups), "slices": parts}


def _mean(hit: np.ndarray) -> float:
    return float(hit.mean()) if len(hit) else float("nan")
