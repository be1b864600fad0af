"""How fast a rank's batches come, against reading the same columns with pyarrow and doing nothing with them.

    python benchmarks/reader.py configs/recipes/din_ml1m.yaml --rows 500000
    python benchmarks/reader.py configs/recipes/din_ml1m.yaml --data data/ml-1m-rechorus --peer

Without --data the columns are generated: ids by Zipf's law, lists of 0 to max_length ids, in row groups as `livetrain
data` writes them; --rows is what is generated. All ways take turns, --repeat passes over the whole training split each,
in one process. Rates are those of the best pass, by the clock and by processor time, which says more where other
programs run; "of bare" is the median over the rounds of a way's rate against that of the first way in the same round.
GB/s counts the columns' decoded bytes; "first batch" is the time in which the first windows of all shards are read.

--negatives N adds the reader that draws N negatives for each positive row from a catalogue of 100,000 items, uniformly,
by popularity, and without those in the row's first list; its rows are the file's and the drawn ones.

--peer adds torch-rechub's DataGenerator (benchmarks/peers.py says how to install it) on the first 100,000 rows. They
are read, padded and in memory before, which favours it; what is timed is its shuffling and its batches.
"""

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Negatives, Recipe
from livetrain.trainers.data.read import negatives
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.write import layout

IDS = 100_000
PEER_ROWS = 100_000


def generate(recipe: Recipe, folder: Path, rows: int, group: int | None, different: int = IDS) -> None:
    """Write a training split that has the recipe's columns, with ids below `different`; `group` rows per row group."""
    draw = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return draw.zipf(1.2, count).astype(np.int64) % different

    columns = {}
    drawn: dict[int, np.ndarray] = {}  # the offsets of lists by their limit: those of one history are as long
    for name, feature in recipe.features.items():
        if feature.form == "sequence":
            longest = feature.max_length
            if longest not in drawn:
                drawn[longest] = np.concatenate([[0], np.cumsum(draw.integers(0, longest + 1, rows))]).astype(np.int32)
            offsets = drawn[longest]
            columns[recipe.column(name)] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids(int(offsets[-1]))))
        elif feature.carrier == "numbers":
            columns[recipe.column(name)] = pa.array(draw.normal(size=rows).astype(np.float32))
        else:
            columns[recipe.column(name)] = pa.array(ids(rows))
    for task in recipe.tasks.values():
        columns[task.label] = pa.array(draw.integers(0, 2, rows).astype(np.int8))
    if recipe.evaluate.group_by:
        columns.setdefault(recipe.evaluate.group_by, pa.array(ids(rows)))
    (folder / "train").mkdir()
    table, path = pa.table(columns), folder / "train" / "part-0.parquet"
    if group is None:
        layout.write_part(path, table.schema, [table])
    else:
        pq.write_table(table, path, row_group_size=group, compression=layout.COMPRESSION, write_page_checksum=True)


def bare(source: Source, columns: list[str], batch_size: int, threads: bool) -> Iterator[tuple[int, int]]:
    """Read with ParquetFile.iter_batches; yield each batch's rows and bytes."""
    for path in dict.fromkeys(group.path for group in source.groups):
        with source.filesystem.open_input_file(path) as handle:
            for batch in pq.ParquetFile(handle).iter_batches(batch_size, columns=columns, use_threads=threads):
                yield batch.num_rows, batch.nbytes


def peer(source: Source, recipe: Recipe, columns: list[str]) -> Callable[[], Iterator[int]]:
    """Return a pass of torch-rechub's loader over the same columns, in one process."""
    from torch_rechub.utils.data import DataGenerator

    paths = list(dict.fromkeys(group.path for group in source.groups))
    table = pq.read_table(paths, columns=columns, filesystem=source.filesystem).slice(0, PEER_ROWS)
    labels = [task.label for task in recipe.tasks.values()]
    x = {}
    for name, feature in recipe.features.items():
        column = table[recipe.column(name)]
        if feature.form != "sequence":
            x[name] = column.to_numpy()
            continue
        lengths, ids = pc.list_value_length(column).to_numpy(), pc.list_flatten(column).to_numpy()
        kept = np.minimum(lengths, feature.max_length)
        at = np.arange(feature.max_length) + (np.cumsum(lengths) - kept)[:, None]  # of the newest ids of each row
        inside = np.arange(feature.max_length) < kept[:, None]
        x[name] = np.where(inside, ids[np.minimum(at, len(ids) - 1)], 0)
    data = DataGenerator(x, table[labels[0]].to_numpy())
    loader, _, _ = data.generate_dataloader(x_val=x, y_val=[0], x_test=x, y_test=[0], batch_size=recipe.data.batch_size)
    return lambda: (len(labels) for _, labels in loader)


def draws(recipe: Recipe, each: int) -> Iterator[tuple[str, Reader]]:
    """Yield readers that draw negatives, and what they do. The first id feature of more than 1,000 rows is the item."""
    drawn = np.random.default_rng(0).zipf(1.2, IDS) % 1000 + 1
    item = next(name for name, f in recipe.features.items() if f.form == "id" and recipe.tables[f.table].rows > 1000)
    lists = [recipe.column(name) for name, feature in recipe.features.items() if feature.form == "sequence"]
    with tempfile.TemporaryDirectory() as folder:
        catalogue = f"{folder}/catalogue.parquet"
        pq.write_table(pa.table({recipe.column(item): np.arange(IDS), "count": drawn}), catalogue)
        section = {"catalogue": catalogue, "item": recipe.column(item), "task": next(iter(recipe.tasks))}
        ways = {"uniform": {}, "by popularity": {"popularity": "count"}, "unseen": {"seen": lists[:1]}}
        for name, more in ways.items():
            found = Negatives(**section, per_positive=each, **more)
            changed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"negatives": found})})
            source = Source.open(changed, "train")
            negatives.count(source, changed, print)
            yield f"{each} negatives, {name}", Reader(source, changed, rank=0, world=1, shuffle=True)


@dataclass
class Rates:
    """What one pass took: rows, wall and processor seconds, and seconds to the first batch."""

    rows: int
    wall: float
    busy: float
    first: float


def take_turns(repeat: int, ways: dict[str, Callable[[], Iterator[int]]]) -> dict[str, list[Rates]]:
    """Return what each way took, round by round; a way yields the rows of each batch."""
    found: dict[str, list[Rates]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, work in ways.items():
            start, busy, first, rows = time.perf_counter(), time.process_time(), 0.0, 0
            for count in work():
                rows += count
                first = first or time.perf_counter() - start
            found[name].append(Rates(rows, time.perf_counter() - start, time.process_time() - busy, first))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--rows", type=int, default=500_000, help="rows generated")
    parser.add_argument("--data", help="prepared data; generated if left out")
    parser.add_argument("--row-group", type=int, help="rows of a generated row group")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--world", type=int, default=1, help="measure rank 0 of this many workers")
    parser.add_argument("--negatives", type=int, metavar="N", help="also with N negatives for each positive row")
    parser.add_argument("--peer", action="store_true", help="also torch-rechub's loader")
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
    source, data = Source.open(recipe, "train"), recipe.data
    columns = Reader(source, recipe, rank=0, world=given.world, shuffle=True).columns
    width = sum(size for _, size in bare(source, columns, data.batch_size, False)) / source.rows
    title = f"{source.rows:,} rows, {len(columns)} columns, {width:.0f} bytes per row, {data.shards} shards"
    ways: dict[str, Callable[[], Iterator[int]]] = {}

    def passes(reader: Reader) -> Callable[[], Iterator[int]]:
        return lambda: (int(batch.weights.sum()) for batch in reader.batches(0))

    for threads, name in ((False, "iter_batches, 1 thread"), (True, "iter_batches, all threads")):
        ways[name] = lambda t=threads: (rows for rows, _ in bare(source, columns, data.batch_size, t))
    for threads in given.threads:
        changed = recipe.model_copy(update={"data": data.model_copy(update={"threads": threads})})
        for shuffle in (True, False):
            reader = Reader(source, changed, rank=0, world=given.world, shuffle=shuffle)
            ways[f"Reader, threads {threads}, {'shuffled' if shuffle else 'file order'}"] = passes(reader)
    if given.negatives:
        for name, drawing in draws(recipe, given.negatives):
            ways[f"Reader, threads {data.threads}, {name}"] = passes(drawing)
    if given.peer:
        ways["torch-rechub DataGenerator, in memory, shuffled"] = peer(source, recipe, columns)
    table = Table("who", title=title)
    for name in ("rows/s", "GB/s", "of bare", "rows / processor s", "of bare", "first batch, s"):
        table.add_column(name, justify="right")
    found = take_turns(given.repeat, ways)
    alone = next(iter(found.values()))
    for name, rounds in found.items():
        wall, busy = max(r.rows / r.wall for r in rounds), max(r.rows / r.busy for r in rounds)
        pairs = list(zip(rounds, alone, strict=True))
        by_wall = np.median([(r.rows / r.wall) / (b.rows / b.wall) for r, b in pairs])
        by_busy = np.median([(r.rows / r.busy) / (b.rows / b.busy) for r, b in pairs])
        cells = (f"{wall:,.0f}", f"{wall * width / 1e9:.2f}", f"{by_wall:.2f}", f"{busy:,.0f}", f"{by_busy:.2f}")
        table.add_row(name, *cells, f"{min(r.first for r in rounds):.2f}")
    console = Console(width=120)
    console.print(table)
    versions = f"pyarrow {pa.__version__}, numpy {np.__version__}, torch {torch.__version__}"
    console.print(f"{datetime.date.today()}, {os.cpu_count()} processors, {versions}, rank 0 of {given.world}")


if __name__ == "__main__":
    main()
