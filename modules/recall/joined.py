"""Keys of a request that come from several of its features."""

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Recipe
from livetrain.modules.recall.keys import HistoryKeys
from livetrain.modules.tables.hashing import mix


def spread(ids: Tensor, space: int) -> Tensor:
    """Return keys that lie evenly in [0, 2**63): the same for equal ids of one space, and others in another space.

    Args:
        ids: (n,) int64.
        space: a small number.

    Example:
        >>> first, second = spread(torch.tensor([7, 7]), 0), spread(torch.tensor([7]), 1)
        >>> bool(first[0] == first[1]), bool(first[0] == second[0])
        (True, False)
    """
    return mix(mix(ids) + space * 0x1E3779B97F4A7C15)


class JoinedKeys(nn.Module):
    """The ids of several lists of a request, each with what it weighs; see `HistoryKeys`.

    Args:
        recipe: the run.
        features: of types whose rows are ids: a sequence, a bag or an id.
        spaces: of the ids of each: features of one space have one key for one id.
        step: what an id of a list weighs for each newer one.
    """

    spaces: list[int]

    def __init__(self, recipe: Recipe, features: list[str], spaces: list[int], step: float) -> None:
        super().__init__()
        self.spaces = spaces
        self.lists = nn.ModuleList([HistoryKeys(recipe, feature, step) for feature in features])

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (M,) keys, (B,) how many each row has, and (M,) float32 weights; arguments as `Ids.forward`.

        Raises:
            ValueError: a feature is missing, or has another number of rows than the others.
        """
        keys: list[Tensor] = []
        weights: list[Tensor] = []
        rows: list[Tensor] = []
        total = torch.zeros(0, dtype=torch.int64)
        for place, one in enumerate(self.lists):
            own, counts, weight = one(ids, lengths, dense)
            if place > 0 and counts.numel() != total.numel():
                raise ValueError("lengths: lists of one request need as many rows")
            total = total + counts if place > 0 else counts
            keys.append(spread(own, self.spaces[place]))
            weights.append(weight)
            rows.append(torch.repeat_interleave(torch.arange(counts.numel()), counts))
        order = torch.sort(torch.cat(rows), dim=0, stable=True)[1]
        return torch.cat(keys)[order], total, torch.cat(weights)[order]
