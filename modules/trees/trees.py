"""Boosted trees of one task as arrays, and what scores them: plain PyTorch, which TorchScript accepts.

Rows are made wide before they go down the trees, so that each node asks one question, *is a number above a threshold*:
the row's numbers with missing ones above all others, with missing ones below all others, and with missing ones as 0 (a
node looks at one of the three), then 0 or 1 for each split of categories. Thresholds are rounded down to float32, which
changes no answer: the numbers are float32 themselves.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from livetrain.modules.trees.columns import Column

_PAIRS = 1 << 20  # rows times trees that are on their way at a time


class Forest(NamedTuple):
    """T trees of N nodes in all, L of them leaves, with K splits of categories."""

    roots: np.ndarray  # (T,) int32, the node where each tree begins
    feature: np.ndarray  # (N,) int32, place in the wide row; -1 of a leaf
    threshold: np.ndarray  # (N,) float32
    child: np.ndarray  # (N, 2) int32, where a row goes whose number is at most the threshold, or above it
    value: np.ndarray  # (N,) float64, what a leaf adds; 0 of other nodes
    leaves: np.ndarray  # (L,) int32, the node of each leaf, tree by tree, in the order of the library's numbers
    split_column: np.ndarray  # (K,) int32, the column of each split of categories, rising
    split_right: np.ndarray  # uint8, one split after the other, of each code of its column, and at the end of a missing
    # one, whether it goes right

    def counts(self) -> np.ndarray:
        """Return how many leaves each tree has, (T,)."""
        ends = np.append(self.roots[1:], len(self.feature))
        leaf = np.concatenate([[0], np.cumsum(self.feature < 0)])
        return leaf[ends] - leaf[self.roots]


def forest(dumped: list[dict[str, Any]], columns: list[Column]) -> Forest:
    """Return LightGBM's trees as arrays.

    Args:
        dumped: `tree_info` of ``Booster.dump_model()``.
        columns: what the trees split.
    """
    nodes: list[tuple[int, float, float]] = []
    child: list[list[int]] = []
    roots, leaves, sets = [], [], list[tuple[int, int, np.ndarray]]()

    def grow(node: dict[str, Any], own: dict[int, int]) -> int:
        place = len(nodes)
        nodes.append((-1, 0.0, float(node.get("leaf_value", 0.0))))
        child.append([place, place])
        if "split_feature" not in node:
            own[node.get("leaf_index", 0)] = place
            return place
        column, wide = node["split_feature"], len(columns)
        if node["decision_type"] == "==":
            right = np.ones(columns[column].categories + 1, np.uint8)
            right[[int(code) for code in str(node["threshold"]).split("||")]] = 0
            sets.append((column, place, right))
            nodes[place] = (0, 0.5, 0.0)
        else:
            block = 2 if node["missing_type"] == "None" else int(node["default_left"])
            nodes[place] = (block * wide + column, _down(node["threshold"]), 0.0)
        child[place] = [grow(node["left_child"], own), grow(node["right_child"], own)]
        return place

    for tree in dumped:
        own: dict[int, int] = {}
        roots.append(grow(tree["tree_structure"], own))
        leaves += [own[number] for number in sorted(own)]
    feature, threshold, value = (np.array(part) for part in zip(*nodes, strict=True))
    sets.sort(key=lambda one: one[:2])
    feature[[place for _, place, _ in sets]] = 3 * len(columns) + np.arange(len(sets))
    return Forest(
        np.array(roots, np.int32),
        feature.astype(np.int32),
        threshold.astype(np.float32),
        np.array(child, np.int32),
        value.astype(np.float64),
        np.array(leaves, np.int32),
        np.array([column for column, _, _ in sets], np.int32),
        np.concatenate([np.zeros(0, np.uint8), *(right for _, _, right in sets)]),
    )


def _down(threshold: float) -> float:
    """Return the largest float32 that is at most a number."""
    most = float(np.finfo(np.float32).max)
    if abs(threshold) > most:
        return most if threshold > 0 else -math.inf
    found = np.float32(threshold)
    return float(found) if float(found) <= threshold else float(np.nextafter(found, np.float32(-np.inf)))


class Trees(nn.Module):
    """What a forest says of rows: the sum over its trees of the value of the leaf that a row comes to, and a bias.

    Args:
        forest: the trees.
        columns: what they split.
        bias: added to each row's sum.
    """

    roots: Tensor
    feature: Tensor
    threshold: Tensor
    child: Tensor
    value: Tensor
    step: int
    bias: float
    split: list[int]

    def __init__(self, forest: Forest, columns: list[Column], bias: float = 0.0) -> None:
        super().__init__()
        for name in ("roots", "feature", "threshold", "value"):
            self.register_buffer(name, torch.from_numpy(np.array(getattr(forest, name))))
        self.register_buffer("child", torch.from_numpy(np.array(forest.child)).flatten())
        self.step = max(_PAIRS // max(len(forest.roots), 1), 1)
        self.bias = bias
        self.split = sorted({*forest.split_column.tolist()})  # columns of categories that are split
        rows = [columns[column].categories + 1 for column in forest.split_column]
        ends = np.cumsum([0, *rows])
        rights = [forest.split_right[start:end] for start, end in zip(ends, ends[1:], strict=False)]
        for column in self.split:
            own = [right for right, of in zip(rights, forest.split_column, strict=True) if of == column]
            self.register_buffer(f"of_{column}", torch.from_numpy(np.stack(own, 1).astype(np.float32)))
        self.tables = nn.ParameterList(
            nn.Parameter(getattr(self, f"of_{column}"), requires_grad=False) for column in self.split
        )
        for column in self.split:
            delattr(self, f"of_{column}")

    def forward(self, numbers: Tensor) -> Tensor:
        """Args: numbers (B, F) float32, NaN = missing. Returns: (B,) float64."""
        found: list[Tensor] = []
        for part in numbers.split(self.step):
            found.append(self._sums(part))
        if len(found) == 0:
            return torch.zeros(0, dtype=torch.float64)
        return torch.cat(found)

    def _sums(self, numbers: Tensor) -> Tensor:
        size, trees = numbers.size(0), self.roots.numel()
        wide = self._wide(numbers)
        width, flat = wide.size(1), wide.flatten()
        out = torch.full((size,), self.bias, dtype=torch.float64)
        row = torch.arange(size, dtype=torch.int32).repeat_interleave(trees)
        node = self.roots.repeat(size)
        while node.numel() > 0:
            feature = self.feature.index_select(0, node)
            ends = feature < 0
            if bool(ends.any()):
                out.index_add_(0, row[ends], self.value.index_select(0, node[ends]))
                goes_on = torch.logical_not(ends)
                row, node, feature = row[goes_on], node[goes_on], feature[goes_on]
            number = flat.index_select(0, row * width + feature)
            above = number > self.threshold.index_select(0, node)
            node = self.child.index_select(0, node * 2 + above.to(torch.int32))
        return out

    def _wide(self, numbers: Tensor) -> Tensor:
        missing = numbers.isnan()
        parts = [
            torch.where(missing, float("inf"), numbers),
            torch.where(missing, -float("inf"), numbers),
            torch.where(missing, 0.0, numbers),
        ]
        for i, table in enumerate(self.tables):
            column = self.split[i]
            code = numbers[:, column]
            last = table.size(0) - 1
            parts.append(table.index_select(0, torch.where(code.isnan(), float(last), code).to(torch.int64)))
        return torch.cat(parts, 1)
