"""From a batch's carriers to what is looked up and what the network gets, for features that are not plain."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.schema import Feature
from livetrain.modules.batch import Requests
from livetrain.modules.features.cross import cross
from livetrain.modules.features.transform import Transform


def has_transforms(features: Mapping[str, Feature]) -> bool:
    """Return whether any feature's kind changes what its carrier holds."""
    return not all(feature.plain for feature in features.values())


def split_numbers(features: Mapping[str, Feature], numbers: Tensor) -> dict[str, Tensor]:
    """Return a batch's numbers by feature.

    Args:
        features: the recipe's.
        numbers: (B, W), as in `Batch.dense`.

    Returns:
        Feature -> (B,), or (B, w) of a feature of w > 1 numbers per row; views.
    """
    carried = {name: feature.numbers for name, feature in features.items() if feature.carrier == "numbers"}
    parts = numbers.split(list(carried.values()), 1)
    return {n: p.squeeze(1) if carried[n] == 1 else p for n, p in zip(carried, parts, strict=True)}


class Prepare(nn.Module):
    """Transform the ids of a batch, add those that are made of numbers and of others, and hash all of them to rows.

    Args:
        features: the recipe's.
        transforms: of all of them.
        hashing: of all features with a table: those whose carrier is ids, then those made of numbers, then of features.
    """

    def __init__(
        self, features: Mapping[str, Feature], transforms: Mapping[str, Transform], hashing: nn.Module
    ) -> None:
        super().__init__()
        self.hashing = hashing
        self.features = dict(features)
        self.changed = [n for n, f in features.items() if f.looks_up() and not f.plain and not f.parts]
        self.transforms = nn.ModuleDict({keyed(name): transforms[name] for name in self.changed})
        self.crosses = {name: feature.parts for name, feature in features.items() if feature.parts}

    def forward(self, ids: KeyedJaggedTensor, numbers: Tensor, requests: Requests | None = None) -> KeyedJaggedTensor:
        """Prepare one batch.

        Args:
            ids: raw ids.
            numbers: (B, W) raw numbers.
            requests: the batch's.

        Returns:
            Table rows of the features in the order of `hashing`'s keys; one id per row of a feature made of numbers.
            On a GPU this waits for it once where a feature is made of others: how many rows have all of them it alone
            knows.
        """
        values, lengths, size = ids.values().clone(), [ids.lengths()], numbers.size(0)
        ends, keys, counts = ids.offset_per_key(), list(ids.keys()), list(ids.length_per_key())
        parts, carried = [values], split_numbers(self.features, numbers)
        for name in self.changed:
            transform = self.transforms[keyed(name)]
            if name in carried:
                parts.append(transform(carried[name]))
                lengths.append(torch.ones(size, dtype=ids.lengths().dtype, device=numbers.device))
                keys.append(name)
                counts.append(size)
            else:
                place = keys.index(name)
                part = values[ends[place] : ends[place + 1]]
                part.copy_(transform(part))
        numbered = iter(parts[1:])
        of_key = {
            key: values[ends[i] : ends[i + 1]] if i + 1 < len(ends) else next(numbered) for i, key in enumerate(keys)
        }
        length_of_key = dict(zip(keys, torch.cat(lengths).view(-1, size), strict=True))
        for name, of in self.crosses.items():
            each = [self._by_row(part, of_key[part], length_of_key[part], requests) for part in of]
            made, there = cross([part for part, _ in each], [length for _, length in each])
            parts.append(made)
            lengths.append(there)
            keys.append(name)
            counts.append(made.numel())
        joined = KeyedJaggedTensor(
            keys=keys, values=torch.cat(parts), lengths=torch.cat(lengths), stride=size, length_per_key=counts
        )
        return self.hashing(joined)

    def _by_row(self, name: str, values: Tensor, lengths: Tensor, requests: Requests | None) -> tuple[Tensor, Tensor]:
        """Return a feature's ids and lengths (B,) by row, where it may be shared."""
        if requests is None or name not in requests.keys:
            return values, lengths
        return requests.spread(name, values, lengths[: requests.size])


class Select(nn.Module):
    """The columns that the network or an encoder gets, of the numbers of a batch, each feature's transformed.

    Args:
        features: the recipe's.
        transforms: of all of them.
    """

    def __init__(self, features: Mapping[str, Feature], transforms: Mapping[str, Transform]) -> None:
        super().__init__()
        self.features = dict(features)
        self.names = [name for name, feature in features.items() if feature.form == "dense"]
        self.transforms = nn.ModuleDict({keyed(name): transforms[name] for name in self.names})

    def forward(self, numbers: Tensor) -> Tensor:
        """Args: numbers (B, W) raw. Returns: (B, D), the transforms' `columns`."""
        carried = split_numbers(self.features, numbers)
        columns = [t(carried[name]) for name, t in zip(self.names, self.transforms.values(), strict=True)]
        return torch.column_stack(columns) if columns else numbers[:, :0]


class Carried(nn.Module):
    """The vectors, or the gaps between times, that events carry, by feature.

    Args:
        features: the recipe's.
    """

    def __init__(self, features: Mapping[str, Feature]) -> None:
        super().__init__()
        self.widths = {
            n: 1 if f.alike is None else features[f.alike].numbers for n, f in features.items() if f.carried is not None
        }

    def forward(self, ids: KeyedJaggedTensor, vectors: Tensor) -> dict[str, Tensor]:
        """Args: a batch's ids and `Batch.vectors`. Returns: sequence feature -> (N, w), one of each of its N ids."""
        counts = dict(zip(ids.keys(), ids.length_per_key(), strict=True))
        parts = vectors.split([counts[name] * width for name, width in self.widths.items()])
        return {n: part.view(-1, width) for (n, width), part in zip(self.widths.items(), parts, strict=True)}


class Encode(nn.Module):
    """Each feature's columns through its transform's encoder; those of features without one stay as they are.

    The vectors that events carry go through the encoder of the feature that they are like, and stand behind the events'
    embeddings from then on. Gaps between their times, which are like nothing, stand by themselves, see
    modules.layers.jagged.gaps_of.

    Args:
        columns: feature -> its columns before; 0 where only events have what it encodes.
        encoders: feature -> its encoder, or None.
        like: sequence feature -> feature.
    """

    sizes: list[int]
    followers: list[list[str]]
    like: dict[str, str]

    def __init__(
        self, columns: Mapping[str, int], encoders: Mapping[str, nn.Module | None], like: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.columns, self.sizes = dict(columns), list(columns.values())
        self.like = dict(like)
        self.encoders = nn.ModuleDict({keyed(name): encoders[name] or nn.Identity() for name in columns})
        self.followers = [[events for events, feature in like.items() if feature == name] for name in columns]

    def of(self, names: list[str]) -> "Encode":
        """Return the same for some of the features, with these very encoders."""
        like = {events: name for events, name in self.like.items() if events in names}
        own = {n: c if n in names else 0 for n, c in self.columns.items() if n in (*names, *like.values())}
        return Encode(own, {name: self.encoders[keyed(name)] for name in own}, like)

    def forward(
        self, dense: Tensor, values: dict[str, Tensor], vectors: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode a batch.

        Args:
            dense: (B, sum of `columns`), without NaN.
            values: feature -> (N, dim) embeddings.
            vectors: sequence feature -> (N, w), without NaN.

        Returns:
            (B, D), and the embeddings, those of events that carry vectors joined with these.
        """
        parts = dense.split(self.sizes, 1)
        encoded: list[Tensor] = []
        joined = values.copy()
        place = 0
        for encoder in self.encoders.values():
            if self.sizes[place] > 0:
                encoded.append(encoder(parts[place]))
            if vectors is not None:
                for name in self.followers[place]:
                    joined[name] = torch.cat([values[name], encoder(vectors[name])], 1)
            place += 1  # noqa: SIM113  (TorchScript does not enumerate a ModuleDict)
        if vectors is not None:
            for name, gaps in vectors.items():
                if name not in self.like:
                    joined["(gaps of) " + name] = gaps
        return torch.cat(encoded, 1) if len(encoded) > 0 else dense, joined


def keyed(name: str) -> str:
    """Return a feature's key in a ModuleDict, where "type" or "values" would be taken."""
    return f"of_{name}"
