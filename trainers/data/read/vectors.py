"""The rows that a table begins with: a Parquet file, or a folder of them, of ids and their vectors."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.columns import is_list, plain
from livetrain.trainers.data.read.files import files_below, open_filesystem, read_footer, short, shown
from livetrain.trainers.data.write.ids import string_ids

_BATCH = 16_384  # vectors that are decoded at a time


class Vectors:
    """The vectors of one table's file, a part at a time: nothing here grows with the file.

    Args:
        recipe: the run.
        table: one that has `initial`.

    Raises:
        BadInput: the file is not there or not whole, or a column is missing, of another type, or of another width.
    """

    def __init__(self, recipe: Recipe, table: str) -> None:
        declared = recipe.tables[table]
        assert declared.initial is not None  # as the caller has seen
        self.key, self.dim, self.config = f"tables.{table}.initial", declared.dim, declared.initial
        self._filesystem, root = open_filesystem(self.config.file, f"{self.key}.file")
        self._paths = files_below(self._filesystem, root, f"{self.key}.file")
        self._files = [read_footer(self._filesystem, path) for path in self._paths]
        for path, (_, schema) in zip(self._paths, self._files, strict=True):
            self._check(shown(self._filesystem, path), schema)

    @property
    def rows(self) -> int:
        """Return how many vectors the files hold."""
        return sum(footer.num_rows for footer, _ in self._files)

    def _check(self, file: str, schema: pa.Schema) -> None:
        for part in ("id", "vector"):
            column = getattr(self.config, part)
            if schema.names.count(column) != 1:
                raise BadInput(f"{self.key}.{part}: {file} has no column '{column}'{nearest(column, schema.names)}")
        kind = plain(schema.field(self.config.id).type)
        if not (pa.types.is_integer(kind) or _is_text(kind)) or pa.types.is_uint64(kind):
            raise BadInput(f"{self.key}.id: column '{self.config.id}' of {file} is {kind}; write int64 or strings")
        stored = schema.field(self.config.vector).type
        kind = plain(stored)
        if not is_list(kind) or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
            raise BadInput(
                f"{self.key}.vector: column '{self.config.vector}' of {file} is {stored}; write lists of float32"
            )
        if pa.types.is_fixed_size_list(stored):
            self._check_width(file, stored.list_size)

    def _check_width(self, file: str, width: int) -> None:
        if width != self.dim:
            table = self.key.removesuffix(".initial")
            raise BadInput(
                f"{self.key}.vector: {file} holds vectors of {width} numbers, and {table}.dim is {self.dim}; "
                "make the two equal"
            )

    def ids(self) -> Iterator[np.ndarray]:
        """Yield the ids, int64, in the order of the files.

        Raises:
            BadInput: an id is null, or a file cannot be read.
        """
        for file, batch in self._batches([self.config.id]):
            yield self._ids(file, batch.column(0))

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids (n,) int64, vectors (n, dim) float32) in the order of the files.

        Raises:
            BadInput: an id or a vector is null, a vector has another width or a number that is not finite, or a file
                cannot be read.
        """
        for file, batch in self._batches([self.config.id, self.config.vector]):
            lists = batch.column(self.config.vector)
            if lists.null_count:
                raise BadInput(
                    f"{self.key}.vector: column '{self.config.vector}' of {file} has nulls; leave those rows out"
                )
            lengths = pc.list_value_length(lists)
            for width in pc.unique(lengths).to_pylist():
                self._check_width(file, width)
            numbers = lists.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False).reshape(-1, self.dim)
            if not np.isfinite(numbers).all():
                raise BadInput(
                    f"{self.key}.vector: column '{self.config.vector}' of {file} has a number that is null or not "
                    "finite; mend those rows or leave them out"
                )
            yield self._ids(file, batch.column(self.config.id)), numbers

    def _ids(self, file: str, column: pa.Array) -> np.ndarray:
        if column.null_count:
            raise BadInput(f"{self.key}.id: column '{self.config.id}' of {file} has nulls; leave those rows out")
        kind = plain(column.type)
        ids = string_ids(column) if _is_text(kind) else column.cast(pa.int64())
        return ids.to_numpy(zero_copy_only=False)

    def _batches(self, columns: list[str]) -> Iterator[tuple[str, Any]]:
        for path in self._paths:
            file = shown(self._filesystem, path)
            try:
                with self._filesystem.open_input_file(path) as handle:
                    for batch in pq.ParquetFile(handle).iter_batches(_BATCH, columns=columns):
                        yield file, batch
            except (pa.ArrowException, OSError) as error:
                raise BadInput(
                    f"{self.key}.file: {file} cannot be read ({short(error)}); write or copy it again"
                ) from error


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
