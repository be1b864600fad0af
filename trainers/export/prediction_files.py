"""Parquet in, Parquet with predictions out: file by file, on one machine or many, resumable, the manifest last.

<out>/part-00000.parquet ...   one per file of the data, of its rows in their order
<out>/top.parquet              instead of them, where only each group's best rows are wanted
<out>/.parts/, .asked.json     while the work is under way
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from livetrain.configs.errors import BadInput, nearest
from livetrain.trainers.data.read.columns import common, is_list, plain, worded
from livetrain.trainers.data.read.files import SUFFIX, files_below, open_filesystem, read_footer, short, shown
from livetrain.trainers.export import prediction
from livetrain.trainers.export.prediction import Side, Weights, weights_of
from livetrain.trainers.runtime import manifest, run_folder, scratch

ASKED, PARTS, TOP = ".asked.json", ".parts", f"top{SUFFIX}"
OWN = (ASKED, PARTS)  # in a folder of predictions that is not whole yet
ROWS = 1 << 16  # read at once
_CELLS = 1 << 25  # scores of items that are in memory together
NEIGHBOURS = ("neighbours", "neighbour_scores")
Map = Callable[[Callable[[int], int], list[int]], Iterable[int]]


@dataclass(frozen=True)
class Best:
    """Only each group's best rows: `count` rows per value of the column `group`, by the predictions of `task`.

    Rows with equal predictions keep the data's order; rows whose group is null are left out.
    """

    count: int
    group: str
    task: str | None = None  # the first


@dataclass(frozen=True)
class Neighbours:
    """The `count` nearest items of each row, by the inner product of the towers' vectors."""

    count: int
    items: str  # Parquet with the items' features: a file or a folder; a path or a URI
    key: str  # column that tells items apart; of rows with the same key the first counts


@dataclass(frozen=True)
class Files:
    """Parquet files, as every process finds them."""

    filesystem: fs.FileSystem
    paths: tuple[str, ...]

    def named(self, path: str) -> str:
        """Return a file's name for messages."""
        return shown(self.filesystem, path)

    def identity(self) -> list[list[Any]]:
        """Return each file's name, size and time of change, without credentials."""
        infos = self.filesystem.get_file_info(list(self.paths))
        return [[self.named(info.path), info.size, info.mtime_ns] for info in infos]

    def batches(self, path: str, columns: list[str]) -> Iterator[pa.Table]:
        """Yield a file's rows by turns, ROWS at a time; of a file without rows one table without rows."""
        with self.filesystem.open_input_file(path) as handle:
            file = pq.ParquetFile(handle)
            if not file.metadata.num_rows:
                yield file.schema_arrow.empty_table().select(columns)
            for batch in file.iter_batches(ROWS, columns=columns):
                yield pa.Table.from_batches([batch]).select(columns)


@dataclass(frozen=True)
class Work:
    """What is to be written, for every process that takes part."""

    weights: Weights
    data: Files
    kept: pa.Schema  # the columns that pass through
    best: Best | None
    items: Files | None
    neighbours: Neighbours | None
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
    """Write the predictions of a run for every row of some Parquet files. One process at a time has `out`.

    Started again after a kill, it goes on with the files that are not done. Memory per process: the model and 65,536
    rows; for `best` also the best rows so far, and for `neighbours` the items' vectors.

    Args:
        run: the run's folder.
        data: a Parquet file, or a folder of them, partitions ``date=...`` too; a path or a URI.
        out: a new folder, or that of the same call before.
        source: ``best`` or ``last`` of the checkpoints, or the folder of an export.
        keep: columns that pass through; by default all but lists.
        best: write the best rows of each group only.
        vectors: write vectors of this side instead of predictions.
        neighbours: write each row's nearest items instead of predictions.
        run_all: applies the work to the numbers of all files, here or elsewhere; yields as they are done.
        progress: told files done and files in all.

    Returns:
        The manifest: `rows`, `files`, and `asked`, which says what was predicted by which model.

    Raises:
        BadInput: no such run, checkpoint or data, a column is missing or of another type, or `out` holds something
            else. Nothing is written then.
    """
    if vectors and run_folder.recipe_of(run).model.fitted:
        raise BadInput("--vectors: a model that is fitted has none; it finds items by --neighbours")
    weights = weights_of(run, source, "user" if neighbours else vectors)
    files = find(data, "--data")
    items = find(neighbours.items, "--items") if neighbours else None
    check_place(out, data)
    predictor = prediction.predictor(weights)
    added = NEIGHBOURS if neighbours else predictor.names
    kept = _check(predictor, files, keep, best, added)
    if best:
        best = _settled(best, added)
    if neighbours and items:
        _check_items(items, neighbours.key)
    asked = {
        "model": {"folder": str(weights.folder), "digest": weights.digest},
        "data": files.identity(),
        "keep": kept.names,
        "best": None if best is None else asdict(best),
        "vectors": vectors,
        "neighbours": neighbours and items and [neighbours.count, neighbours.key, items.identity()],
    }
    if (done := _begin(out, json.loads(json.dumps(asked)))) is not None:
        return done
    work = Work(weights, files, kept, best, items, neighbours, out.resolve())
    parts = [_part(out, number) for number in range(len(files.paths))]
    left = [number for number, part in enumerate(parts) if not part.exists() and not (out / part.name).exists()]
    progress(len(parts) - len(left), len(parts))
    for count, _ in enumerate(run_all(partial(_write, work), left), len(parts) - len(left) + 1):
        progress(count, len(parts))
    return _finish(out, asked, parts, best)


def find(data: str, option: str) -> Files:
    """Return a Parquet file, or all below a folder.

    Raises:
        BadInput: there is none, or something there might hold rows and cannot be read.
    """
    filesystem, root = open_filesystem(data, option)
    if isinstance(filesystem, fs.LocalFileSystem):
        root = os.path.abspath(root)  # workers stand in another folder
    return Files(filesystem, tuple(files_below(filesystem, root, option)))


def check_place(out: Path, data: str) -> None:
    """Raise BadInput where predictions cannot lie."""
    if "://" in str(out) or ":/" in str(out):
        raise BadInput(f"--out: {out} is no folder; name one on a disk, or on storage that is mounted as a folder")
    if "://" not in data and out.resolve().is_relative_to(Path(data).resolve()):
        raise BadInput(f"--out: {out} lies within --data, whose files it would be among; name a folder beside it")


def _check(
    predictor: prediction.Predictor,
    files: Files,
    keep: Sequence[str] | None,
    best: Best | None,
    added: Sequence[str],
) -> pa.Schema:
    """Look at every file's columns before any is scored; return those that pass through, in one type each."""
    kinds: dict[str, list[pa.DataType]] = {}
    wanted: list[str] | None = None
    for path in files.paths:
        name, schema = files.named(path), read_footer(files.filesystem, path)[1]
        predictor.check(schema, name)
        if best and predictor.lists(schema, name):
            raise BadInput(f"--top: the rows of {name} are requests, each with a list of scores; leave --top out")
        if wanted is None:
            once = [field.name for field in schema if schema.names.count(field.name) == 1 and not is_list(field.type)]
            wanted = list(dict.fromkeys([*([best.group] if best else []), *(once if keep is None else keep)]))
        for column in wanted:
            if schema.names.count(column) != 1:
                near = nearest(column, schema.names)
                raise BadInput(f"{name}: has not one column '{column}'{near}; correct --keep or --group")
            kinds.setdefault(column, []).append(schema.field(column).type)
            if common(kinds[column]) is None:
                raise BadInput(
                    f"{name}: column '{column}' is {worded(kinds[column][-1])} here and {worded(kinds[column][0])} in "
                    f"{files.named(files.paths[0])}; write all files with one schema, or leave it out of --keep"
                )
    if clash := sorted({*added} & {*kinds}):
        raise BadInput(f"{files.named(files.paths[0])}: has a column '{clash[0]}' already; leave it out by --keep")
    if best and is_list(kinds[best.group][0]):
        raise BadInput(f"--group: '{best.group}' is a list; name a column of one value per row")
    return pa.schema([(column, common(found)) for column, found in kinds.items()])


def _settled(best: Best, added: Sequence[str]) -> Best:
    """Return what is wanted with its task named."""
    known = [name.removesuffix("_score") for name in added if name.endswith("_score")]
    if not known:
        raise BadInput("--top: goes with predictions, not with --vectors or --neighbours")
    if best.task and best.task not in known:
        raise BadInput(f"--task: there is no task '{best.task}'{nearest(best.task, known)}")
    return replace(best, task=best.task or known[0])


def _check_items(items: Files, key: str) -> None:
    rows = 0
    for path in items.paths:
        footer, schema = read_footer(items.filesystem, path)
        if schema.names.count(key) != 1:
            raise BadInput(
                f"{items.named(path)}: has not one column '{key}'{nearest(key, schema.names)}; correct --key"
            )
        rows += footer.num_rows
    if not rows:
        raise BadInput(f"{items.named(items.paths[0])}: there are no items; correct --items")


def _begin(out: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Make the folder for the work, or find it as an earlier call left it; return the manifest if all is done."""
    found = manifest.read(out)
    before = found["asked"] if found and "asked" in found else None
    try:
        if before is None and (out / ASKED).exists():
            before = json.loads((out / ASKED).read_text(encoding="utf-8"))
        there = [path.name for path in out.iterdir()] if out.exists() else []
        strange = before is None and any(name not in OWN and not name.startswith(f".{ASKED}.") for name in there)
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
    if found is not None:
        _tidy(out)
    return found


def _tidy(out: Path) -> None:
    shutil.rmtree(out / PARTS, ignore_errors=True)
    (out / ASKED).unlink(missing_ok=True)


def _part(out: Path, number: int) -> Path:
    return out / PARTS / f"part-{number:05d}{SUFFIX}"


def _write(work: Work, number: int) -> int:
    """Score one file; return the rows that are written. The part appears whole or not at all."""
    path, target, rows = work.data.paths[number], _part(work.out, number), 0
    draft = target.with_name(f".{target.name}.{scratch.label()}")  # nobody else's
    made = _scored(work, path)
    if work.best:
        made = iter([_best_of(made, work.best)])
    writer = None
    try:
        for table in made:
            writer = writer or pq.ParquetWriter(draft, table.schema)
            writer.write_table(table)
            rows += table.num_rows
    finally:
        if writer:
            writer.close()
    manifest.sync(draft)
    draft.replace(target)
    return rows


def _scored(work: Work, path: str) -> Iterator[pa.Table]:
    """Yield the rows of a file by turns: what passes through, and what is added."""
    predictor = prediction.predictor(work.weights)
    index = _index(work.weights, work.items, work.neighbours) if work.items and work.neighbours else None
    columns = list(dict.fromkeys([*predictor.columns, *work.kept.names]))
    for table in work.data.batches(path, columns):
        made = {field.name: table.column(field.name).cast(field.type) for field in work.kept}
        if index:
            made |= dict(zip(NEIGHBOURS, index.nearest(table, work.data.named(path)), strict=True))
        else:
            found = predictor.predict(table, work.data.named(path))
            made |= dict(zip(found.column_names, found.columns, strict=True))
        yield pa.table(made)


def _best_of(tables: Iterable[pa.Table], best: Best) -> pa.Table:
    """Return the best rows per group of some tables, group by group, the best first; equal ones in their order."""
    so_far: pa.Table | None = None
    for table in tables:
        whole = table if so_far is None else pa.concat_tables([so_far, table])
        whole = whole.filter(whole.column(best.group).is_valid())
        order = pc.sort_indices(whole, [(best.group, "ascending"), (f"{best.task}_score", "descending")])  # stable
        whole = whole.take(order)
        codes = whole.column(best.group).combine_chunks().dictionary_encode().indices.to_numpy()
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        place = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
        so_far = whole.filter(pa.array(place < best.count))
    assert so_far is not None  # a file yields a table even where it has no rows
    return so_far


class _Index:
    """All items, in memory: exact search by blocks.

    Args:
        weights: those of the requests' side.
        items: the items' rows.
        wanted: what is asked for.
    """

    def __init__(self, weights: Weights, items: Files, wanted: Neighbours) -> None:
        self.requests = prediction.predictor(weights)
        predictor = prediction.Predictor(replace(weights, vectors="item"))
        columns, keys, found = list(dict.fromkeys([*predictor.columns, wanted.key])), [], []
        for path in items.paths:
            for table in items.batches(path, columns):
                found.append(self._of_items(predictor, table, items.named(path)))
                keys.append(table.column(wanted.key))
        every = pa.chunked_array([chunk.cast(plain(chunk.type)) for key in keys for chunk in key.chunks])
        codes = every.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
        code, first = np.unique(codes, return_index=True)
        places = np.sort(first[code >= 0])
        self.keys = every.take(pa.array(places)).combine_chunks()
        self.items, self.count = np.concatenate(found)[places], min(wanted.count, len(places))

    def _of_items(self, predictor: prediction.Predictor, table: pa.Table, name: str) -> np.ndarray:
        """Return what is kept of some items: their vectors."""
        found = predictor.predict(table, name).column(0).combine_chunks()
        return found.flatten().to_numpy().reshape(table.num_rows, -1)

    def _scores(self, table: pa.Table, name: str) -> Iterator[np.ndarray]:
        """Yield the scores of all items for some rows, (n, items), block by block: the vectors' largest product."""
        flat, width = self.requests.predict(table, name).column(0).combine_chunks(), self.items.shape[1]
        while pa.types.is_fixed_size_list(flat.type):
            flat = flat.flatten()
        interests = max(len(flat) // max(len(table) * width, 1), 1)
        given = flat.to_numpy().reshape(len(table), interests * width)
        step = max(1, _CELLS // (len(self.items) * interests))
        for start in range(0, len(given), step):
            every = given[start : start + step].reshape(-1, width) @ self.items.T
            yield every.reshape(-1, interests, len(self.items)).max(1)

    def nearest(self, table: pa.Table, name: str) -> tuple[pa.Array, pa.Array]:
        """Return two columns: the keys and the scores of each row's nearest items, the nearest first.

        Args:
            table: the rows.
            name: of their file, for messages.
        """
        places, scores = np.zeros((len(table), self.count), np.int64), np.zeros((len(table), self.count), np.float32)
        start = 0
        for product in self._scores(table, name):
            top = np.argpartition(-product, self.count - 1, axis=1)[:, : self.count]
            found = np.take_along_axis(product, top, 1)
            order = np.argsort(-found, axis=1, kind="stable")
            here = slice(start, start + len(product))
            places[here], scores[here] = np.take_along_axis(top, order, 1), np.take_along_axis(found, order, 1)
            start += len(product)
        offsets = pa.array(np.arange(len(table) + 1) * self.count, pa.int32())
        keys = self.keys.take(pa.array(places.ravel()))
        return pa.ListArray.from_arrays(offsets, keys), pa.ListArray.from_arrays(offsets, pa.array(scores.ravel()))


class _Fitted(_Index):
    """The same of a model that is fitted, whose scores are sums over a request's keys."""

    def _of_items(self, predictor: prediction.Predictor, table: pa.Table, name: str) -> np.ndarray:
        return predictor.ids_of(table, name)

    def _scores(self, table: pa.Table, name: str) -> Iterator[np.ndarray]:
        yield from self.requests.scores_of(table, name, self.items, _CELLS)


_indices: dict[str, _Index] = {}  # of this process: the one that was used last


def _index(weights: Weights, items: Files, wanted: Neighbours) -> _Index:
    key = repr((weights, wanted, items.identity()))
    if key not in _indices:
        _indices.clear()
        kind = _Fitted if run_folder.recipe_of(weights.run).model.fitted else _Index
        _indices[key] = kind(weights, items, wanted)
    return _indices[key]


def _finish(out: Path, asked: dict[str, Any], parts: list[Path], best: Best | None) -> dict[str, Any]:
    """Put the parts, or the best rows of all, in their place, and commit."""
    made = [out / part.name for part in parts]
    if best is None:
        for part, place in zip(parts, made, strict=True):
            if part.exists():  # a call before may have come this far
                part.replace(place)
    else:
        made, draft = [out / TOP], out / PARTS / f".{TOP}"
        pq.write_table(_best_of((pq.read_table(part, partitioning=None) for part in parts), best), draft)
        manifest.sync(draft)
        draft.replace(made[0])
    content = {"rows": sum(pq.read_metadata(path).num_rows for path in made), "asked": asked}
    digests = {path.name: manifest.digest(path) for path in made}
    manifest.commit(out, digests, **content)
    _tidy(out)
    return {"files": digests, **content}
