"""Files of items: read whole, with their columns as arrays and of the types that a split has."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.files import open_filesystem, short, shown
from livetrain.trainers.data.read.records import running


def read_items(address: str, key: str, asked: Sequence[str]) -> tuple[pa.Table, str, set[str]]:
    """Return those of the asked columns that a file has, its name, and the names of all its columns."""
    filesystem, path = open_filesystem(address, key)
    name = shown(filesystem, path)
    try:
        file = pq.ParquetDataset(path, filesystem=filesystem, partitioning=None)
        known = set(file.schema.names)
        table = file.read([column for column in dict.fromkeys(asked) if column in known])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"{key}: {name} cannot be read ({short(error)}); name a Parquet file") from error
    if not sum(fragment.count_rows() for fragment in file.fragments):
        raise BadInput(f"{key}: {name} has no rows; write one per item")
    return table, name, known


def like_split(table: pa.Table, split: pa.Schema, columns: Sequence[str], file: str) -> pa.Table:
    """Return a catalogue with some columns of the types that the split's have, so that the ids of both are alike."""
    for place, name in enumerate(table.column_names):
        if name in columns:
            table = table.set_column(place, name, cast(table.column(name), split.field(name).type, name, file))
    return table


def cast(column: pa.ChunkedArray, kind: pa.DataType, name: str, file: str) -> pa.ChunkedArray:
    """Return a column, of that name and file, with the type that a split has; raise BadInput where a value has none."""
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        raise BadInput(
            f"data.negatives: column '{name}' of {file} is {column.type}, and that of the training split is {kind}; "
            "write it with that type"
        ) from error


def as_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as float64, null as NaN."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    return column.cast(pa.float64(), safe=False).to_numpy()


def ids_or_none(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return a column's ids, 0 where there is none, and where there is one."""
    array = carry.whole_ids(carry.whole(column))
    return array.fill_null(0).to_numpy(), array.is_valid().to_numpy(zero_copy_only=False)


def lists(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets (n + 1,) of a column of lists of ids, and the ids; a null is 0."""
    array = column.combine_chunks()
    lengths = array.value_lengths().fill_null(0).to_numpy()
    return running(lengths), carry.whole_ids(array.flatten()).fill_null(0).to_numpy()
