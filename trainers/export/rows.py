"""Rows to prove, measure and publish an export with."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import torch

from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.features.carriers import Carried, split_numbers
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source

_IDS = 2**31  # of a feature without a table that are drawn from
# Ids, lengths and dense by feature, as the file takes them; dense holds what lies beside ids too: weights or vectors.
Inputs = tuple[dict[str, torch.Tensor], ...]


def inputs_of(batch: Batch, recipe: Recipe) -> Inputs:
    """Return a batch as the exported file takes it: ids, lengths and dense by feature."""
    keyed, _ = _names(recipe)
    ids, lengths = {k: batch.ids[k].values() for k in keyed}, {k: batch.ids[k].lengths() for k in keyed}
    return ids, lengths, split_numbers(recipe.features, batch.dense) | _beside(batch, recipe)


def _beside(batch: Batch, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Return what lies beside ids by feature: weights (N,), or vectors (N, w) or of one number (N,)."""
    beside = {name: batch.ids[name].weights() for name, f in recipe.features.items() if f.weighted}
    if batch.vectors is None:
        return beside
    return beside | Carried(recipe.features)(batch.ids, batch.vectors)


def _names(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Return the names of the features whose carrier is ids, and of those whose carrier is numbers."""
    named: dict[str, list[str]] = {"ids": [], "numbers": [], "features": []}
    for name, feature in recipe.features.items():
        named[feature.carrier].append(name)
    return named["ids"], named["numbers"]


def one_user(inputs: Inputs, user: list[str], row: int) -> tuple[Inputs, Inputs]:
    """Make rows candidates of one user.

    Args:
        inputs: B rows.
        user: the features that all rows take from `row`; the others stay.
        row: whose.

    Returns:
        The same rows as `rank` takes them, the user's features once, and as `forward` does, repeated B times.
    """
    once: Inputs = ({}, {}, {})
    repeated: Inputs = ({}, {}, {})
    ids, lengths, dense = inputs
    for name, count in lengths.items():
        lists = [(0, ids[name])] + ([(2, dense[name])] if name in dense else [])  # ids and what lies beside them
        if name not in user:
            for part in (once, repeated):
                part[1][name] = count
                for place, values in lists:
                    part[place][name] = values
            continue
        end = int(count[: row + 1].sum())
        once[1][name], repeated[1][name] = count[row : row + 1], count[row].repeat(count.numel())
        for place, values in lists:
            own = values[end - int(count[row]) : end]
            once[place][name], repeated[place][name] = own, torch.cat([own] * count.numel())
    for name, column in dense.items():
        if name in lengths:
            continue
        once[2][name] = column[row : row + 1] if name in user else column
        repeated[2][name] = column[row : row + 1].expand_as(column).contiguous() if name in user else column
    return once, repeated


def some_rows(inputs: Inputs, chosen: torch.Tensor, rows: int) -> Inputs:
    """Return some of so many rows, as an exported file takes them."""
    ids, lengths, dense = inputs
    kept = torch.zeros(rows, dtype=torch.bool)
    kept[chosen] = True
    of_ids = {name: torch.repeat_interleave(kept, count) for name, count in lengths.items()}
    beside = {name: of_ids.get(name, kept) for name in dense}
    return (
        {name: values[of_ids[name]] for name, values in ids.items()},
        {name: count[kept] for name, count in lengths.items()},
        {name: values[beside[name]] for name, values in dense.items()},
    )


def _held_out(recipe: Recipe, rows: int) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yield the test split's first batches, and in each the places of real rows, `rows` in all."""
    reader = Reader(Source.open(recipe, "test"), recipe, rank=0, world=1, shuffle=False)
    with closing(reader.batches(0)) as batches:
        for asked in batches:
            batch = asked.flat(Carried(recipe.features).widths)
            real = torch.nonzero(batch.weights > 0).flatten()[:rows]
            rows -= real.numel()
            yield batch, real
            if not rows:
                return


def golden_inputs(rows: dict[str, Any]) -> Inputs:
    """Return the rows of a golden.json as the exported file takes them: ids, lengths and dense by feature."""
    ids, lengths = ({k: torch.tensor(v, dtype=torch.int64) for k, v in rows[p].items()} for p in ("ids", "lengths"))
    dense = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in rows["dense"].items()}  # None is NaN
    return ids, lengths, dense


def held_out_rows(recipe: Recipe, rows: int) -> dict[str, Any]:
    """Return the test split's first rows as lists, a missing dense value as None, and how many there are."""
    keyed, dense = _names(recipe)
    listed = [key for key in keyed if recipe.beside(key) is not None]
    found: dict[str, dict[str, list]] = {
        "ids": {key: [] for key in keyed},
        "lengths": {key: [] for key in keyed},
        "dense": {name: [] for name in [*dense, *listed]},
    }
    count = 0
    for batch, real in _held_out(recipe, rows):
        count += real.numel()
        for key in keyed:
            lists = batch.ids[key].to_dense()
            for row in real.tolist():
                found["ids"][key] += lists[row].tolist()
                found["lengths"][key].append(lists[row].numel())
        numbers = split_numbers(recipe.features, batch.dense[real])
        for key, values in _beside(batch, recipe).items():
            lists = values.split(batch.ids[key].lengths().tolist())
            numbers[key] = torch.cat([lists[row] for row in real.tolist()])
        for name, values in numbers.items():
            found["dense"][name] += np.where(values.isnan().numpy(), np.array(None), values.numpy()).tolist()
    return {"rows": count, **found}


def synthetic_rows(
    recipe: Recipe, signature: dict[str, Any], rows: int, ids: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Return rows like those of `held_out_rows`, drawn from what a signature declares: nobody's data are in them.

    Ids are uniform over their table's rows, or over those given as `ids` of their feature. Numbers are normal with
    the stored mean and deviation; those that are not normalised, so that none are stored, are of either sign and of
    sizes from a tenth to a thousand. Each is missing in about one row of ten. All sequences of a row have one length,
    as those of one history must: in the first row one more than the file looks at, where it looks at as much of each.
    A bag has up to one more id than the file looks at, and weights of either sign; vectors that events carry are drawn
    as numbers are. The first row misses nothing, the second all.
    """
    drawn, features = np.random.default_rng(0), recipe.features
    longest = {feature.limit for feature in features.values() if feature.form == "sequence"} or {0}
    events = drawn.integers(0, min(longest) + 1, rows)
    events[:2] = (min(longest) + (len(longest) == 1), 0)[:rows]
    found: dict[str, dict[str, list]] = {"ids": {}, "lengths": {}, "dense": {}}
    for name, feature in features.items():
        there = drawn.random(rows) >= 0.1
        there[:2] = (True, False)[:rows]
        if feature.carrier == "numbers":
            found["dense"][name] = _drawn(drawn, signature["features"][name], feature.numbers, there)
            continue
        if feature.carrier == "features":
            continue
        lengths = events if feature.form == "sequence" else there.astype(np.int64)
        if feature.pooled:
            lengths = there * drawn.integers(1, feature.limit + 2, rows)
        found["lengths"][name] = lengths.tolist()
        if feature.weighted:
            found["dense"][name] = drawn.normal(size=int(lengths.sum())).astype(np.float32).tolist()
        if feature.alike is not None:
            known = drawn.random(int(lengths.sum())) >= 0.1
            width = features[feature.alike].numbers
            found["dense"][name] = _drawn(drawn, signature["features"][feature.alike], width, known)
        elif feature.carried:  # seconds to the next event, up to a year
            seconds = np.floor(np.exp(drawn.uniform(0, 17, int(lengths.sum()))) - 1)
            found["dense"][name] = seconds.astype(np.float32).tolist()
        of = (ids or {}).get(name)
        if of is not None and len(of):
            found["ids"][name] = of[drawn.integers(0, len(of), int(lengths.sum()))].tolist()
            continue
        table = feature.looks_up()
        most = recipe.tables[table].rows if table in recipe.tables else _IDS
        found["ids"][name] = drawn.integers(0, most, int(lengths.sum())).tolist()
    return {"rows": rows, **found}


def _drawn(draw: np.random.Generator, declared: dict[str, Any], width: int, there: np.ndarray) -> list:
    """Return numbers, or lists of `width` above 1, as a feature's signature declares them; None where not `there`."""
    shape = there.shape if width == 1 else (len(there), width)
    values = draw.normal(size=shape)
    if "std" in declared:
        values = np.array(declared["mean"]) + np.array(declared["std"]) * values
    else:
        values = values * 10 ** draw.uniform(-1, 3, shape)
    missing = None if width == 1 else [None] * width
    return [x if known else missing for x, known in zip(values.astype(np.float32).tolist(), there, strict=True)]
