"""How many ids the rows of a split have, and which are frequent: what a plan of the tables balances ranks by.

It is taken of a few hundred rows at some places that lie evenly over the split, whatever its size. An id counts as
frequent if it is met at three places at least, for at one place rows may be of one user or of one day.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
import xxhash

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Feature, Recipe
from livetrain.modules.tables.hashing import row
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.source import CorruptGroup, RowGroup, Source
from livetrain.trainers.data.read.spread import HERE, Looking

_PLACES = 32
_ROWS = 512  # rows read at each
_IDS = 2048  # of a feature taken at each
_MET = 3  # places at which a frequent id is met


@dataclass(frozen=True, eq=False)
class Looked:
    """What a feature's ids are like.

    Args:
        mean: ids of a row that are looked up.
        ids: (n,) int64, the frequent ones.
        share: (n,) part of the lookups that each is. The others count as spread over all rows alike.
    """

    mean: float
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    share: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def blocks(self, rows: int, modulo: bool, blocks: int, once: float = 1.0) -> np.ndarray:
        """Return the part of the lookups that falls into each block of a table's rows.

        Args:
            rows: of the table.
            modulo: how ids become rows, see `modules.tables.hashing.row`.
            blocks: of ceil(rows / blocks) rows each, as far as there are rows.
            once: among so many lookups a frequent id counts once.

        Returns:
            (blocks,), of sum 1 unless ids count once.

        Example:
            >>> Looked(1.0, np.array([7]), np.array([0.5])).blocks(8, True, 4).tolist()
            [0.125, 0.125, 0.125, 0.625]
        """
        size = -(-rows // blocks)
        held = np.clip(rows - size * np.arange(blocks), 0, size)
        places = row(torch.from_numpy(self.ids.copy()), rows, modulo).numpy() // size
        # Of n lookups, 1 - (1 - p)^n are expected to be the first one of an id that each is with probability p.
        first = (1 - (1 - self.share) ** once) / once
        frequent = np.bincount(places, weights=first, minlength=blocks)
        return frequent + (1 - self.share.sum()) * held / rows


def assumed(feature: Feature) -> Looked:
    """Return what is assumed of a feature's ids before data are seen: half of the longest list, all rows alike."""
    return Looked(feature.limit / 2 if feature.lists else 1.0)


def of_table(recipe: Recipe, table: str, lookups: Mapping[str, Looked] | None = None) -> list[Looked]:
    """Return what the ids of each feature that looks up in a table are like: as measured, or else as assumed."""
    users = {name: feature for name, feature in recipe.features.items() if feature.looks_up() == table}
    return [(lookups or {}).get(name, assumed(feature)) for name, feature in users.items()]


def ids_per_row(recipe: Recipe, lookups: Mapping[str, Looked] | None = None) -> dict[str, float]:
    """Return how many ids a row has in the mean, of every feature: as measured, or else as assumed."""
    return {name: (lookups or {}).get(name, assumed(feature)).mean for name, feature in recipe.features.items()}


def looked_up(source: Source, recipe: Recipe, looking: Looking = HERE) -> dict[str, Looked]:
    """Return what the ids of every feature are like that is looked up and has a column of ids.

    What is found is kept beside the last partition's data, for the same files.

    Args:
        source: the split.
        recipe: names the features.
        looking: reads the places.

    Raises:
        BadInput: a file cannot be read.
    """
    features = {
        name: feature
        for name, feature in recipe.features.items()
        if feature.looks_up() is not None and feature.carrier == "ids"
    }
    if not features:
        return {}
    columns = {name: recipe.column(name) for name in features}
    keys = [part.sidecar.key for part in source.partitions]
    asked = {"data": keys, "read": [_PLACES, _ROWS, _IDS, _MET, recipe.data.layout]}
    asked["columns"] = {name: [column, features[name].limit] for name, column in columns.items()}
    name, last = f"lookups-{xxhash.xxh128_hexdigest(json.dumps(asked).encode())}", source.partitions[-1].sidecar
    kept = last.read(name) if all(keys) else None
    if kept is not None:
        return {n: Looked(kept[0]["mean"][n], kept[1][f"ids {n}"], kept[1][f"share {n}"]) for n in features}
    found = _found(_Place(source, features, columns), looking)
    if all(keys):
        means = {n: one.mean for n, one in found.items()}
        arrays = {f"ids {n}": one.ids for n, one in found.items()} | {f"share {n}": o.share for n, o in found.items()}
        last.write(name, {"mean": means}, arrays)
    return found


@dataclass(frozen=True)
class _Place:
    """Reads the first rows of a row group; picklable, as who looks at data may be in another process."""

    source: Source
    features: Mapping[str, Feature]
    columns: Mapping[str, str]

    def __call__(self, group: RowGroup) -> tuple[int, dict[str, tuple[int, np.ndarray]]]:
        """Return how many rows were read, and by feature how many ids these have and some of the ids."""
        asked = list(dict.fromkeys(self.columns.values()))
        candidates = 1 if self.source.candidates is None else self.source.candidates.most
        try:
            table = next(self.source.stretches(group, asked, max(_ROWS // candidates, 1)), None)
        except (pa.ArrowException, OSError, BadInput):
            try:
                table = self.source.read(group, asked).slice(0, _ROWS)  # which says what is wrong, or tries again
            except CorruptGroup:  # of which others speak
                table = None
        if table is None:
            return 0, {}
        return table.num_rows, {
            name: _ids(self.features[name], table.column(column)) for name, column in self.columns.items()
        }


def _ids(feature: Feature, column: pa.ChunkedArray) -> tuple[int, np.ndarray]:
    found = carry.ids(feature, carry.whole(column))
    values, begins, ends = found.values, found.begins, found.ends
    count = len(values) if begins is None or ends is None else int(np.minimum(ends - begins, feature.limit).sum())
    return count, values[:: max(-(-len(values) // _IDS), 1)].copy()  # a view would hold on to all


def _found(look: _Place, looking: Looking) -> dict[str, Looked]:
    groups = look.source.groups
    places = np.unique(np.linspace(0, len(groups) - 1, _PLACES).round().astype(int)).tolist()
    rows, parts = 0, {name: list[tuple[int, np.ndarray]]() for name in look.columns}
    for read, found in looking.spread(look, [groups[place] for place in places]):
        rows += read
        for name, part in found.items():
            parts[name].append(part)
    return {name: _looked(own, rows) for name, own in parts.items()}


def _looked(parts: list[tuple[int, np.ndarray]], rows: int) -> Looked:
    """Join what was found at each place: how many ids the rows there have, and some of these."""
    count = sum(part for part, _ in parts)
    if not count:
        return Looked(0.0)
    known, back = np.unique(np.concatenate([ids for _, ids in parts]), return_inverse=True)
    sizes = [len(ids) for _, ids in parts]
    at = np.repeat(np.arange(len(parts)), sizes)  # the place of each
    # A place counts as often as its rows have ids, however many of them were taken.
    each = np.array([part / max(size, 1) / count for (part, _), size in zip(parts, sizes, strict=True)])
    met = np.bincount(np.unique(back * len(parts) + at) // len(parts), minlength=len(known))
    frequent = met >= _MET
    share = np.bincount(back, weights=each[at], minlength=len(known))
    return Looked(count / max(rows, 1), known[frequent], share[frequent])
