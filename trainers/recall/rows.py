"""The rows of a split as a fit sees them: decoded, a row group at a time, in the order of the files."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from livetrain.configs.schema import Recipe
from livetrain.modules.recall.fitted import NO_ID, Fitted, Lists, Rows
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.decode import Decoder
from livetrain.trainers.data.read.source import CorruptGroup, Source


def rows_of(source: Source, model: Fitted, recipe: Recipe) -> Iterator[Rows]:
    """Yield the rows of a split.

    Args:
        source: the split, opened with the config's `also_reads` besides.
        model: the recipe's.
        recipe: the run.

    Raises:
        BadInput: a file cannot be read, or a row group does not decode, with `data.on_corrupt: stop`.
    """
    names = list(dict.fromkeys([model.key, *model.features]))
    decoder = Decoder(recipe, groups=False, names=names)
    columns = list(dict.fromkeys([*decoder.columns, *(column for column, _, _ in recipe.model.also_reads())]))
    first = 0
    for group in source.groups:
        try:
            table = source.read(group, columns)
        except CorruptGroup:
            if recipe.data.on_corrupt == "stop":
                raise
            first += group.rows
            continue
        found = decoder.decode(table, first, source.place(group))
        count = table.num_rows
        ids = {name: Lists(*column.cut(0, count)) for name, column in zip(decoder.keys, found.ids, strict=False)}
        ids = {name: _newest(lists, recipe.features[name].limit) for name, lists in ids.items()}
        beside = {name: _column(table.column(name), kind, recipe.model) for name, kind, _ in recipe.model.also_reads()}
        yield Rows(first, found.floats[0] == 1, ids, beside)
        first += count


def _newest(lists: Lists, limit: int) -> Lists:
    """Return lists cut to their newest ids, as the reader cuts them."""
    if not len(lists.lengths) or lists.lengths.max() <= limit:
        return lists
    ends = np.repeat(np.cumsum(lists.lengths), lists.lengths)
    return Lists(lists.values[ends - np.arange(len(ends)) <= limit], np.minimum(lists.lengths, limit))


def _column(column: pa.ChunkedArray, kind: str, config: Any) -> np.ndarray:
    """Return a column of ids as int64, `NO_ID` where there is none, or of times in seconds or numbers."""
    array = carry.whole(column)
    if kind == "unix time":
        return carry.seconds(array, config.unit)
    if kind == "number":
        return carry.floats(array).astype(np.float64)
    return carry.whole_ids(array).fill_null(NO_ID).to_numpy()
