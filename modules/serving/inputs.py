"""From the tensors that a caller gives of a feature to its ids, their embeddings, and numbers.

This is the way to the tables that an exported file goes, in the place of the training batch's KeyedJaggedTensor.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Recipe
from livetrain.modules.features.bag import pool
from livetrain.modules.features.cross import cross
from livetrain.modules.layers.exporting import exporting
from livetrain.modules.serving.quantized import ByteTable, FloatTable
from livetrain.modules.tables import hashing


class Ids(nn.Module):
    """The ids of one feature whose carrier is ids: raw ids -> those to look up, a list cut to its newest entries.

    Args:
        name: the feature.
        limit: longest list per row; 0 for a feature with at most one id.
        beside: numbers that each id has: 1 of a weight, or those of a vector; 0 for none.
        transform: from the caller's ids to those that are looked up; None where they are the same.
    """

    name: str
    limit: int
    beside: int

    def __init__(self, name: str, limit: int, beside: int, transform: nn.Module | None) -> None:
        super().__init__()
        self.name = name
        self.limit = limit
        self.beside = beside
        self.transform = transform

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take one feature's ids.

        Args:
            ids: feature -> (N,) integers of any value, row after row, newest last.
            lengths: feature -> (B,) integers, N = their sum. An id feature's may be left out when N = B.
            dense: feature -> what lies beside its ids: (N,) weights, or (N, w) vectors.

        Returns:
            (M,) int64 ids, (B,) int64 lengths, M = their sum, and what lies beside the ids or None.

        Raises:
            ValueError: the feature or what lies beside it is missing, its ids are no integers, or lengths do not fit.
        """
        if self.name not in ids:
            raise ValueError("ids: the feature '" + self.name + "' is missing")
        value = ids[self.name]
        if value.is_floating_point() and value.numel() > 0:  # an empty list becomes a float tensor all too easily
            raise ValueError("ids: those of '" + self.name + "' must be integers, for a float loses digits")
        value = value.to(torch.int64)
        if self.name in lengths:
            length = lengths[self.name].to(torch.int64)
        elif self.limit == 0:
            length = torch.ones_like(value)
        else:
            raise ValueError("lengths: those of the lists '" + self.name + "' are missing")
        beside: Tensor | None = None
        if self.beside > 0:
            beside = numbers_of(dense, self.name, self.beside)
            if beside.numel() != value.numel() * self.beside:
                raise ValueError("dense: '" + self.name + "' needs one weight or vector of each of its ids")
        if not exporting():
            value, length, beside = self._cut(value, length, beside)
        if self.transform is not None:
            value = self.transform(value)
        return value, length, beside

    def _cut(self, value: Tensor, length: Tensor, beside: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        if length.numel() == 0 and value.numel() == 0:
            return value, length, beside
        if length.numel() == 0 or int(length.min()) < 0 or int(length.sum()) != value.numel():
            raise ValueError("lengths: those of '" + self.name + "' do not add up to its number of ids")
        if int(length.max()) <= max(self.limit, 1):
            return value, length, beside
        if self.limit == 0:
            raise ValueError("lengths: '" + self.name + "' is an id feature, so a row has one id or none")
        ends = torch.repeat_interleave(torch.cumsum(length, 0), length)  # (N,), where the row of each id ends
        newest = ends - torch.arange(value.numel(), device=value.device) <= self.limit
        if beside is not None:
            beside = beside[newest]
        return value[newest], torch.clamp(length, max=self.limit), beside


class NumberIds(nn.Module):
    """The ids of one feature that are made of numbers.

    Args:
        name: the feature.
        transform: (B,) float32 -> (B,) int64 ids.
        numbers: per row, see `numbers_of`.
    """

    name: str
    width: int

    def __init__(self, name: str, transform: nn.Module, numbers: int) -> None:
        super().__init__()
        self.name = name
        self.width = numbers
        self.transform = transform

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (B,) int64 ids, lengths, all 1, and nothing beside them; arguments as `Ids.forward`."""
        value = self.transform(numbers_of(dense, self.name, self.width))
        return value, torch.ones_like(value), None


class CrossIds(nn.Module):
    """The ids of one feature that are made of other features' ids, see modules.features.cross.

    Args:
        name: the feature.
        parts: `Ids` or `NumberIds` of those others.
    """

    name: str

    def __init__(self, name: str, parts: list[nn.Module]) -> None:
        super().__init__()
        self.name = name
        self.parts = cast(Sequence[Ids | NumberIds], nn.ModuleList(parts))

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (M,) int64 ids, (B,) lengths, and nothing beside them; arguments as `Ids.forward`.

        Raises:
            ValueError: also where the parts' rows are neither as many nor one.
        """
        values: list[Tensor] = []
        counts: list[Tensor] = []
        rows, first = -1, ""
        for part in self.parts:
            value, length, _ = part(ids, lengths, dense)
            values.append(value)
            counts.append(length)
            rows, first = same_rows(rows, first, length.size(0), part.name, True)
        made, there = cross(values, counts)
        return made, there, None


class Lookup(nn.Module):
    """One feature that is looked up: a caller's tensors -> embeddings.

    Args:
        name: the feature.
        source: `Ids` or the like.
        table: rows (N,) -> (N, dim) float32, see modules.serving.quantized; shared with every other feature of it.
        modulo: whether an id's row is its plain remainder (see `hashing.row`); a table with ids of its own knows them.
        pooling: how a row's embeddings become one; "" where they do not.
    """

    name: str
    modulo: bool
    pooling: str

    def __init__(self, name: str, source: nn.Module, table: FloatTable | ByteTable, modulo: bool, pooling: str) -> None:
        super().__init__()
        self.name = name
        self.source = source
        self.table = table
        self.modulo = modulo
        self.pooling = pooling

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Look a feature's ids up; arguments as `Ids.forward`.

        Returns:
            (M, dim) float32 embeddings, (B,) int64 lengths, M = their sum, and (M, w) vectors beside them, or None.
        """
        value, length, beside = self.source(ids, lengths, dense)
        own = self.table.ids
        rows = hashing.row(value, self.table.rows, self.modulo) if own is None else own(value)
        found = self.table(rows)
        if self.pooling != "":
            return pool(found, length, beside, self.pooling), torch.ones_like(length), None
        if beside is not None and beside.dim() == 1:  # vectors of one number
            beside = beside.unsqueeze(1)
        return found, length, beside


class Numbers(nn.Module):
    """One feature that the network gets as numbers, transformed.

    Args:
        name: the feature.
        transform: (B,) or (B, w) float32 -> (B,) or (B, columns) float32; None where they stay as they are.
        numbers: per row, see `numbers_of`.
        columns: how many the transform makes of them.
    """

    name: str
    width: int
    columns: int

    def __init__(self, name: str, transform: nn.Module | None, numbers: int, columns: int) -> None:
        super().__init__()
        self.name = name
        self.transform = transform
        self.width = numbers
        self.columns = columns

    def forward(self, dense: dict[str, Tensor]) -> Tensor:
        """Args: dense, as `Scorer.forward`. Returns: (B, columns)."""
        found = numbers_of(dense, self.name, self.width)
        if self.transform is not None:
            found = self.transform(found)
        return found.reshape(-1, self.columns)


def numbers_of(dense: dict[str, Tensor], name: str, width: int) -> Tensor:
    """Return a feature's numbers, (B,), or (B, width) of a width above 1."""
    if name not in dense:
        raise ValueError("dense: the feature '" + name + "' is missing")
    found = dense[name].to(torch.float32)
    if width > 1 and found.numel() == 0:  # as an empty list becomes a tensor of one dimension
        return found.reshape(0, width)
    if width > 1 and (found.dim() != 2 or found.size(1) != width):
        raise ValueError("dense: '" + name + "' must be (rows, " + str(width) + "), not " + str(list(found.size())))
    return found


def source_of(name: str, recipe: Recipe, transforms: Mapping[str, nn.Module]) -> nn.Module:
    """Return what makes a feature's ids of a caller's tensors."""
    feature, transform = recipe.features[name], transforms[name]
    if feature.parts:
        return CrossIds(name, [source_of(part, recipe, transforms) for part in feature.parts])
    if feature.carrier == "numbers":
        return NumberIds(name, transform, feature.numbers)
    limit = feature.limit if feature.lists else 0
    beside = recipe.beside(name)
    return Ids(name, limit, 0 if beside is None else beside[1], None if feature.plain else transform)


def same_rows(rows: int, first: str, found: int, name: str, shared: bool) -> tuple[int, str]:
    """Return the number of rows after one more feature, and a feature that has it; one row fits all if `shared`."""
    if rows >= 0 and rows != found:
        if shared and found == 1:
            return rows, first
        if not (shared and rows == 1):
            raise ValueError("'" + first + "' has " + str(rows) + " rows and '" + name + "' has " + str(found))
    return found, name


def repeated(
    names: list[str], ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Repeat the features of one user for each of B candidates.

    Args:
        names: features that are read; others are left out.
        ids: feature -> ids of one row, or of B rows, one per candidate.
        lengths: feature -> (1,) or (B,), likewise.
        dense: feature -> (1,) or (B,) numbers, or (1, w) or (B, w), likewise; or what lies beside a feature's ids.

    Returns:
        ids, lengths and dense of B rows each.
    """
    size = 1
    for name in names:
        if name in lengths:
            size = max(size, lengths[name].numel())
        elif name in ids:
            size = max(size, ids[name].numel())
        elif name in dense:
            size = max(size, dense[name].size(0))
    every: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    numbers: dict[str, Tensor] = {}
    for name in names:
        rows = -1
        if name in ids:
            rows = lengths[name].numel() if name in lengths else ids[name].numel()
            repeats = size if rows == 1 else 1
            every[name] = ids[name].repeat(repeats)
            if name in lengths:
                counts[name] = lengths[name].repeat(repeats)
        if name in dense:
            rows = dense[name].size(0) if rows < 0 else rows
            repeats = size if rows == 1 else 1
            numbers[name] = dense[name].repeat([repeats] + [1] * (dense[name].dim() - 1))
    return every, counts, numbers
