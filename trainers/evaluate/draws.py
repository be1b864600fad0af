"""What an evaluation's bootstrap has drawn, kept so that two runs can be compared without their predictions.

Which groups a draw takes depends on their ids alone (see intervals.py). So draw d of one run and draw d of another are
figures of the same users, where both were measured on the same rows; the difference of the two is a draw of the
difference, and those of all draws make its interval: a paired bootstrap by group (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 8).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from livetrain.modules.mixing import mix
from livetrain.trainers.evaluate.intervals import ends
from livetrain.trainers.runtime.manifest import finite, write_text

NAME = "draws.json"  # in a run's folder: of its test split


@dataclass
class Draws:
    """The figures of all draws on a split.

    Args:
        values: by ``<task>.<metric>``, of a slice ``<slice>.<task>.<metric>``: (N,) float64 by draw, nan where it has
            none.
        rows: by ``<task>`` or ``<slice>.<task>``, the `fingerprint` of the rows that were drawn from.
    """

    values: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the draws into a folder, seven digits of each."""
        values = {name: [float(f"{value:.7g}") for value in drawn] for name, drawn in self.values.items()}
        write_text(folder / NAME, json.dumps(finite({"rows": self.rows, "values": values})))

    @classmethod
    def read(cls, folder: Path) -> "Draws":
        """Return a folder's draws; none where it has no whole file of them."""
        try:
            content = json.loads((folder / NAME).read_text(encoding="utf-8"))
            values = {name: np.array(drawn, np.float64) for name, drawn in content["values"].items()}
            return cls(values, dict(content["rows"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()


def fingerprint(groups: np.ndarray, labels: np.ndarray) -> str:
    """Return what tells n rows from others whatever their order: a sum of their (n,) groups and labels, mixed.

    Example:
        >>> fingerprint(np.array([7, 8]), np.array([0, 1])) == fingerprint(np.array([8, 7]), np.array([1, 0]))
        True
    """
    codes = np.ascontiguousarray(labels, np.float32).view(np.uint32).astype(np.uint64)
    return f"{int(mix(groups.astype(np.int64).view(np.uint64) ^ mix(codes)).sum(dtype=np.uint64)):016x}"


def paired(one: Draws, other: Draws, name: str) -> tuple[float, float] | None:
    """Return the ends of the 95 % interval of `other`'s figure less `one`'s; None where their draws do not pair.

    Example:
        >>> one = Draws({"click.auc": np.array([0.7, 0.8, 0.6])}, {"click": "a1"})
        >>> other = Draws({"click.auc": np.array([0.71, 0.81, 0.61])}, {"click": "a1"})
        >>> [round(end, 4) for end in paired(one, other, "click.auc")]
        [0.01, 0.01]
    """
    of = name.rpartition(".")[0]
    if one.rows.get(of) is None or one.rows.get(of) != other.rows.get(of):
        return None
    left, right = one.values.get(name), other.values.get(name)
    if left is None or right is None:
        return None
    both = min(len(left), len(right))  # draw d is the same however many follow
    low, high = ends(right[:both] - left[:both])
    return (low, high) if np.isfinite(low) else None
