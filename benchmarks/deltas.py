"""Sizes and times of deltas: tables of a gigabyte, KuaiRand's events in the order of time, a delta per --events.

    python benchmarks/deltas.py --data data/kuairand --rows 4000000
    python benchmarks/deltas.py --count --events 100000   # ids that so many events look up, and nothing else

The recipe is din_kuairand.yaml with its tables of users, videos and authors widened to --rows, 2 x --rows and --rows
rows, trained on one worker; the ids stay KuaiRand-Pure's, or each lookup has an id of its own (--distinct): the most
that so many events can change. A base is published and a server begins to follow it; then --deltas times --events rows
are learned, a checkpoint written, a delta published and taken in. `waits` is how long nobody could score.
"""

import argparse
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from livetrain.trainers.runtime.process import set_up

set_up()

import duckdb  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402

from livetrain.configs.load import dump_recipe, load_recipe  # noqa: E402
from livetrain.configs.schema import Recipe  # noqa: E402
from livetrain.modules.batch import Batch  # noqa: E402
from livetrain.modules.model import set_statistics  # noqa: E402
from livetrain.trainers.data.read.files import split_files  # noqa: E402
from livetrain.trainers.data.read.reader import Reader  # noqa: E402
from livetrain.trainers.data.read.source import Source  # noqa: E402
from livetrain.trainers.data.read.statistics import scan  # noqa: E402
from livetrain.trainers.export import deltas, export, publish, served  # noqa: E402
from livetrain.trainers.runtime import ranks, run_folder  # noqa: E402
from livetrain.trainers.runtime.versions import versions  # noqa: E402
from livetrain.trainers.train import checkpoint, tracking  # noqa: E402
from livetrain.trainers.train.sharding import shard  # noqa: E402


def made(data: Path, rows: int) -> Recipe:
    """Return the recipe with wide tables."""
    wide = {"user": rows, "video": 2 * rows, "author": rows}
    return load_recipe(
        "configs/recipes/din_kuairand.yaml",
        [
            *(f"tables.{name}.rows={count}" for name, count in wide.items()),
            f"data.path={data}",
            "data.shuffle_window=1",
            "optimizers.schedule.decay=constant",
            "cluster.workers=1",
            "export.tables=mapped",
            "export.parity_rows=1000",
            "name=deltas",
        ],
    )


def fed(recipe: Recipe, distinct: bool) -> Iterator[Batch]:
    """Yield the training split's batches in their order."""
    reader = Reader(Source.open(recipe, "train"), recipe, rank=0, world=1, shuffle=False)
    generator = torch.Generator().manual_seed(0)
    while True:
        for batch in reader.batches(0):
            if distinct:
                values = batch.ids.values()
                values.copy_(torch.randint(-(2**62), 2**62, values.shape, generator=generator))
            yield batch


def count(recipe: Recipe, events: int) -> None:
    """Print how many ids of the wide tables the first events in the order of time look up, their lists included."""
    base = duckdb.connect()
    base.read_parquet(split_files(recipe, "train")[2]).order("timestamp").limit(events).create("rows")
    total, said = 0, []
    for table in ("user", "video", "author"):
        looked = [
            f"SELECT unnest({feature.column or name}[-{feature.max_length}:]) AS id FROM rows"
            if hasattr(feature, "max_length")
            else f"SELECT {feature.column or name} AS id FROM rows"
            for name, feature in recipe.features.items()
            if getattr(feature, "table", None) == table
        ]
        ((found,),) = base.sql(f"SELECT count(DISTINCT id) FROM ({' UNION ALL '.join(looked)})").fetchall()
        total += found
        said.append(f"{found:,} of {table}")
    print(f"{events:,} events in a row of time look up {total:,} ids: {', '.join(said)}")


@contextmanager
def timed(found: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    found[name] = time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/kuairand"))
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--deltas", type=int, default=3)
    parser.add_argument("--distinct", action="store_true")
    parser.add_argument("--count", action="store_true", help="only count the ids that --events events look up")
    asked = parser.parse_args()
    recipe = made(asked.data.resolve(), asked.rows)
    if asked.count:
        return count(recipe, asked.events)
    place = Path(tempfile.mkdtemp(prefix="deltas-"))
    run, where = place / "run", str(place / "models")
    run.mkdir()
    (run / "config.yaml").write_text(dump_recipe(recipe))
    print(f"versions: {versions()}")
    try:
        with ranks.alone(cuda=False):
            measure(recipe, run, where, asked)
    finally:
        shutil.rmtree(place)


def measure(recipe: Recipe, run: Path, where: str, asked: argparse.Namespace) -> None:
    """Print a line of figures per delta."""
    sharded = shard(recipe, torch.device("cpu"))
    tracking.track(sharded)
    statistics = scan(Source.open(recipe, "train"), recipe)
    set_statistics(sharded.model, statistics.mean, statistics.std, statistics.quantiles)
    sharded.module.train()
    feed, size = fed(recipe, asked.distinct), recipe.data.batch_size
    step = 0

    def learn(events: int) -> None:
        nonlocal step
        for _ in range(events // size):
            sharded.set_rates(1.0)
            sharded.pipeline.progress(feed)
            step += 1

    with checkpoint.Saver(sharded, recipe, run) as saver:

        def save() -> None:
            saver.save(step, {"best_step": None})
            saver.wait()

        learn(2 * size)
        save()
        found: dict[str, float] = {}
        with timed(found, "export and publish"):
            export.export(run, "last")
            pointer = publish.publish(run / "export", where, "a", 3)
        shutil.rmtree(run / "export")
        base = sum(path.stat().st_size for path in (Path(where) / pointer["folder"]).iterdir())
        with timed(found, "load"):
            server = served.Served(where)
        print(
            f"base: {base / 1e6:,.1f} MB, in {found['export and publish']:.1f} s; "
            f"a server loads it in {found['load']:.1f} s"
        )
        for _ in range(asked.deltas):
            found = {}
            with timed(found, "learn"):
                learn(asked.events)
            with timed(found, "save"):
                save()
            with timed(found, "publish"):
                pointer = deltas.publish_delta(run, where)
            alone, waits = server._gate.alone, []

            @contextmanager
            def watched(alone=alone, waits=waits) -> Iterator[None]:
                with alone():
                    start = time.perf_counter()
                    yield
                    waits.append(time.perf_counter() - start)

            server._gate.alone = watched  # type: ignore[method-assign]
            with timed(found, "refresh"):
                server.refresh()
            server._gate.alone = alone  # type: ignore[method-assign]
            last = pointer["deltas"][-1]
            folder = Path(where) / last["folder"]
            index = json.loads((folder / "delta.json").read_text())
            by_table = {name: about["shape"][0] for name, about in index["rows"].items() if about["shape"][0]}
            print(
                f"delta {last['number']}: {asked.events:,} events, {last['rows']:,} rows, "
                f"{last['bytes'] / 1e6:,.2f} MB, {last['bytes'] / base:.2%} of the base; "
                + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.items())
                + f", waits {sum(waits):.3f} s; rows by table {by_table}; {squeezed(folder, index)}",
                flush=True,
            )
    print(f"checkpoint: {sum(p.stat().st_size for p in run_folder.committed(run)[-1].iterdir()) / 1e6:,.1f} MB")


def squeezed(folder: Path, index: dict) -> str:
    """Return how small the rows' values would become by a compressor, byte by byte and by planes of bytes."""
    numbers, parts = np.fromfile(folder / "delta.bin", np.uint8), []
    for about in index["values"].values():
        parts.append(numbers[about["at"] :][: 4 * math.prod(about["shape"])].reshape(-1, 4))
    values = np.concatenate(parts)
    sizes = [pa.compress(np.ascontiguousarray(each), "zstd", asbytes=True) for each in (values, values.T)]
    return "zstd leaves of the values {:.1%}, by planes {:.1%}".format(*(len(each) / values.size for each in sizes))


if __name__ == "__main__":
    main()
