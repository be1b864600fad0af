"""Whether the rows that tables begin with are those that training will look up. Told before a run starts."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.tables.hashing import row
from livetrain.trainers.data.checks import brief
from livetrain.trainers.data.checks.findings import share
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.columns import is_list
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.vectors import Vectors


def check(recipe: Recipe, train: Source, note: Callable[[str], None]) -> None:
    """Note how many ids of the training split have no vector, and how many vectors share a row.

    The ids of every file are read once, and its first vectors. What is kept is a byte per row of the table, and the
    ids of a sample of the split.

    Args:
        recipe: the run.
        train: its training split.
        note: told a sentence per table.

    Raises:
        BadInput: a file is not what it has to be, or holds the vector of no id that was looked at.
    """
    for name, table in recipe.tables.items():
        if table.initial is None:
            continue
        vectors = Vectors(recipe, name)
        ids, times = np.unique(_looked_up(recipe, name, train), return_counts=True)
        found, taken, shared = np.zeros(len(ids), bool), np.zeros(table.rows, bool), 0
        for part in vectors.ids():
            places = np.searchsorted(ids, part)
            met = places < len(ids)
            met[met] = ids[places[met]] == part[met]
            found[places[met]] = True
            rows = row(torch.from_numpy(part.copy()), table.rows, table.hash == "modulo").numpy()
            new = np.unique(rows[~taken[rows]])
            shared += len(rows) - len(new)
            taken[new] = True
        if len(ids) and not found.any():
            raise BadInput(
                f"tables.{name}.initial.file: {table.initial.file} has the vector of none of {len(ids):,} ids of "
                f"{train.folder}; take the file of these ids"
            )
        next(vectors.parts(), None)  # what is wrong with the first vectors is mostly wrong with all of them
        missing = share(float(times[~found].sum()) / max(times.sum(), 1))
        note(
            f"tables.{name} begins with {vectors.rows:,} vectors, {shared:,} of which find their row taken by an "
            f"earlier one; of {len(ids):,} ids of train that were looked at {(~found).sum():,} have none ({missing} of "
            "the lookups)"
        )


def _looked_up(recipe: Recipe, table: str, train: Source) -> np.ndarray:
    """Return the ids of a sample of the split that are looked up in a table."""
    columns = [recipe.column(name) for name, f in recipe.features.items() if f.looks_up() == table]
    sample = brief.read(train, list(dict.fromkeys(columns)), brief.KNOWN, recipe.data.on_corrupt == "skip")
    chunks = [chunk.flatten() if is_list(chunk.type) else chunk for column in sample.columns for chunk in column.chunks]
    return pa.chunked_array([carry.whole_ids(chunk.drop_null()) for chunk in chunks], pa.int64()).to_numpy()
