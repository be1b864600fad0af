"""The model as a server calls it: dicts of tensors in, probabilities out. Scripted by trainers.export."""

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from configs.schema import DenseFeature, Recipe, SequenceFeature
from modules.model import Model


class Inbox(nn.Module):
    """Named tensors -> one KeyedJaggedTensor of raw ids, sequences cut to their newest max_length.

    Args:
        keys: id and sequence features, in the recipe's order.
        limits: longest list a key; 0 for an id feature, whose lengths may be left out when every row has one.
    """

    keys: list[str]
    limits: list[int]

    def __init__(self, keys: list[str], limits: list[int]) -> None:
        super().__init__()
        self.keys = keys
        self.limits = limits

    def forward(self, ids: dict[str, torch.Tensor], lengths: dict[str, torch.Tensor]) -> KeyedJaggedTensor:
        values: list[torch.Tensor] = []
        counts: list[torch.Tensor] = []
        for i, key in enumerate(self.keys):
            if key not in ids:
                raise ValueError("ids: the feature '" + key + "' is missing")
            value = ids[key].to(torch.int64)
            limit = self.limits[i]
            if key in lengths:
                length = lengths[key].to(torch.int64)
            elif limit == 0:
                length = torch.ones_like(value)
            else:
                raise ValueError("lengths: the sequence feature '" + key + "' is missing")
            longest = max(limit, 1)
            if int(length.sum()) != value.numel():
                raise ValueError("lengths: those of '" + key + "' do not add up to its number of ids")
            if length.numel() > 0 and int(length.max()) > longest:
                ends = torch.repeat_interleave(torch.cumsum(length, 0), length)
                value = value[ends - torch.arange(value.numel(), device=value.device) <= longest]
                length = torch.clamp(length, max=longest)
            values.append(value)
            counts.append(length)
        if len(values) == 0:  # a model of dense features alone
            none = torch.zeros(0, dtype=torch.int64)
            return KeyedJaggedTensor(keys=self.keys, values=none, lengths=none)
        return KeyedJaggedTensor(keys=self.keys, values=torch.cat(values), lengths=torch.cat(counts))


class Columns(nn.Module):
    """Named dense tensors (B,) -> (B, D) float32 in the recipe's order; NaN is a missing value."""

    names: list[str]

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, dense: dict[str, torch.Tensor], ids: KeyedJaggedTensor) -> torch.Tensor:
        columns: list[torch.Tensor] = []
        for name in self.names:
            if name not in dense:
                raise ValueError("dense: the feature '" + name + "' is missing")
            columns.append(dense[name].to(torch.float32))
        if len(columns) == 0:
            return torch.zeros(ids.stride(), 0)
        return torch.stack(columns, dim=1)


class Probabilities(nn.Module):
    """Logits (B,) by task -> probabilities (B,) by task."""

    def forward(self, logits: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = {}
        for task, logit in logits.items():
            out[task] = torch.sigmoid(logit)
        return out


class Scorer(nn.Module):
    """What is exported: ids, lengths and dense by feature -> probability by task.

    Args:
        model: a plain model in evaluation mode.
        recipe: its recipe.
    """

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__()
        keyed = {n: f for n, f in recipe.features.items() if not isinstance(f, DenseFeature)}
        limits = [f.max_length if isinstance(f, SequenceFeature) else 0 for f in keyed.values()]
        self.inbox = Inbox(list(keyed), limits)
        self.columns = Columns([n for n, f in recipe.features.items() if isinstance(f, DenseFeature)])
        self.model = model
        self.probabilities = Probabilities()

    def forward(
        self, ids: dict[str, torch.Tensor], lengths: dict[str, torch.Tensor], dense: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        jagged = self.inbox(ids, lengths)
        return self.probabilities(self.model(jagged, self.columns(dense, jagged), None))
