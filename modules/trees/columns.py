"""From a row's features to the numbers that trees split, in fitting and in the exported file alike.

| feature | columns |
| --- | --- |
| numbers, vectors | as they are, transformed as the recipe says, not normalised; NaN = missing |
| ids made of one number (hour, weekday, buckets) | the id, whose order is the number's |
| ids with few values | a category |
| other ids | share of rows with the id, and each task's mean label among them, of strictly earlier rows |
| sequences | length; for each id feature of the same table how often the row's id is in it, and how far from its end |
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Recipe
from livetrain.modules.features.registry import transforms
from livetrain.modules.serving.inputs import Ids, NumberIds, Numbers, source_of


class Column(NamedTuple):
    """A column of the numbers that trees split."""

    name: str
    categories: int  # codes 0 .. categories - 1; 0 of a column whose numbers have an order


class Ordinal(nn.Module):
    """One column of a feature whose ids are made of a number."""

    def __init__(self, source: NumberIds) -> None:
        super().__init__()
        self.source = source

    def forward(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> Tensor:
        """Return (B, 1) float32."""
        values, _, _ = self.source(ids, lengths, dense)
        return values.float().unsqueeze(1)


class Plain(nn.Module):
    """The columns of a feature of numbers."""

    def __init__(self, source: Numbers) -> None:
        super().__init__()
        self.source = source

    def forward(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> Tensor:
        """Return (B, columns) float32."""
        return self.source(dense)


class Category(nn.Module):
    """One column of an id feature with few values: the place of a row's id among `known`, NaN of any other.

    Args:
        source: the feature's ids.
        known: (K,) int64, in the order of their codes.
    """

    known: Tensor
    order: Tensor

    def __init__(self, source: nn.Module, known: Tensor) -> None:
        super().__init__()
        self.source = source
        rising, order = known.sort()
        self.register_buffer("known", rising)
        self.register_buffer("order", order)

    def forward(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> Tensor:
        """Return (B, 1) float32."""
        values, counts, _ = self.source(ids, lengths, dense)
        found = torch.full((counts.numel(),), float("nan"))
        place, there = find(self.known, values)
        row = torch.repeat_interleave(torch.arange(counts.numel()), counts)
        found[row[there]] = self.order[place[there]].float()
        return found.unsqueeze(1)


class Statistics(nn.Module):
    """The columns of an id feature with many values: what earlier rows with the row's ids were.

    Of a row with several ids they are the means over those that are known. A row whose ids are not known has the share
    0 and no means.

    Args:
        source: the feature's ids.
        width: 1 + T.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, source: nn.Module, width: int) -> None:
        super().__init__()
        self.source = source
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(0, width))

    def set(self, keys: Tensor, values: Tensor) -> None:
        """Use these statistics: (K,) rising ids, and (K, 1 + T) their share of rows and mean labels."""
        self.keys, self.values = keys, values

    def forward(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> Tensor:
        """Return (B, 1 + T) float32."""
        values, counts, _ = self.source(ids, lengths, dense)
        size, width = counts.numel(), self.values.size(1)
        found = torch.zeros(size, width)
        place, there = find(self.keys, values)
        row = torch.repeat_interleave(torch.arange(size), counts)[there]
        known = torch.zeros(size).index_add_(0, row, torch.ones(row.numel()))
        found.index_add_(0, row, self.values[place[there]])
        found = found / known.clamp(min=1.0).unsqueeze(1)
        none = known == 0
        found[:, 1:] = torch.where(none.unsqueeze(1), float("nan"), found[:, 1:])
        return found


class History(nn.Module):
    """The columns of a sequence: its length, and how the row's own ids occur in it.

    Args:
        source: the sequence's ids.
        wanted: of each id feature of the same table.
    """

    def __init__(self, source: nn.Module, wanted: Sequence[nn.Module]) -> None:
        super().__init__()
        self.source = source
        self.wanted = cast(Sequence[Ids], nn.ModuleList(wanted))

    def forward(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> Tensor:
        """Return (B, 1 + 2 W) float32: length, then of each wanted id how often, and its newest place from the end."""
        values, counts, _ = self.source(ids, lengths, dense)
        size = counts.numel()
        row = torch.repeat_interleave(torch.arange(size), counts)
        age = (torch.cumsum(counts, 0)[row] - 1 - torch.arange(values.numel())).float()
        columns = [counts.float()]
        for wanted in self.wanted:
            own, there, _ = wanted(ids, lengths, dense)
            each = torch.zeros(size, dtype=torch.int64)
            each[there > 0] = own
            same = torch.logical_and(values == each[row], there[row] > 0)
            hits = row[same]
            columns.append(torch.zeros(size).index_add_(0, hits, torch.ones(hits.numel())))
            newest = torch.full((size,), float("inf")).scatter_reduce(0, hits, age[same], "amin")
            columns.append(torch.where(newest.isinf(), float("nan"), newest))
        return torch.stack(columns, 1)


def find(known: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place of each wanted number in known ones, which rise, and whether it is there."""
    if known.numel() == 0:
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    place = torch.searchsorted(known, wanted).clamp(max=known.numel() - 1)
    return place, known[place] == wanted


def id_sources(recipe: Recipe) -> dict[str, nn.Module]:
    """Return what makes the ids of each feature that becomes a category or statistics, by name."""
    made = transforms(recipe.features)
    chosen = {n: f for n, f in recipe.features.items() if f.form == "id" and f.carrier != "numbers"}
    return {name: source_of(name, recipe, made) for name in chosen}


class Columns(nn.Module):
    """A recipe's features as the numbers that trees split.

    Args:
        recipe: the run.
        categories: (K,) int64 ids in the order of their codes, of each feature that is a category; features that
            `id_sources` has besides are statistics.
    """

    def __init__(self, recipe: Recipe, categories: Mapping[str, Tensor]) -> None:
        super().__init__()
        made, features, tasks = transforms(recipe.features), recipe.features, list(recipe.tasks)
        sources, parts = id_sources(recipe), list[nn.Module]()
        self.columns = list[Column]()
        self.statistics: dict[str, int] = {}  # feature -> place of its part
        for name, feature in features.items():
            if feature.form == "dense" or (feature.carrier == "numbers" and made[name].quantiles):
                dense = feature.form == "dense"
                changed = made[name] if dense and not feature.plain else None
                count = made[name].columns if dense else feature.numbers
                parts.append(Plain(Numbers(name, changed, feature.numbers, count)))
                self._add(name if count == 1 else f"{name}[{at}]" for at in range(count))
            elif feature.carrier == "numbers":
                parts.append(Ordinal(cast(NumberIds, source_of(name, recipe, made))))
                self._add([name])
            elif feature.form == "sequence":
                table = feature.looks_up()
                same = [
                    other
                    for other, each in features.items()
                    if table is not None and other in sources and each.looks_up() == table and not each.lists
                ]
                parts.append(History(source_of(name, recipe, made), [source_of(n, recipe, made) for n in same]))
                self._add([f"{name}.length", *(f"{name}.{what} of {n}" for n in same for what in ("times", "place"))])
            elif name in categories:
                parts.append(Category(sources[name], categories[name]))
                self.columns.append(Column(name, len(categories[name])))
            else:
                self.statistics[name] = len(parts)
                parts.append(Statistics(sources[name], 1 + len(tasks)))
                self._add([f"{name}.share", *(f"{name}.{task}" for task in tasks)])
        self.parts = nn.ModuleList(parts)

    def _add(self, names: Iterable[str]) -> None:
        self.columns += [Column(name, 0) for name in names]

    def set_statistics(self, name: str, keys: Tensor, values: Tensor) -> None:
        """Let a feature's columns be these statistics, see `Statistics.set`."""
        cast(Statistics, self.parts[self.statistics[name]]).set(keys, values)

    def forward(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> Tensor:
        """Return (B, F) float32, NaN = missing; arguments as of an exported file.

        Raises:
            ValueError: a feature is missing or does not fit the others.
        """
        columns: list[Tensor] = []
        for part in self.parts:
            columns.append(part(ids, lengths, dense))
        for column in columns:
            if column.size(0) != columns[0].size(0):
                raise ValueError("features: they have different numbers of rows")
        return torch.cat(columns, 1)
