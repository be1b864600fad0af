"""How fast a rank's batches come, against reading the same columns with pyarrow and doing nothing with them.

    python benchmarks/reader.py configs/recipes/din_ml1m.yaml --rows 500000
    python benchmarks/reader.py configs/recipes/din_ml1m.yaml --rows 500000 --data data/ml-1m-rechorus

Without --data the columns are generated: ids by Zipf's law, lists of 0 to max_length ids. Every row of the table is the
best of --repeat passes over the training split, in one process; GB/s counts the columns' decoded bytes.
"""

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

import modules.models  # noqa: F401  (registers the kinds that a recipe may name)
from configs.load import load_recipe
from configs.schema import DenseFeature, Recipe, SequenceFeature
from trainers.data.reader import Reader
from trainers.data.source import Source

IDS = 100_000


def generate(recipe: Recipe, folder: Path, rows: int, group: int) -> None:
    """Write a training split that has the recipe's columns."""
    draw = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return draw.zipf(1.2, count).astype(np.int64) % IDS

    columns = {}
    for name, feature in recipe.features.items():
        if isinstance(feature, SequenceFeature):
            offsets = np.concatenate([[0], np.cumsum(draw.integers(0, feature.max_length + 1, rows))])
            lists = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids(int(offsets[-1]))))
            columns[recipe.column(name)] = lists
        elif isinstance(feature, DenseFeature):
            columns[recipe.column(name)] = pa.array(draw.normal(size=rows).astype(np.float32))
        else:
            columns[recipe.column(name)] = pa.array(ids(rows))
    for task in recipe.tasks.values():
        columns[task.label] = pa.array(draw.integers(0, 2, rows).astype(np.int8))
    if recipe.evaluate.group_by:
        columns.setdefault(recipe.evaluate.group_by, pa.array(ids(rows)))
    (folder / "train").mkdir()
    pq.write_table(pa.table(columns), folder / "train" / "part-0.parquet", row_group_size=group, compression="zstd")


def bare(source: Source, columns: list[str], batch_size: int, rows: int, threads: bool) -> tuple[int, int]:
    """Read with ParquetFile.iter_batches; return rows and bytes."""
    seen = size = 0
    for path in dict.fromkeys(group.path for group in source.groups):
        with source.filesystem.open_input_file(path) as handle:
            file = pq.ParquetFile(handle)
            for batch in file.iter_batches(batch_size, columns=columns, use_threads=threads):
                seen, size = seen + batch.num_rows, size + batch.nbytes
                if seen >= rows:
                    return seen, size
    return seen, size


def read(reader: Reader, steps: int) -> int:
    """Take a rank's batches; return the rows that are no padding."""
    return sum(int((batch.rows >= 0).sum()) for batch in reader.batches(0, stop=steps))


def best(repeat: int, work: Callable[[], int]) -> tuple[float, float]:
    """Return the best rows/s of some runs, and the processor seconds over wall seconds of that run."""
    found = []
    for _ in range(repeat):
        start, busy = time.perf_counter(), time.process_time()
        rows = work()
        wall = time.perf_counter() - start
        found.append((rows / wall, (time.process_time() - busy) / wall))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--rows", type=int, default=500_000, help="rows generated, or read at most")
    parser.add_argument("--data", help="prepared data; generated if left out")
    parser.add_argument("--row-group", type=int, default=2048, help="rows of a generated row group")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--world", type=int, default=1, help="measure rank 0 of this many workers")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(given.recipe, [f"data.path={given.data or folder}", "cluster.device=cpu"])
        if not given.data:
            generate(recipe, Path(folder), given.rows, given.row_group)
        report(recipe, given)


def report(recipe: Recipe, given: argparse.Namespace) -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    source = Source.open(recipe, "train")
    first = Reader(source, recipe, rank=0, world=given.world, shuffle=True)
    steps = min(first.steps, -(-given.rows // recipe.data.batch_size))
    columns = first.columns
    rows, size = bare(source, columns, recipe.data.batch_size, given.rows, False)
    table = Table(
        title=f"{rows:,} rows, {len(columns)} columns, {size / rows:.0f} bytes a row, {recipe.data.shards} shards"
    )
    for title in ("who", "rows/s", "GB/s", "of bare", "processors", "ms a batch"):
        table.add_column(title, justify="left" if title == "who" else "right")
    peers = {False: "iter_batches, 1 thread", True: "iter_batches, all threads"}
    alone = 0.0
    for threads, name in peers.items():
        rate, busy = best(
            given.repeat, lambda t=threads: bare(source, columns, recipe.data.batch_size, given.rows, t)[0]
        )
        alone = alone or rate
        add(table, name, rate, busy, alone, size / rows, recipe.data.batch_size)
    for threads in given.threads:
        changed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"threads": threads})})
        for shuffle in (True, False):
            reader = Reader(source, changed, rank=0, world=given.world, shuffle=shuffle)
            rate, busy = best(given.repeat, lambda r=reader: read(r, steps))
            name = f"Reader, {threads} threads{', shuffled' if shuffle else ''}"
            add(table, name, rate, busy, alone, size / rows, recipe.data.batch_size // given.world)
    console = Console(width=120)
    console.print(table)
    versions = f"pyarrow {pa.__version__}, numpy {np.__version__}, torch {torch.__version__}"
    console.print(f"{datetime.date.today()}, {os.cpu_count()} processors, {versions}, rank 0 of {given.world}")


def add(table: Table, name: str, rate: float, busy: float, alone: float, width: float, batch: int) -> None:
    cells = (
        f"{rate:,.0f}",
        f"{rate * width / 1e9:.2f}",
        f"{rate / alone:.2f}",
        f"{busy:.2f}",
        f"{1e3 * batch / rate:.2f}",
    )
    table.add_row(name, *cells)


if __name__ == "__main__":
    main()
