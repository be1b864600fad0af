"""From a batch's carriers to what is looked up and what the network gets, for features that are not plain."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.schema import Feature
from livetrain.modules.features.cross import cross
from livetrain.modules.features.registry import transforms


def has_transforms(features: Mapping[str, Feature]) -> bool:
    """Return whether any feature's kind changes what its carrier holds."""
    return not all(feature.plain for feature in features.values())


class Prepare(nn.Module):
    """Transform the ids of a batch, add those that are made of numbers and of others, and hash all of them to rows.

    Args:
        features: the recipe's.
        hashing: of all features with a table: those whose carrier is ids, then those made of numbers, then of features.
    """

    def __init__(self, features: Mapping[str, Feature], hashing: nn.Module) -> None:
        super().__init__()
        self.hashing = hashing
        self.numbers = {name: i for i, name in enumerate(n for n, f in features.items() if f.carrier == "numbers")}
        self.transforms = nn.ModuleDict(
            {
                n: t
                for n, t in transforms(features).items()
                if features[n].looks_up() and not features[n].plain and not features[n].parts
            }
        )
        self.crosses = {name: feature.parts for name, feature in features.items() if feature.parts}

    def forward(self, ids: KeyedJaggedTensor, numbers: Tensor) -> KeyedJaggedTensor:
        """Prepare one batch.

        Args:
            ids: raw ids.
            numbers: (B, W) raw numbers.

        Returns:
            Table rows of the features in the order of `hashing`'s keys; one id per row of a feature made of numbers.
            On a GPU this waits for it once where a feature is made of others: how many rows have all of them it alone
            knows.
        """
        values, lengths, size = ids.values().clone(), [ids.lengths()], numbers.size(0)
        ends, keys, counts = ids.offset_per_key(), list(ids.keys()), list(ids.length_per_key())
        parts = [values]
        for name, transform in self.transforms.items():
            if name in self.numbers:
                parts.append(transform(numbers[:, self.numbers[name]]))
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
            made, there = cross([of_key[part] for part in of], [length_of_key[part] for part in of])
            parts.append(made)
            lengths.append(there)
            keys.append(name)
            counts.append(made.numel())
        joined = KeyedJaggedTensor(
            keys=keys, values=torch.cat(parts), lengths=torch.cat(lengths), stride=size, length_per_key=counts
        )
        return self.hashing(joined)


class Select(nn.Module):
    """The columns that the network gets, of the numbers of a batch, each transformed.

    Args:
        features: the recipe's.
    """

    def __init__(self, features: Mapping[str, Feature]) -> None:
        super().__init__()
        names = [name for name, feature in features.items() if feature.carrier == "numbers"]
        self.places = [place for place, name in enumerate(names) if features[name].form == "dense"]
        chosen = {names[place]: features[names[place]] for place in self.places}
        self.transforms = nn.ModuleList(transforms(chosen).values())

    def forward(self, numbers: Tensor) -> Tensor:
        """Args: numbers (B, W) raw. Returns: (B, D)."""
        columns = [t(numbers[:, i]) for i, t in zip(self.places, self.transforms, strict=True)]
        return torch.stack(columns, 1) if columns else numbers[:, :0]
