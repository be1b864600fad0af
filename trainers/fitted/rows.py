"""The rows of a split as a ranker's fit sees them, in the order of the files."""

from collections.abc import Iterator
from contextlib import closing
from typing import cast

import numpy as np
import torch

from livetrain.configs.schema import Recipe
from livetrain.modules.features.carriers import Carried
from livetrain.modules.fitted import Inputs, Pass, Rows
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export.rows import inputs_of, some_rows

PARTS = 16  # blocks of a split that is one partition
_WINDOWS_GB = 0.1  # of rows that are read ahead at most: nothing is shuffled, so that more would be of no use


def passes(source: Source, recipe: Recipe) -> Pass:
    """Return what reads a split.

    Args:
        source: the split.
        recipe: the run.
    """
    # One stream: rows come as the files have them.
    data = recipe.data.model_copy(update={"shards": 1, "shuffle_gb": min(recipe.data.shuffle_gb, _WINDOWS_GB)})
    ordered, ends = recipe.model_copy(update={"data": data}), _ends(source, recipe)
    widths = Carried(recipe.features).widths

    def rows() -> Iterator[Rows]:
        reader = Reader(source, ordered, rank=0, world=1, shuffle=False)
        with closing(reader.batches(0)) as batches:
            for asked in batches:
                batch = asked.flat(widths)
                inputs, size = inputs_of(batch, recipe), len(batch.rows)
                known = ~batch.labels.isnan()
                weights = known.float() if batch.sample_weights is None else known * batch.sample_weights
                blocks = torch.from_numpy(np.searchsorted(ends, batch.rows.numpy(), side="right"))
                for block in blocks[batch.weights > 0].unique().tolist():
                    own = torch.nonzero((batch.weights > 0) & (blocks == block)).flatten()
                    found = inputs if len(own) == size else some_rows(inputs, own, size)
                    yield Rows(cast(Inputs, found), batch.labels[own], weights[own], block)

    return rows


def _ends(source: Source, recipe: Recipe) -> np.ndarray:
    """Return the number of the row at which each block ends."""
    each = recipe.data.candidates or 1
    counts = [source.stored(partition) * each for partition in source.partitions]
    if len(counts) > 1:
        return np.cumsum(counts)
    return np.ceil(counts[0] * np.arange(1, PARTS + 1) / PARTS).astype(np.int64)
