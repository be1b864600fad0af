"""What answers for a retriever's items and users: a run's best checkpoint, or the export that servers have of it."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.model import Model
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.columns import plain
from livetrain.trainers.data.read.files import read_footer, split_files
from livetrain.trainers.export import prediction_files, publish
from livetrain.trainers.export.prediction import Predictor, Side, Weights, weights_of
from livetrain.trainers.export.prediction_files import Files
from livetrain.trainers.runtime import run_folder


@dataclass(frozen=True)
class Origin:
    """A run, and which of its weights answer.

    Attributes:
        run: the run's folder.
        weights: ``best``, or the folder of an export.
        version: under which the export is published; None of a checkpoint.
    """

    run: Path
    weights: str = "best"
    version: str | None = None

    @property
    def recipe(self) -> Recipe:
        """The run's."""
        return run_folder.recipe_of(self.run)

    def of(self, side: Side) -> Weights:
        """Return the weights that answer the vectors of a side.

        Raises:
            BadInput: there is no such checkpoint or export, or the model has no towers.
        """
        return weights_of(self.run, self.weights, side)


def origin(source: str | Path, runs: Path) -> Origin:
    """Find a run, or the run of a published model.

    Args:
        source: a run's folder, or the folder of published versions, whose present one answers.
        runs: folder of run folders, where the run of a published model lies.

    Raises:
        BadInput: the folder is neither, or the run is gone.
    """
    folder = Path(source)
    if (folder / "config.yaml").exists():
        return Origin(folder)
    pointer = publish.current(str(source)) if "://" not in str(source) else None
    if pointer is None:
        raise BadInput(f"{source}: holds neither a run nor published models; name a folder that does")
    export = folder / pointer["folder"]
    run = runs / json.loads((export / "signature.json").read_text(encoding="utf-8"))["run"]
    if line := pointer.get("line"):  # a follower's: NAME-follow/LINE is called NAME-follow-LINE
        run = runs / run.name.removesuffix(f"-{line}") / line
    if not (run / "config.yaml").exists():
        raise BadInput(f"{source}: is of the run {run}, which is not there; name the folder of runs with --runs")
    return Origin(run, str(export), pointer["version"])


def key_of(recipe: Recipe) -> str:
    """Return the feature that tells a retriever's items apart.

    Raises:
        BadInput: the model finds no items.
    """
    if (model := fitted(recipe)) is not None:
        return model.key
    network = Model(recipe, device="meta", tables_device="meta").dense.network
    if network.towers is None:
        raise BadInput(f"{recipe.name}: model.kind '{recipe.model.kind}' finds no items; name a run of one that does")
    assert network.key is not None  # what has towers has it
    return network.key


def items(recipe: Recipe, catalogue: str | None, columns: list[str], split: str = "test") -> pa.Table:
    """Return what is known of each item, a row per item: of a catalogue, or of a split's rows, the newest.

    Memory: the items' columns, and 65,536 rows.

    Args:
        recipe: the run's.
        catalogue: Parquet of the items, a file or a folder; by default the recipe's evaluate.catalogue, if it has one.
        columns: those that are wanted, the first of which tells items apart.
        split: whose rows, without a catalogue.

    Raises:
        BadInput: the catalogue or the split cannot be read, has no items, or lacks a column.
    """
    catalogue = catalogue or recipe.evaluate.catalogue
    files = rows_of(recipe, split) if catalogue is None else prediction_files.find(catalogue, "--catalogue")
    wanted = list(dict.fromkeys(columns))
    found = newest(read(files, wanted), wanted[0])
    if not len(found):
        raise BadInput(f"{files.named(files.paths[0])}: there are no items; name those there are with --catalogue")
    return found


def rows_of(recipe: Recipe, split: str) -> Files:
    """Return the files of a split.

    Raises:
        BadInput: they are not there, or hold requests.
    """
    if recipe.data.layout == "request":
        raise BadInput("data.layout: of data of requests the items are not known; name their Parquet with --catalogue")
    filesystem, _, paths = split_files(recipe, split)
    return Files(filesystem, tuple(paths))


def read(files: Files, columns: list[str]) -> Iterator[pa.Table]:
    """Yield some columns of files' rows, in their order.

    Raises:
        BadInput: a file lacks a column; found before any is read.
    """
    for path in files.paths:
        there = read_footer(files.filesystem, path)[1].names
        if missing := [name for name in columns if name not in there]:
            raise BadInput(f"{files.named(path)}: has no column '{missing[0]}'{nearest(missing[0], there)}; add it")
    return (table for path in files.paths for table in files.batches(path, columns))


def newest(tables: Iterable[pa.Table], key: str) -> pa.Table:
    """Return of each value of a column the last row, in the order of these rows; rows without a value are left out.

    Example:
        >>> rows = pa.table({"item": [5, 7, 5, None], "price": [1, 2, 3, 4]})
        >>> newest([rows], "item").to_pylist()
        [{'item': 7, 'price': 2}, {'item': 5, 'price': 3}]
    """
    kept: list[pa.Table] = []
    for table in tables:
        whole = pa.concat_tables([*kept, table])
        codes = whole.column(key).combine_chunks().cast(plain(whole.schema.field(key).type)).dictionary_encode()
        codes = codes.indices.fill_null(-1).to_numpy()[::-1]
        code, last = np.unique(codes, return_index=True)
        kept = [whole.take(pa.array(np.sort(len(codes) - 1 - last[code >= 0])))]
    return kept[0]


def vectors(predictor: Predictor, table: pa.Table) -> np.ndarray:
    """Return the vectors of a table's rows: (n, width) float32, or (n, K, width) of K interests per row."""
    column = predictor.predict(table).column(0).combine_chunks()
    shape = [len(column)]
    while pa.types.is_fixed_size_list(column.type):
        shape.append(column.type.list_size)
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).reshape(shape)


def ids(column: pa.ChunkedArray) -> np.ndarray:
    """Return (n,) the int64 ids that a model knows items by: of strings their hashes."""
    return carry.whole_ids(carry.whole(column)).to_numpy()


def places_of(wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return (n,) the places of (n,) ids among (N,) known ones, at least one; -1 of those that are not known.

    Example:
        >>> places_of(np.array([7, 5, 6]), np.array([9, 7, 5]))
        array([ 1,  2, -1])
    """
    order = known.argsort()
    at = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
    return np.where(known[at] == wanted, at, -1)
