"""The model as a server calls it: tensors by feature in, probabilities by task out. trainers.export scripts it.

What it needs is plain PyTorch: neither torchrec nor fbgemm has to be loaded, in Python or in C++.
"""

import torch
from torch import Tensor, nn

from configs.schema import DenseFeature, IdFeature, Recipe, SequenceFeature
from modules import hashing
from modules.model import Model


class Lookup(nn.Module):
    """One id or sequence feature: raw ids -> embeddings, a list cut to its newest entries.

    Args:
        name: the feature.
        limit: longest list a row; 0 for an id feature.
        weight: the table (rows, dim), shared with every other feature of it.
        modulo: whether an id's row is its plain remainder (see `hashing.row`).
    """

    name: str
    limit: int
    modulo: bool

    def __init__(self, name: str, limit: int, weight: nn.Parameter, modulo: bool) -> None:
        super().__init__()
        self.name = name
        self.limit = limit
        self.weight = weight
        self.modulo = modulo

    def forward(self, ids: dict[str, Tensor], lengths: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Look up one feature.

        Args:
            ids: feature -> (N,) integers of any value, row after row, newest last.
            lengths: feature -> (B,) integers, N = their sum. An id feature's may be left out when N = B.

        Returns:
            (M, dim) float32 embeddings and (B,) int64 lengths, M = their sum.

        Raises:
            ValueError: the feature is missing, its ids are no integers, or its lengths do not fit.
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
            raise ValueError("lengths: the sequence feature '" + self.name + "' is missing")
        value, length = self._cut(value, length)
        found = nn.functional.embedding(hashing.row(value, self.weight.size(0), self.modulo), self.weight)
        return found.float(), length  # (M, dim), (B,)

    def _cut(self, value: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        if length.numel() == 0 and value.numel() == 0:
            return value, length
        if length.numel() == 0 or int(length.min()) < 0 or int(length.sum()) != value.numel():
            raise ValueError("lengths: those of '" + self.name + "' do not add up to its number of ids")
        if int(length.max()) <= max(self.limit, 1):
            return value, length
        if self.limit == 0:
            raise ValueError("lengths: '" + self.name + "' is an id feature, so a row has one id or none")
        ends = torch.repeat_interleave(torch.cumsum(length, 0), length)  # (N,), where the row of each id ends
        newest = ends - torch.arange(value.numel(), device=value.device) <= self.limit
        return value[newest], torch.clamp(length, max=self.limit)


class Scorer(nn.Module):
    """What is exported: ids, lengths and dense by feature -> probability by task.

    The tables and the dense part are the model's own. Only the way to the tables is a second one, without
    KeyedJaggedTensor, which would tie the file to fbgemm's operators; parity before each export covers it.

    Args:
        model: a plain model.
        recipe: its recipe.
    """

    columns: list[str]

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__()
        weights = {name: e.weight for c in model.tables.values() for name, e in c.embeddings.items()}
        self.lookups = nn.ModuleList(
            Lookup(
                name,
                feature.max_length if isinstance(feature, SequenceFeature) else 0,
                weights[feature.table],
                recipe.tables[feature.table].hash == "modulo",
            )
            for name, feature in recipe.features.items()
            if isinstance(feature, IdFeature | SequenceFeature)
        )
        self.columns = [name for name, feature in recipe.features.items() if isinstance(feature, DenseFeature)]
        self.dense = model.dense

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Score B rows.

        Args:
            ids: feature -> (N,), see `Lookup`.
            lengths: feature -> (B,), see `Lookup`.
            dense: feature -> (B,) numbers, not normalised; NaN is a missing value.

        Returns:
            task -> (B,) float32 probabilities.

        Raises:
            ValueError: a feature is missing or does not fit the others.
        """
        values: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        rows, first = -1, ""
        for lookup in self.lookups:
            found, count = lookup(ids, lengths)
            values[lookup.name], counts[lookup.name] = found, count
            rows, first = _same(rows, first, count.size(0), lookup.name)
        columns: list[Tensor] = []
        for name in self.columns:
            if name not in dense:
                raise ValueError("dense: the feature '" + name + "' is missing")
            columns.append(dense[name].to(torch.float32))
            rows, first = _same(rows, first, dense[name].size(0), name)
        table = torch.zeros(rows, 0, device=self.dense.normalise.mean.device)
        if len(columns) > 0:
            table = torch.stack(columns, dim=1)  # (B, D)
        out: dict[str, Tensor] = {}
        for task, logit in self.dense(values, counts, table, None).items():
            out[task] = torch.sigmoid(logit)
        return out


def _same(rows: int, first: str, found: int, name: str) -> tuple[int, str]:
    if rows >= 0 and rows != found:
        raise ValueError("'" + first + "' has " + str(rows) + " rows and '" + name + "' has " + str(found))
    return found, name
