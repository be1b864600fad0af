"""Batches from an object store behind a bad network, against the same batches from this machine's disk.

    python -m benchmarks.stores

The store is moto's S3 server in a process of its own (tests/store.py), with latency in each request and faults in some,
by turns: 503, 500, connections that end before, after and within an answer, and answers that are too short. Passes over
disk and store alternate. The rate is rows per second of this process's processor time, which other programs and waiting
do not move; of some passes the best counts. "Read over" are bytes that were fetched and are no column of the recipe.
Every pass's rows are compared with all rows of the split.
"""

import argparse
import datetime
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from pyarrow import fs

from benchmarks.reader import generate
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.distant import spans
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from tests import store

ROOT = Path(__file__).parents[1]
SCENES = ((65_536, 0.01), (4_096, 0.01), (4_096, 0.3))  # rows of a row group, share of requests with a fault
FAULTS = store.Network().faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(ROOT / "configs/recipes/din_ml1m.yaml"))
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/stores.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["NO_PROXY"] = "127.0.0.1"
    lines = []
    for group, rate in SCENES:
        with tempfile.TemporaryDirectory() as folder, served(given.latency, rate, given.seed) as uri:
            recipe = load_recipe(given.recipe, [f"data.path={folder}", "cluster.device=cpu"])
            generate(recipe, Path(folder), given.rows, group)
            for path in (Path(folder) / "train").glob("*.parquet"):  # as prepared data are
                pq.write_table(
                    pq.read_table(path), path, row_group_size=group, compression="zstd", write_page_checksum=True
                )
            lines.append(measured(recipe, Path(folder), uri, group, rate, given.passes))
            print(lines[-1], flush=True)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("livetrain", "pyarrow", "moto"))
    given.out.write_text(
        f"""# Batches from an object store

Command: `{shlex.join(["python", "-m", "benchmarks.stores", *sys.argv[1:]])}`
On {datetime.date.today()}: two-core CPU VM (AMD EPYC), shared with other programs; python {sys.version.split()[0]},
{libraries}. {given.rows:,} rows, {given.passes} passes, {1000 * given.latency:.0f} ms of latency per request.

| rows per row group | requests with a fault | rows / processor s, disk | store | ratio | requests per pass, one per row group | requests, all passes | faults | read over | rows lost | rows twice |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}
"""  # noqa: E501
    )
    print(given.out.read_text())


@contextmanager
def served(latency: float, rate: float, seed: int) -> Iterator[str]:
    """Serve a store from a process of its own and yield the URI of a folder in a bucket."""
    options = ["--latency", str(latency), "--rate", str(rate), "--seed", str(seed)]
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.store", *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()


def measured(recipe: Recipe, folder: Path, uri: str, group: int, rate: float, passes: int) -> str:
    """Return a line of the table."""
    filesystem, root = fs.FileSystem.from_uri(uri)
    for path in (folder / "train").glob("*.parquet"):
        with filesystem.open_output_stream(f"{root}/train/{path.name}") as out:
            out.write(path.read_bytes())
    far = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": uri})})
    readers = [Reader(Source.open(one, "train"), one, rank=0, world=1, shuffle=True) for one in (recipe, far)]
    store.counted(uri)
    best, counted, lost, twice, rows = [0.0, 0.0], Counter(), 0, 0, 0
    for _ in range(passes):
        for place, reader in enumerate(readers):
            busy = time.process_time()
            found = np.concatenate([batch.rows.numpy() for batch in reader.batches(0)])
            busy = time.process_time() - busy
            found = found[found >= 0]
            rows = max(rows, int(found.max()) + 1)
            seen = np.bincount(found, minlength=rows)
            best[place] = max(best[place], len(found) / busy)
            if place:
                lost, twice = lost + int((seen == 0).sum()), twice + int((seen > 1).sum())
                counted += store.counted(uri)
    least, over, needed = counts(readers[1].columns, folder)
    requests = sum(counted[method] for method in ("GET", "HEAD"))
    faults = ", ".join(f"{counted[name]} {name}" for name in FAULTS if counted[name]) or "none"
    cells = (
        *(f"{group:,}", f"{rate:.0%}", f"{best[0]:,.0f}", f"{best[1]:,.0f}", f"{best[1] / best[0]:.2f}"),
        *(f"{least:,}", f"{requests:,}", faults, f"{over / needed:.1%}", f"{lost}", f"{twice}"),
    )
    return f"| {' | '.join(cells)} |"


def counts(columns: list[str], folder: Path) -> tuple[int, int, int]:
    """Return the requests of a pass, one per row group, the bytes read over then, and those of the columns."""
    requests = over = needed = 0
    for path in (folder / "train").glob("*.parquet"):
        footer, length = pq.read_metadata(path), path.stat().st_size
        requests += 2
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            found = list(spans([group], columns, length))
            chunks = [group.column(place) for place in range(group.num_columns)]
            own = sum(c.total_compressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns)
            requests += len(found)
            needed += own
            over += sum(stop - start for start, stop in found) - own
    return requests, over, needed


if __name__ == "__main__":
    main()
