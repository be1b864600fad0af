"""Parquet in, Parquet with predictions out: file by file, on one machine or many, resumable, the manifest last.

<out>/part-00000.parquet ...   one per file of the data, of its rows in their order
<out>/top.parquet              instead of them, where only each group's best rows are wanted
<out>/.parts/, .asked.json     while the work is under way
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from livetrain.configs.errors import BadInput, nearest
from livetrain.trainers.data.read.files import SUFFIX, is_list, open_filesystem, read_footer, short, shown
from livetrain.trainers.export.prediction import Predictor, Side
from livetrain.trainers.runtime import manifest

ASKED, PARTS = ".asked.json", ".parts"
ROWS = 1 << 16  # read at once
Map = Callable[[Callable[[int], int], list[int]], Iterable[int]]


@dataclass(frozen=True)
class Best:
    """Only each group's best rows: `count` rows per value of the column `group`, by the predictions of `task`."""

    count: int
    group: str
    task: str | None = None  # the first


@dataclass(frozen=True)
class Neighbours:
    """The `count` nearest rows of `items` for each row, by the inner product of the towers' vectors."""

    count: int
    items: str  # Parquet, with the item's features
    key: str  # column that tells items apart


@dataclass(frozen=True)
class Job:
    """What is to be written, for every process that takes part."""

    run: Path
    source: str
    vectors: Side | None
    neighbours: Neighbours | None
    filesystem: fs.FileSystem
    files: list[str]
    keep: list[str]
    out: Path


def predict(
    run: Path,
    data: str,
    out: Path,
    *,
    source: str = "best",
    keep: Sequence[str] | None = None,
    best: Best | None = None,
    vectors: Side | None = None,
    neighbours: Neighbours | None = None,
    run_all: Map = map,
    progress: Callable[[int, int], None] = lambda done, files: None,
) -> dict[str, Any]:
    """Write the predictions of a run for every row of some Parquet files.

    Started again after a kill, it goes on with the files that are not done. Memory: 65,536 rows and the model per
    process; for `neighbours` also the items' vectors.

    Args:
        run: the run's folder.
        data: a Parquet file, or a folder of them, partitions ``date=...`` too; a path or a URI.
        out: a new folder, or that of the same call before.
        source: see `Predictor`.
        keep: columns that pass through; by default all but lists.
        best: write the best rows of each group only.
        vectors: write vectors of this side instead of predictions.
        neighbours: write each row's nearest items instead of predictions.
        run_all: applies the work to the numbers of all files, here or elsewhere; yields as they are done.
        progress: told files done and files in all.

    Returns:
        The manifest: `rows`, `files`, the `model` that predicted.

    Raises:
        BadInput: no such run, checkpoint or data, a column is missing or of another type, or `out` holds something
            else. Nothing is written then.
    """
    filesystem, files = find(data)
    predictor = Predictor(run, source, "user" if neighbours else vectors)
    kept = _check(predictor, filesystem, files, keep, best)
    if best and best.task and f"{best.task}_score" not in predictor.names:
        known = [name.removesuffix("_score") for name in predictor.names]
        raise BadInput(f"task: there is no task '{best.task}'{nearest(best.task, known)}")
    sizes = [info.size for info in filesystem.get_file_info(files)]
    asked = {
        "model": predictor.identity,
        "data": [[shown(filesystem, path), size] for path, size in zip(files, sizes, strict=True)],
        "keep": kept,
        "best": None if best is None else vars(best),
        "vectors": vectors,
        "neighbours": None if neighbours is None else vars(neighbours),
    }
    if (done := _begin(out, asked)) is not None:
        return done
    job = Job(run.resolve(), source, vectors, neighbours, filesystem, files, kept, out.resolve())
    left = [n for n in range(len(files)) if not _part(out, n).exists() and not (out / _part(out, n).name).exists()]
    progress(len(files) - len(left), len(files))
    for count, _ in enumerate(run_all(partial(_write, job), left), len(files) - len(left) + 1):
        progress(count, len(files))
    return _finish(out, asked, len(files), best, predictor.names)


def find(data: str) -> tuple[fs.FileSystem, list[str]]:
    """Return a Parquet file, or all below a folder, sorted; hidden ones (``.`` and ``_``) are left out.

    Raises:
        BadInput: there is none.
    """
    filesystem, root = open_filesystem(data)
    try:
        info = filesystem.get_file_info(root)
        if info.type == fs.FileType.File:
            return filesystem, [root]
        below = fs.FileSelector(root, recursive=True, allow_not_found=True)
        found = [one.path for one in filesystem.get_file_info(below) if one.is_file]
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{shown(filesystem, root)}: cannot be read ({short(error)}); correct --data") from error
    paths = sorted(path for path in found if path.endswith(SUFFIX) and not _hidden(path, root))
    if not paths:
        raise BadInput(f"{shown(filesystem, root)}: there is no *.parquet file here; correct --data")
    return filesystem, paths


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.removeprefix(root).split("/") if part)


def _check(
    predictor: Predictor, filesystem: fs.FileSystem, files: list[str], keep: Sequence[str] | None, best: Best | None
) -> list[str]:
    """Look at every file's columns before any is scored; return those that pass through."""
    first, kept = None, []
    for path in files:
        name, schema = shown(filesystem, path), read_footer(filesystem, path)[1]
        predictor.check(schema, name)
        if first is None:
            first = schema
            kept = list(keep) if keep is not None else [field.name for field in schema if not is_list(field.type)]
            if best and best.group not in kept:
                kept = [best.group, *kept]
        for column in kept:
            if column not in schema.names:
                raise BadInput(
                    f"{name} has no column '{column}'{nearest(column, schema.names)}; correct --keep or --group"
                )
            if schema.field(column).type != first.field(column).type:
                raise BadInput(
                    f"{name}: column '{column}' is {schema.field(column).type} here and {first.field(column).type} in "
                    f"{shown(filesystem, files[0])}; write all files with one schema, or leave it out of --keep"
                )
    for column in predictor.names:
        if column in kept:
            raise BadInput(f"{files[0]}: has a column '{column}' already; leave it out by --keep")
    return kept


def _begin(out: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Make the folder for the work, or find it as an earlier call left it; return the manifest if all is done."""
    asked = json.loads(json.dumps(asked))
    found = manifest.read(out)
    before = found["asked"] if found and "asked" in found else None
    try:
        if before is None and (out / ASKED).exists():
            before = json.loads((out / ASKED).read_text(encoding="utf-8"))
        strange = before is None and out.exists() and any(out.iterdir())
        if not strange and before in (None, asked) and found is None:
            (out / PARTS).mkdir(parents=True, exist_ok=True)
            manifest.write_json(out / ASKED, asked)
    except (OSError, ValueError) as error:
        raise BadInput(f"{out}: cannot be used ({short(error)}); name another folder with --out") from error
    if strange:
        raise BadInput(f"{out}: holds something that is no prediction; name a new folder with --out")
    if before not in (None, asked):
        key = next(key for key in asked if before.get(key) != asked[key])
        raise BadInput(f"{out}: holds predictions with another {key}; name a new folder with --out")
    return found


def _part(out: Path, number: int) -> Path:
    return out / PARTS / f"part-{number:05d}{SUFFIX}"


@lru_cache(maxsize=1)
def _predictor(run: Path, source: str, vectors: Side | None) -> Predictor:
    return Predictor(run, source, vectors)


def _write(job: Job, number: int) -> int:
    """Score one file; return its rows. The part appears whole or not at all."""
    predictor = _predictor(job.run, job.source, "user" if job.neighbours else job.vectors)
    index = _index(job.run, job.source, job.neighbours) if job.neighbours else None
    path, target, rows = job.files[number], _part(job.out, number), 0
    draft = target.with_suffix(".draft")
    columns = list(dict.fromkeys([*predictor.columns, *job.keep]))
    with job.filesystem.open_input_file(path) as handle:
        file, writer = pq.ParquetFile(handle), None
        try:
            for batch in file.iter_batches(ROWS, columns=columns):
                table = pa.Table.from_batches([batch])
                found = predictor.predict(table, shown(job.filesystem, path))
                made = table.select(job.keep)
                for name, column in (index.nearest(found) if index else _named(found)).items():
                    made = made.append_column(name, column)
                writer = writer or pq.ParquetWriter(draft, made.schema)
                writer.write_table(made)
                rows += made.num_rows
        finally:
            if writer:
                writer.close()
        if writer is None:  # a file without rows
            pq.write_table(file.schema_arrow.empty_table().select(job.keep), draft)
    manifest.sync(draft)
    draft.replace(target)
    return rows


def _named(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


class _Index:
    """All items' vectors, in memory: exact search by blocks."""

    def __init__(self, run: Path, source: str, wanted: Neighbours) -> None:
        predictor = Predictor(run, source, "item")
        filesystem, files = find(wanted.items)
        keys, vectors = [], []
        for path in files:
            with filesystem.open_input_file(path) as handle:
                file = pq.ParquetFile(handle)
                if wanted.key not in file.schema_arrow.names:
                    near = nearest(wanted.key, file.schema_arrow.names)
                    raise BadInput(f"{shown(filesystem, path)} has no column '{wanted.key}'{near}; correct --key")
                for batch in file.iter_batches(ROWS, columns=list(dict.fromkeys([*predictor.columns, wanted.key]))):
                    table = pa.Table.from_batches([batch])
                    found = predictor.predict(table, shown(filesystem, path)).column(0).combine_chunks()
                    vectors.append(found.flatten().to_numpy().reshape(table.num_rows, -1))
                    keys.append(table.column(wanted.key).combine_chunks())
        self.keys, self.vectors, self.count = pa.concat_arrays(keys), np.concatenate(vectors), wanted.count

    def nearest(self, users: pa.Table) -> dict[str, pa.Array]:
        """Return the keys and the scores of each row's nearest items, the nearest first."""
        rows = users.column(0).combine_chunks()
        given = rows.flatten().to_numpy().reshape(len(rows), -1)
        count = min(self.count, len(self.vectors))
        places, scores = np.zeros((len(given), count), np.int64), np.zeros((len(given), count), np.float32)
        step = max(1, (1 << 25) // max(len(self.vectors), 1))  # users whose scores are in memory together
        for start in range(0, len(given), step):
            product = given[start : start + step] @ self.vectors.T
            top = np.argpartition(-product, count - 1, axis=1)[:, :count]
            found = np.take_along_axis(product, top, 1)
            order = np.argsort(-found, axis=1, kind="stable")
            places[start : start + step] = np.take_along_axis(top, order, 1)
            scores[start : start + step] = np.take_along_axis(found, order, 1)
        offsets = pa.array(np.arange(len(given) + 1) * count, pa.int32())
        return {
            "neighbours": pa.ListArray.from_arrays(offsets, self.keys.take(pa.array(places.ravel()))),
            "neighbour_scores": pa.ListArray.from_arrays(offsets, pa.array(scores.ravel())),
        }


@lru_cache(maxsize=1)
def _index(run: Path, source: str, wanted: Neighbours) -> _Index:
    return _Index(run, source, wanted)


def _finish(out: Path, asked: dict[str, Any], files: int, best: Best | None, names: list[str]) -> dict[str, Any]:
    """Put the parts, or each group's best rows of them, in their place, and commit."""
    if best is not None:
        score = f"{best.task}_score" if best.task else names[0]
        group, by = ('"{}"'.format(name.replace('"', '""')) for name in (best.group, score))
        parts, target = (str(path).replace("'", "''") for path in (out / PARTS / f"*{SUFFIX}", out / "top.draft"))
        with duckdb.connect() as connection:
            connection.execute(
                f"COPY (SELECT * FROM read_parquet('{parts}') QUALIFY row_number() OVER (PARTITION BY {group} "
                f"ORDER BY {by} DESC) <= {best.count} ORDER BY {group}, {by} DESC) TO '{target}' (FORMAT parquet)"
            )
        (out / "top.draft").replace(out / f"top{SUFFIX}")
        made = [out / f"top{SUFFIX}"]
    else:
        made = []
        for part in (_part(out, number) for number in range(files)):
            made.append(out / part.name)
            if part.exists():  # a call before may have come this far
                part.replace(made[-1])
    rows = sum(pq.read_metadata(path).num_rows for path in made)
    digests = {path.name: manifest.digest(path) for path in made}
    content = {"rows": rows, "asked": asked}
    manifest.commit(out, digests, **content)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    (out / ASKED).unlink(missing_ok=True)
    return {"files": digests, **content}
