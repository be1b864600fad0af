"""Which keys of an inverted table a request has, and with which weights: what `Fitted.request` returns."""

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Recipe
from livetrain.modules.features.registry import transforms
from livetrain.modules.serving.inputs import source_of
from livetrain.modules.tables.hashing import mix


class HistoryKeys(nn.Module):
    """The ids of a list, newest last, each with what it weighs by its place and its age.

    weight of the id that is followed by d newer ones = step^d * 2^(-age / half_life), times its own in a bag of weights

    Args:
        recipe: the run.
        feature: of a type whose rows are lists of ids: a sequence, or a bag.
        step: what an id weighs for each newer one.
        half_life: the age at which an id weighs half, in the unit of `times`; None: its age does not count.
        times: sequence feature with the time of each id of the list, of the same length.
        now: id feature with the time of the request. An age below 0 counts as 0, and so does one that is not known.
    """

    step: float
    half_life: float

    def __init__(
        self,
        recipe: Recipe,
        feature: str,
        step: float = 1.0,
        half_life: float | None = None,
        times: str | None = None,
        now: str | None = None,
    ) -> None:
        super().__init__()
        made = transforms(recipe.features)
        self.source = source_of(feature, recipe, made)
        self.step, self.half_life = step, half_life or 0.0
        aged = half_life is not None and times is not None and now is not None
        self.times = source_of(times, recipe, made) if aged and times is not None else None
        self.now = source_of(now, recipe, made) if aged and now is not None else None

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (M,) keys, (B,) how many each row has, and (M,) float32 weights; arguments as `Ids.forward`.

        Raises:
            ValueError: a feature is missing, or there is not one time of each id.
        """
        keys, counts, own = self.source(ids, lengths, dense)
        ends = torch.repeat_interleave(torch.cumsum(counts, 0), counts)
        newer = ends - 1 - torch.arange(keys.numel(), device=keys.device)
        weights = torch.pow(torch.full_like(newer, self.step, dtype=torch.float32), newer)
        if own is not None:
            weights = weights * own
        times, now = self.times, self.now
        if times is not None and now is not None:
            when, beside, _ = times(ids, lengths, dense)
            if when.numel() != keys.numel() or not torch.equal(beside, counts):
                raise ValueError("ids: the history needs one time of each of its ids")
            moment, known, _ = now(ids, lengths, dense)
            row = torch.repeat_interleave(torch.arange(counts.numel(), device=keys.device), counts)
            place = (torch.cumsum(known, 0) - known).clamp(max=max(moment.numel() - 1, 0))
            if moment.numel() > 0:
                ages = (moment[place[row]] - when).clamp(min=0) * known[row]
                weights = weights * torch.pow(0.5, ages.to(torch.float64) / self.half_life).float()
        return keys, counts, weights


class SliceKeys(nn.Module):
    """The slice that a row is of, by the values of some features, and the larger slices around it.

    A row with the values a, b, c of three features has the keys of (a, b, c), (a, b), (a) and (), in this order, each
    with weight 1. A slice that lacks a value has no key: of a row without b those are (a) and ().

    Args:
        recipe: the run.
        key: the item's feature.
        features: with at most one id per row.
    """

    def __init__(self, recipe: Recipe, key: str, features: list[str]) -> None:
        super().__init__()
        made = transforms(recipe.features)
        self.sources = nn.ModuleList([source_of(name, recipe, made) for name in features])
        # A request without features has rows all the same: as many as it has ids of the item, or one.
        self.rows_of = features[0] if features else key

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (M,) keys, (B,) how many each row has, and (M,) weights of 1; arguments as `Ids.forward`.

        Raises:
            ValueError: a feature is missing, or does not fit the others.
        """
        size = 1
        if self.rows_of in lengths:
            size = lengths[self.rows_of].numel()
        elif self.rows_of in ids:
            size = ids[self.rows_of].numel()
        elif self.rows_of in dense:
            size = dense[self.rows_of].size(0)
        key = torch.zeros(size, dtype=torch.int64)
        there = torch.ones(size, dtype=torch.bool)
        keys, known = [key], [there]
        for source in self.sources:
            values, counts, _ = source(ids, lengths, dense)
            if counts.numel() != size:
                raise ValueError("lengths: features of a slice need one entry for each row")
            there = torch.logical_and(there, counts > 0)
            place = (torch.cumsum(counts, 0) - counts).clamp(max=max(values.numel() - 1, 0))
            if values.numel() > 0:
                key = mix(key + 0x1E3779B97F4A7C15 + mix(values[place]))
            keys.append(key)
            known.append(there)
        every = torch.stack(keys, 1).flip(1)  # (B, F + 1), the smallest slice first
        has = torch.stack(known, 1).flip(1)
        found = every[has]
        return found, has.sum(1), torch.ones(found.numel(), dtype=torch.float32)
