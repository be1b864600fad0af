"""The rows that an evaluation keeps: all of them, or those of a share of the groups."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch.distributed as dist

from livetrain.modules.mixing import mix
from livetrain.modules.tasks.kind import TaskKind
from livetrain.trainers.evaluate.gather import _reduce

UNKNOWN = -1  # code of a label that is missing; every kind's labels are 0 or more


@dataclass
class Rows:
    """n rows on the host, padding dropped."""

    logits: np.ndarray  # (n, T) float32
    labels: np.ndarray  # (n, T) the label or UNKNOWN; int8 where all tasks are binary, else float32
    groups: np.ndarray  # (n,) int64; where the evaluation has no groups, numbers of the rows
    buckets: np.ndarray  # (n,) int8, index of LENGTH_NAMES, zeros where it has no lengths
    slices: np.ndarray  # (n,) int64, bit i: the row is in the i-th slice; int8 zeros without slices

    @classmethod
    def empty(cls, kinds: list[TaskKind]) -> "Rows":
        labels = np.zeros((0, len(kinds)), label_type(kinds))
        none = np.zeros(0, np.int64)
        return cls(labels.astype(np.float32), labels, none, none.astype(np.int8), none)

    @classmethod
    def concat(cls, parts: list["Rows"], kinds: list[TaskKind]) -> "Rows":
        parts = parts or [cls.empty(kinds)]
        return cls(*(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(cls)))

    def __getitem__(self, chosen: np.ndarray) -> "Rows":
        return Rows(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.groups)


def inside(slices: np.ndarray, part: int) -> np.ndarray | np.bool_:
    """Return which rows are in a part of the split: (n,) bool for the i-th slice, True for part 0, the whole."""
    return (slices >> (part - 1) & 1).astype(bool) if part else np.True_


def label_type(kinds: Sequence[TaskKind]) -> type[np.generic]:
    """Return in which type the labels of all tasks are kept."""
    return np.float32 if any(kind.numeric for kind in kinds) else np.int8


class GroupSample:
    """All rows of a pseudo-random share of groups, the largest share 2^-k that holds at most `budget` rows.

    A group belongs to the sample when a hash of its id is below the threshold 2^(64-k). Each rank raises k while its
    own rows exceed the budget, then all do while the rows of all ranks exceed it: k, and with it the sample, is the
    same however the rows were spread over ranks.
    """

    def __init__(self, kinds: list[TaskKind], budget: int) -> None:
        self.kinds, self.budget = kinds, budget
        self.halvings = 0
        self.parts: list[Rows] = []
        self.size = 0

    def _chosen(self, rows: Rows) -> Rows:
        if not self.halvings:
            return rows
        return rows[mix(rows.groups.view(np.uint64)) <= np.uint64((2**64 - 1) >> self.halvings)]

    def add(self, rows: Rows) -> None:
        self.parts.append(self._chosen(rows))
        self.size += len(self.parts[-1])
        while self.size > self.budget and self.halvings < 64:
            self.cut(self.halvings + 1)

    def cut(self, halvings: int) -> None:
        """Keep the share 2^-halvings of all groups."""
        self.halvings = halvings
        self.parts = [self._chosen(Rows.concat(self.parts, self.kinds))]
        self.size = len(self.parts[0])

    def settle(self) -> Rows:
        """Agree on the share with all ranks; return this rank's rows of it."""
        self.cut(int(_reduce(np.array([self.halvings]), dist.ReduceOp.MAX)[0]))
        while _reduce(np.array([self.size]))[0] > self.budget and self.halvings < 64:
            self.cut(self.halvings + 1)
        return self.parts[0]
