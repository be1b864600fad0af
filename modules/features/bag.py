"""Sets of ids that become one embedding: each id's factor in a sum, and the two ways to the sum.

A table that bags and ids alone use is looked up and pooled where its rows lie, so that one vector per row and feature
travels between ranks, whatever the number of ids. For it all poolings but max are sums whose factors are known before
the lookup. Those of a table that a sequence uses too, which needs every embedding, of max, and of a table that every
rank holds whole are pooled after the lookup; what is computed is the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.features.bag import BagFeature
from livetrain.configs.schema import Feature, Recipe
from livetrain.configs.schema.table import POOLED_ALONE
from livetrain.modules.batch import Requests
from livetrain.modules.features.registry import register_feature
from livetrain.modules.features.transform import Transform
from livetrain.modules.layers import jagged


@register_feature("bag", BagFeature)
class Bag(Transform):
    """ids -> ids; `pool` makes one embedding of theirs."""


def pools_where_rows_lie(recipe: Recipe, table: str) -> bool:
    """Return whether a table's embeddings are pooled where its rows lie: a bag uses it, and nobody needs them apart.

    A sharding that torchrec has for pooled tables alone makes one of ids too: an id is a sum of one.
    """
    if recipe.tables[table].sharding == "data_parallel" or recipe.apart(table) is not None:
        return False
    users = (feature for feature in recipe.features.values() if feature.looks_up() == table)
    return recipe.tables[table].sharding in POOLED_ALONE or any(feature.pooled for feature in users)


def factors(weights: Tensor | None, lengths: Tensor, total: int, pooling: str) -> Tensor:
    """Return what each id's embedding is multiplied by, so that their sum over a row is the pooled one.

        sum: w_i,    mean: w_i / sum_j |w_j|,    sqrtn: w_i / sqrt(sum_j w_j^2)

    with w = 1 where there are no weights. Weights that are all 0 leave the zero vector.

    Args:
        weights: (N,) of any sign; None for 1.
        lengths: (B,) ids of each row.
        total: N, their sum.
        pooling: sum, mean or sqrtn.

    Returns:
        (N,) float32.

    Source: the combiners of TensorFlow's embedding_lookup_sparse; with |w| where it has w, so that weights of both
    signs do not divide by nearly 0.

    Example:
        >>> factors(torch.tensor([3.0, -1.0, 2.0]), torch.tensor([2, 0, 1]), 3, "mean")
        tensor([ 0.7500, -0.2500,  1.0000])
    """
    w = torch.ones([total], device=lengths.device) if weights is None else weights.float()
    if pooling == "sum":
        return w
    segment = jagged.segments(lengths, total)
    each = w.abs() if pooling == "mean" else w * w
    sums = jagged.segment_sum(each.unsqueeze(1), segment, lengths.size(0)).squeeze(1)  # (B,)
    sums = sums if pooling == "mean" else sums.sqrt()
    return w / jagged.spread(torch.where(sums > 0, sums, 1.0), segment)


def pool(values: Tensor, lengths: Tensor, weights: Tensor | None, pooling: str) -> Tensor:
    """Return one embedding per row; zeros where it has no ids.

    Args:
        values: (N, dim) embeddings of all ids.
        lengths: (B,).
        weights: (N,) or None, see `factors`.
        pooling: sum, mean, sqrtn, or max: the largest of each column.

    Returns:
        (B, dim) float32.
    """
    values = values.float()
    if pooling == "max":
        return jagged.largest(values, lengths)
    share = factors(weights, lengths, values.size(0), pooling)
    return jagged.pool(values * share.unsqueeze(1), lengths, False)


class Weigh(nn.Module):
    """A batch's table rows of some features, with the factor of each, for a lookup that sums.

    Args:
        features: the recipe's.
        names: those to take, in the order of the result's keys.
    """

    def __init__(self, features: Mapping[str, Feature], names: list[str]) -> None:
        super().__init__()
        self.poolings = {name: features[name].pooled or "sum" for name in names}
        self.weighted = {name for name in names if features[name].weighted}

    def forward(self, ids: KeyedJaggedTensor, rows: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Args: ids and rows of one batch, raw and hashed. Returns: rows with weights, by feature."""
        keys, counts, size = rows.keys(), rows.length_per_key(), rows.stride()
        places = [keys.index(name) for name in self.poolings]
        ends, lengths = rows.offset_per_key(), rows.lengths().view(len(keys), size)
        weights = []
        for place, (name, pooling) in zip(places, self.poolings.items(), strict=True):
            given = ids[name].weights() if name in self.weighted else None
            weights.append(factors(given, lengths[place], counts[place], pooling))
        return KeyedJaggedTensor(
            keys=list(self.poolings),
            values=torch.cat([rows.values()[ends[place] : ends[place + 1]] for place in places]),
            weights=torch.cat(weights),
            lengths=lengths[places].view(-1),
            stride=size,
            length_per_key=[counts[place] for place in places],
        )


class Found(nn.Module):
    """What lookups found, by feature, as a network takes it.

    Args:
        features: the recipe's.
        collections: of each lookup the features that it finds.
        pooled: the lookups that pool.
    """

    def __init__(
        self, features: Mapping[str, Feature], collections: Mapping[str, list[str]], pooled: list[str]
    ) -> None:
        super().__init__()
        self.collections = dict(collections)
        self.pooled = pooled
        self.poolings = {name: feature.pooled for name, feature in features.items()}
        self.weighted = {name for name, feature in features.items() if feature.weighted}

    def forward(
        self, found: list[Any], ids: KeyedJaggedTensor, rows: KeyedJaggedTensor, requests: Requests | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Take one batch's embeddings apart.

        Args:
            found: of each collection what it answered.
            ids: the batch's raw ids.
            rows: what was looked up.
            requests: the batch's.

        Returns:
            Embeddings (N, dim) and lengths (B,) by feature, N their sum. A bag has one embedding in every row, zeros
            where it has no ids; any other feature has its ids' own. Of a feature that rows share there are lengths
            (R,), with what `jagged.of_requests` adds; of a bag that they share each row has the request's.
        """
        values: dict[str, Tensor] = {}
        lengths: dict[str, Tensor] = {}
        shared: dict[str, int] = {}
        for (name, features), answer in zip(self.collections.items(), found, strict=True):
            each = answer.to_dict() if name in self.pooled else answer
            for feature in features:
                of = requests if requests is not None and feature in requests.keys else None
                size = rows.stride() if of is None else of.size  # beyond its requests a shared feature has no ids
                if name in self.pooled:
                    found_here, counts = self._of_pooled(feature, each[feature][:size], rows)
                else:
                    part = each[feature]
                    found_here, counts = self._of_ids(feature, part.values(), part.lengths()[:size], ids)
                if of is not None and self.poolings[feature]:
                    found_here, counts = found_here.index_select(0, of.of), counts.index_select(0, of.of)
                elif of is not None:
                    shared[feature] = of.keys[feature]
                values[feature], lengths[feature] = found_here, counts
        return values, lengths if requests is None else jagged.of_requests(lengths, requests.of, shared)

    def _of_pooled(self, feature: str, found: Tensor, rows: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        place, size = rows.keys().index(feature), found.size(0)
        if self.poolings[feature]:
            return found, found.new_ones(size, dtype=torch.long)
        lengths, count = rows.lengths().view(-1, rows.stride())[place, :size], rows.length_per_key()[place]
        if count < size:  # without the zeros of rows that have no id
            found = found.index_select(0, jagged.segments(lengths, count))
        return found, lengths

    def _of_ids(self, feature: str, found: Tensor, lengths: Tensor, ids: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        pooling = self.poolings[feature]
        if pooling is None:
            return found, lengths
        weights = ids[feature].weights() if feature in self.weighted else None
        return pool(found, lengths, weights, pooling), torch.ones_like(lengths)
