"""Candidates for requests to come, by a blend that was measured: what a pre-rank takes.

<out>/part-00000.parquet ...   one per file of requests, a row per request in their order: the columns that pass
                               through, and
    candidates                 items, the best first, of the type of the catalogue's column
    candidate_scores           what each is worth, see trainers.recall.merging
    candidate_channels         of each the channels that have brought it
<out>/manifest.json            written last
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.blend_spec import BlendSpec
from livetrain.configs.errors import BadInput, nearest
from livetrain.trainers.data.read.columns import is_list, plain
from livetrain.trainers.data.read.files import SUFFIX, read_footer
from livetrain.trainers.export import prediction_files
from livetrain.trainers.export.prediction_files import Files
from livetrain.trainers.recall import merging
from livetrain.trainers.recall.blend import BLOCK, SETTLED, Blend
from livetrain.trainers.runtime import manifest

ADDED = ("candidates", "candidate_scores", "candidate_channels")


def candidates(
    folder: Path, requests: str, catalogue: str | None, out: Path, keep: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write the candidates of some requests.

    Memory: what the channels hold, the items, and the lists of 4,096 requests.

    Args:
        folder: of a blend, as `trainers.recall.blend.blended` wrote it.
        requests: Parquet, a file or a folder, with the columns that the channels ask.
        catalogue: Parquet of the items that there are; see `trainers.recall.origin.items`.
        out: a new folder.
        keep: columns that pass through; by default all but lists.

    Returns:
        The manifest: `rows` and the digests of its `files`.

    Raises:
        BadInput: no blend is there, a column is missing, or the folder is not new. Nothing is written then.
    """
    found = manifest.read(folder)
    if found is None or SETTLED not in found["files"] or manifest.damage(folder, found):
        raise BadInput(f"{folder}: holds no whole blend; make one with `livetrain blend SPEC --out {folder}`")
    prediction_files.check_place(out, requests)
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out}: is not empty; name a new folder with --out")
    blend = Blend(BlendSpec.model_validate(json.loads((folder / SETTLED).read_text(encoding="utf-8"))["spec"]))
    files = prediction_files.find(requests, "--requests")
    kept = [_kept(blend, files, path, keep) for path in files.paths]  # all files are looked at before any is written
    table, known = blend.items(catalogue, "test")
    blend.meet(table, known)
    keys = table.column(blend.key).combine_chunks()
    keys = keys.cast(plain(keys.type))
    out.mkdir(parents=True, exist_ok=True)
    rows = 0
    for number, (path, columns) in enumerate(zip(files.paths, kept, strict=True)):
        target, writer = out / f"part-{number:05d}{SUFFIX}", None
        for block in files.batches(path, list(dict.fromkeys([*columns, *blend.asks()]))):
            for start in range(0, max(len(block), 1), BLOCK):
                part = block.slice(start, BLOCK)
                made = part.select(columns)
                for name, column in zip(ADDED, _of(blend, part, keys, known), strict=True):
                    made = made.append_column(name, column)
                writer = writer or pq.ParquetWriter(target, made.schema)
                writer.write_table(made)
                rows += len(made)
        assert writer is not None  # a file yields a table even where it has no rows
        writer.close()
    manifest.commit(out, {path.name: manifest.digest(path) for path in sorted(out.iterdir())}, rows=rows)
    return manifest.read(out) or {}


def _kept(blend: Blend, files: Files, path: str, keep: Sequence[str] | None) -> list[str]:
    """Return the columns of a file that pass through, once it has all that are asked."""
    schema = read_footer(files.filesystem, path)[1]
    columns = [field.name for field in schema if not is_list(field.type)] if keep is None else list(keep)
    for name in (*blend.asks(), *columns):
        if name not in schema.names:
            raise BadInput(f"{files.named(path)}: has no column '{name}'{nearest(name, schema.names)}; add it")
    if clash := sorted({*ADDED} & {*columns}):
        raise BadInput(f"{files.named(path)}: has a column '{clash[0]}' already; leave it out by --keep")
    return columns


def _of(blend: Blend, requests: pa.Table, keys: pa.Array, known: np.ndarray) -> list[pa.Array]:
    """Return the columns that are added to some requests."""
    found = merging.pairs(blend.lists(requests, known))
    worth, whose = merging.scores(found, blend.settings), merging.brought(found, blend.settings)
    place = merging.places(found, worth)
    inside = np.flatnonzero((place <= blend.spec.size) & whose.any(1))
    inside = inside[np.lexsort((place[inside], found.request[inside]))]
    counts = np.bincount(found.request[inside], minlength=len(requests))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    pair, owner = np.nonzero(whose[inside])
    of_pair = np.concatenate([[0], np.cumsum(np.bincount(pair, minlength=len(inside)))]).astype(np.int32)
    names = pa.ListArray.from_arrays(pa.array(of_pair), pa.array(list(blend.channels)).take(pa.array(owner)))
    parts = [keys.take(pa.array(found.item[inside])), pa.array(worth[inside].astype(np.float32)), names]
    return [pa.ListArray.from_arrays(offsets, part) for part in parts]
