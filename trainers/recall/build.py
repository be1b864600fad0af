"""A run's items as an index: built, measured against an exact search, and published if it finds what that finds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.recall.fitted import Table
from livetrain.modules.serving.loading import load
from livetrain.trainers.data.read.columns import is_text
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export import publish
from livetrain.trainers.export.inverted import retriever
from livetrain.trainers.export.prediction import Predictor
from livetrain.trainers.recall.index import ABOUT, KEYS, VECTORS, write_keys
from livetrain.trainers.recall.inverted import SearchedTable
from livetrain.trainers.recall.nearest import Kind, Nearest, Stored
from livetrain.trainers.recall.origin import Origin, ids, items, key_of, places_of, vectors
from livetrain.trainers.runtime import manifest

FOUND = 100  # items per query by which recall is measured
QUERIES = 2048  # users who choose the effort, and as many others who measure it
_ASKED_ALONE = 200  # queries that are timed one by one
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What an index is to be.

    Attributes:
        kind: see `Nearest.build`.
        stored: likewise.
        catalogue: Parquet of the items; None: see `trainers.recall.origin.items`.
        least: recall below which nothing is published.
        keep: published versions that stay.
    """

    kind: Kind = "hnsw"
    stored: Stored = "none"
    catalogue: str | None = None
    least: float = 0.95
    keep: int = 7


def build(origin: Origin, where: str, asked: Asked, say: Say) -> dict[str, Any] | None:
    """Build the index of a run's items, and publish it.

    Memory: the items' columns and vectors, the index, and 4,096 rows of the test split at a time.

    Args:
        origin: whose items.
        where: folder or URI of the published indexes.
        asked: what index.
        say: told what was built.

    Returns:
        The pointer to the published index; None where its recall is below what was asked, and nothing was published.

    Raises:
        BadInput: the model finds no items, the items or the test split cannot be read, faiss is not installed, or the
            place cannot be written.
    """
    recipe = origin.recipe
    if recipe.model.fitted:
        return _inverted(recipe, origin, where, asked, say)
    key, side = recipe.column(key_of(recipe)), Predictor(origin.of("item"))
    table = items(recipe, asked.catalogue, [key, *side.columns])
    made = vectors(side, table)
    asking = _queries(recipe, Predictor(origin.of("user")))
    index = Nearest.build(made, asked.kind, asked.stored)
    exact = index if (asked.kind, asked.stored) == ("exact", "none") else Nearest.build(made, "exact", "none")
    count = min(FOUND, -(-len(made) // 10))  # of a few items any search finds most
    _settle(index, exact, asking[::2], count, asked.least)
    reached = recall(index, exact, asking[1::2], count)
    found = {
        "recall": reached,
        "found": count,
        "queries": len(asking[1::2]),
        "effort": index.effort,
        "milliseconds": _milliseconds(index, asking, count),
        "exact_milliseconds": _milliseconds(exact, asking, count),
    }
    with TemporaryDirectory() as folder:
        draft = Path(folder)
        index.write(draft / VECTORS)
        about = {
            "kind": asked.kind,
            "stored": asked.stored,
            "items": len(table),
            "width": made.shape[1],
            "key": {"column": key, "type": _names(table.column(key), draft)},
            **found,
            "bytes": (draft / VECTORS).stat().st_size,
            "exact_bytes": made.nbytes,
        }
        say(_line(about))
        if reached < asked.least:
            say(f"not published: recall@{count} {reached:.4f} is below {asked.least:g}")
            return None
        return _published(draft, about, where, origin, asked.keep, say)


def _inverted(recipe: Recipe, origin: Origin, where: str, asked: Asked, say: Say) -> dict[str, Any]:
    """Publish the table of a fitted model, which finds exactly what the model does; for the rest see `build`."""
    weights, feature = origin.of("user"), key_of(recipe)
    key, listing = recipe.column(feature), asked.catalogue or recipe.evaluate.catalogue
    if listing is None and dict(weights.ids).get(feature) == "strings":  # the table has their hashes, and no names
        raise BadInput(
            f"--catalogue: {recipe.name} knows the items of '{key}', which are strings, by their hashes alone; name a "
            "Parquet of the items, whose strings are then the index's keys"
        )
    learned = load(weights.folder) if weights.exported else retriever(recipe, weights.folder)
    table = table_of(learned)
    keys: pa.Array = pa.array(table.items)
    if listing is not None:
        listed = items(recipe, asked.catalogue, [key])
        keys, table = _listed(table, listed.column(key))
    with TemporaryDirectory() as folder:
        draft = Path(folder)
        SearchedTable(table).write(draft)
        size = sum(path.stat().st_size for path in draft.glob("table.*.bin"))
        about = {
            "kind": "inverted",
            "items": len(keys),
            "key": {"column": key, "type": _names(keys, draft)},
            "recall": 1.0,
            "keys": len(table.keys),
            "scores": len(table.scores),
            "bytes": size,
        }
        say(
            f"inverted: {len(table.keys):,} keys lead to {len(keys):,} items by {len(table.scores):,} scores, "
            f"{size / 1e6:,.2f} MB"
        )
        return _published(draft, about, where, origin, asked.keep, say)


def _listed(table: Table, column: pa.ChunkedArray) -> tuple[pa.Array, Table]:
    """Return the keys of a catalogue, and a table of its items alone: their places are those of the keys."""
    known = ids(column)
    order = known.argsort(kind="stable")
    place = places_of(table.items, known[order]) if len(table.items) else table.items
    kept = place[table.places] >= 0
    offsets = np.concatenate([[0], np.cumsum(kept)])[table.offsets]
    keys = column.combine_chunks().take(pa.array(order))
    places = place[table.places[kept]].astype(np.int32)
    return keys, table._replace(items=known[order], offsets=offsets, places=places, scores=table.scores[kept])


def table_of(learned: Any) -> Table:
    """Return the table of a model that answers requests, its scores as float32."""
    scores, offsets = learned.scores.float(), learned.offsets
    if learned.affine.numel():
        scale, least = torch.repeat_interleave(learned.affine, offsets.diff(), dim=0).unbind(1)
        scores = least + scale * scores
    parts = {name: getattr(learned, name).numpy() for name in ("keys", "offsets", "items", "places", "rest")}
    return Table(scores=scores.numpy(), **parts)


def _names(keys: pa.ChunkedArray | pa.Array, draft: Path) -> str:
    """Write the keys of the items, and return their type."""
    text = is_text(keys.type)
    write_keys(draft / KEYS, np.array(keys.to_pylist(), object) if text else keys.cast(pa.int64()).to_numpy())
    return "string" if text else "int64"


def _published(draft: Path, about: dict[str, Any], where: str, origin: Origin, keep: int, say: Say) -> dict[str, Any]:
    """Make a folder whole, and publish it under the model's version, or else the time."""
    weights = origin.of("user")  # `model`: by which a server knows whose vectors these are
    about |= {"run": origin.recipe.name, "weights": weights.digest}
    about |= {"model": manifest.digest(weights.folder / manifest.MANIFEST)["xxh64"]}
    manifest.write_json(draft / ABOUT, about)
    manifest.commit(draft, {path.name: manifest.digest(path) for path in sorted(draft.iterdir())})
    version = origin.version or time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
    pointer = publish.publish(draft, where, version, keep, **{name: about[name] for name in ("run", "kind", "items")})
    say(f"published as {pointer['folder']}, fence {pointer['fence']}, in {where}")
    return pointer


def recall(index: Nearest, exact: Nearest, queries: np.ndarray, count: int) -> float:
    """Return the share of the items that an exact search finds which the index finds too, `count` per query."""
    found, wanted = (each.search(queries, count, None)[0] for each in (index, exact))
    return float(np.mean([np.isin(own, other).mean() for own, other in zip(wanted, found, strict=True)]))


def _settle(index: Nearest, exact: Nearest, queries: np.ndarray, count: int, least: float) -> None:
    """Let a search look at as little as finds enough: of the misses that are allowed it makes three quarters."""
    for effort in index.efforts():
        index.effort = effort
        if recall(index, exact, queries, count) >= least + (1 - least) / 4:
            return


def _queries(recipe: Recipe, users: Predictor) -> np.ndarray:
    """Return the vectors of users: of rows of the test split, evenly chosen."""
    source = Source.open(recipe, "test")
    most = 2 * QUERIES
    evenly = np.unique(np.linspace(0, len(source.groups) - 1, 64).astype(np.int64))
    chosen = [source.groups[number] for number in evenly]
    each = -(-most // len(chosen))
    found = []
    for group in chosen:
        table = next(source.stretches(group, users.columns, QUERIES))
        found.append(table.take(pa.array(np.linspace(0, len(table) - 1, min(each, len(table))).astype(np.int64))))
    made = vectors(users, pa.concat_tables(found)[:most])
    if len(made) < 2:
        raise BadInput(f"{source.folder}: the test split has {len(made)} rows, too few users to measure an index by")
    return made


def _milliseconds(index: Nearest, queries: np.ndarray, count: int) -> dict[str, float]:
    """Return how long one query takes, asked alone: in half of all cases at most, and in 99 of 100."""
    took = []
    for number in range(min(_ASKED_ALONE, len(queries))):
        begun = time.perf_counter()
        index.search(queries[number : number + 1], count, None)
        took.append(1e3 * (time.perf_counter() - begun))
    return {"median": float(np.median(took)), "p99": float(np.quantile(took, 0.99))}


def _line(about: dict[str, Any]) -> str:
    took, exact = about["milliseconds"], about["exact_milliseconds"]
    return (
        f"{about['kind']} of {about['items']:,} items, {about['width']} numbers each: recall@{about['found']} "
        f"{about['recall']:.4f} over {about['queries']:,} queries; {took['median']:.2f} ms per query, 99 % below "
        f"{took['p99']:.2f} (exact {exact['median']:.2f} and {exact['p99']:.2f}); {about['bytes'] / 1e6:,.2f} MB "
        f"(exact {about['exact_bytes'] / 1e6:,.2f})"
    )
