"""Raw files of a world, written piece by piece and visible only once all are whole."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput
from livetrain.trainers.runtime import manifest

BUFFER = 131_072  # rows that a file waits for before it writes them
COMPRESSION = "lz4"


@contextmanager
def folder(out: Path, **content: object) -> Iterator[Path]:
    """Give a hidden folder to write to; when the block ends well, commit its manifest and name it `out`.

    What an earlier, killed attempt left there is removed; a block that fails leaves nothing.

    Raises:
        BadInput: `out` is there and not empty, or cannot be written.
    """
    draft = out.absolute().with_name(f".{out.absolute().name}.unfinished")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BadInput(f"{out} is not empty; name a new folder with --out, or remove it")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}); name a folder that can") from None
    try:
        yield draft
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        hashes = {str(path.relative_to(draft)): manifest.digest(path) for path in files}
        manifest.commit(draft, hashes, **content)
        if out.exists():
            out.rmdir()
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


class Csv:
    """A CSV file with a bare header, empty fields for nulls, and timestamps as YYYY-MM-DD HH:MM:SS.mmm."""

    _options = pyarrow.csv.WriteOptions(include_header=False, batch_size=BUFFER, quoting_style="none")

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._named = path.open("wb"), False

    def write(self, table: pa.Table) -> None:
        if not self._named:
            self._file.write((",".join(table.column_names) + "\n").encode())
            self._named = True
        if len(table):
            pyarrow.csv.write_csv(table, self._file, self._options)

    def close(self) -> None:
        self._file.close()


class Parquet:
    """A Parquet file whose row groups are the pieces that it was given."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression=COMPRESSION)
        self._writer.write_table(table, row_group_size=BUFFER)

    def close(self) -> None:
        assert self._writer is not None  # a table has at least one piece
        self._writer.close()


def whole(path: Path, pieces: Iterable[pa.Table]) -> None:
    """Write a table that is there at once, or in pieces, as the file's ending says."""
    file = (Csv if path.suffix == ".csv" else Parquet)(path)
    for piece in pieces:
        file.write(piece)
    file.close()


class Files:
    """Files below a folder that take rows as they come; each writes once it has BUFFER of them, and at the end."""

    def __init__(self, root: Path):
        self._root = root
        self._files: dict[str, Csv | Parquet] = {}
        self._waiting: dict[str, list[pa.Table]] = {}
        self.rows: dict[str, int] = {}

    def add(self, name: str, columns: dict[str, np.ndarray | pa.Array]) -> None:
        """Append rows to the file `name`, a path below the root; a file without rows still has its header."""
        table = pa.table(columns)
        if name not in self._files:
            path = self._root / name
            self._files[name] = (Csv if path.suffix == ".csv" else Parquet)(path)
            self._waiting[name], self.rows[name] = [], 0
        self._waiting[name].append(table)
        self.rows[name] += len(table)
        if sum(map(len, self._waiting[name])) >= BUFFER:
            self._flush(name)

    def close(self, name: str) -> None:
        """Write what a file still waits with, and finish it."""
        self._flush(name)
        self._files.pop(name).close()

    def close_all(self) -> None:
        for name in list(self._files):
            self.close(name)

    def _flush(self, name: str) -> None:
        if self._waiting[name]:
            self._files[name].write(pa.concat_tables(self._waiting[name]).combine_chunks())
            self._waiting[name] = []
