"""Requests against rows: bytes on disk, decoding, and rows/s of DIN, SASRec and FARM, by turns on one thread.

    OMP_NUM_THREADS=1 python benchmarks/request_layout.py

The same samples, drawn at random with CANDIDATES of each request, are written three times as livetrain writes them:
flat with the rows shuffled, flat with a request's rows one after the other, and as requests. A user has an id and two
numbers, a history of so many items with a rating of each, and a candidate has an id, a category, two numbers and two
labels. Decoding is one pass of the reader over the training split, from Parquet to batches, shuffled. A step is one of
training on batches that are in memory, forward and back, with the fused update of the tables. All figures are of
processor time, of all threads of the process; each is the best of --rounds rounds, in which the layouts take turns.
"""

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import run_steps  # noqa: E402
import torch  # noqa: E402

from livetrain.configs.schema import Recipe  # noqa: E402
from livetrain.trainers.data.read.reader import Reader  # noqa: E402
from livetrain.trainers.data.read.source import Source  # noqa: E402
from livetrain.trainers.data.write import layout  # noqa: E402
from livetrain.trainers.runtime import ranks  # noqa: E402
from livetrain.trainers.runtime.versions import versions  # noqa: E402

CANDIDATES = 8
MODELS: dict[str, dict[str, Any]] = {
    "din": {"units": [200, 80], "attention_units": [64, 16]},
    "sasrec": {"width": 32, "blocks": 2, "units": [200, 80]},
    "farm": {"width": 32, "levels": 1, "attention_units": [64, 16]},
}


def write(folder: Path, requests: int, history: int) -> None:
    """Write a training split in the three layouts."""
    draw, rows = np.random.default_rng(0), requests * CANDIDATES

    def ids(count: int, most: int) -> np.ndarray:
        return draw.zipf(1.2, count).astype(np.int64) % most

    def listed(values: np.ndarray, each: int) -> pa.Array:
        return layout.lists(np.arange(0, len(values) + 1, each), values, pa.array(values).type)

    user: dict[str, pa.Array] = {
        "user": pa.array(ids(requests, 100_000)),
        "history": listed(ids(requests * history, 100_000), history),
        "rating": listed(draw.integers(1, 6, requests * history), history),
        "age": pa.array(draw.normal(size=requests).astype(np.float32)),
        "days": pa.array(draw.normal(size=requests).astype(np.float32)),
    }
    candidate = {
        "item": ids(rows, 100_000),
        "category": ids(rows, 100),
        "price": draw.normal(size=rows).astype(np.float32),
        "score": draw.normal(size=rows).astype(np.float32),
        "click": draw.integers(0, 2, rows).astype(np.int8),
        "like": draw.integers(0, 2, rows).astype(np.int8),
    }
    once = pa.table(user | {name: listed(values, CANDIDATES) for name, values in candidate.items()})
    own = {name: pa.array(values) for name, values in candidate.items()}
    request = np.repeat(np.arange(requests), CANDIDATES)
    shuffled = draw.permutation(rows)
    for name, order in {"requests": None, "adjacent": np.arange(rows), "shuffled": shuffled}.items():
        (folder / name / "train").mkdir(parents=True)
        if order is None:
            pieces: Iterator[pa.Table] = iter([once])
            schema = once.schema
        else:
            schema = pa.schema({n: column.type for n, column in (user | own).items()})
            parts = np.array_split(order, -(-rows // 16_384))
            pieces = (
                pa.table(
                    {n: c.take(pa.array(request[part])) for n, c in user.items()}
                    | {n: c.take(pa.array(part)) for n, c in own.items()},
                    schema=schema,
                )
                for part in parts
            )
        layout.write_part(folder / name / "train" / "part.parquet", schema, pieces)


def recipe(folder: Path, name: str, model: str, history: int, batch: int) -> Recipe:
    requests = name == "requests"
    data = {"path": str(folder / name), "shards": 8, "batch_size": batch // (CANDIDATES if requests else 1)}
    data |= {"shuffle_window": 4096 // (CANDIDATES if requests else 1)}
    domain = {"query": ["item"], "events": ["history"], "side": ["rating"]}
    return Recipe.model_validate(
        {
            "data": data | ({"layout": "request", "candidates": CANDIDATES} if requests else {}),
            "features": {
                "user": {"type": "id", "table": "user"},
                "item": {"type": "id", "table": "item"},
                "category": {"type": "id", "table": "category"},
                "history": {"type": "sequence", "table": "item", "max_length": history},
                "rating": {"type": "sequence", "table": "rating", "max_length": history},
                "age": {"type": "dense"},
                "days": {"type": "dense"},
                "price": {"type": "dense"},
                "score": {"type": "dense"},
            },
            "tables": {
                "user": {"rows": 100_000, "dim": 16},
                "item": {"rows": 100_000, "dim": 16},
                "category": {"rows": 128, "dim": 16},
                "rating": {"rows": 6, "dim": 16, "hash": "modulo"},
            },
            "model": {"kind": model, "attention": [domain], **MODELS[model]},
            "tasks": {"click": {"label": "click"}, "like": {"label": "like"}},
            "cluster": {"workers": 0, "device": "cpu"},
        }
    )


def by_turns(calls: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Return the least processor seconds per row of each call, which returns how many rows it took."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            rows = call()
            best[name] = min(best[name], (time.process_time() - start) / rows)
    return best


def decoding(folder: Path, history: int, rounds: int) -> dict[str, float]:
    def reader(name: str) -> Callable[[], int]:
        made_for = recipe(folder, name, "din", history, 1536)
        made = Reader(Source.open(made_for, "train"), made_for, rank=0, world=1, shuffle=True)
        return lambda: sum(int(batch.weights.sum()) for batch in made.batches(0))

    return by_turns({name: reader(name) for name in ("shuffled", "adjacent", "requests")}, rounds)


def steps(folder: Path, model: str, history: int, batch: int, count: int, rounds: int) -> dict[str, float]:
    calls = {}
    for name in ("shuffled", "requests"):
        made_for = recipe(folder, name, model, history, batch)
        step = run_steps.steps(made_for, 4)

        def call(step: Any = step) -> int:
            return sum(int(step().count) for _ in range(count))

        call()
        calls[name] = call
    return by_turns(calls, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(MODELS), help="models")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{datetime.date.today()}, {', '.join(f'{k} {v}' for k, v in versions().items())}\n")
    with tempfile.TemporaryDirectory() as name, ranks.alone(cuda=False):
        for history, requests, batch, count in ((50, 4096, 1536, 4), (500, 1024, 192, 2)):
            folder = Path(name) / str(history)
            write(folder, requests, history)
            sizes = {path.name: sum(f.stat().st_size for f in path.rglob("*.parquet")) for path in folder.iterdir()}
            rows = requests * CANDIDATES
            for kind, size in sizes.items():
                part = size / sizes["shuffled"]
                print(f"history {history}, {kind}: {size / rows:.0f} bytes a row, {part:.3f} of shuffled", flush=True)
            found = decoding(folder, history, given.rounds)
            for kind, each in found.items():
                print(f"history {history}, {kind}: decoding {each * 1e6:.2f} us a row, {found['shuffled'] / each:.1f}x")
            for model in given.only:
                each = steps(folder, model, history, batch, count, given.rounds)
                flat, once = each["shuffled"], each["requests"]
                print(
                    f"history {history}, {model}: {1 / flat:,.0f} rows/s flat, {1 / once:,.0f} of requests, "
                    f"{flat / once:.2f}x; with decoding {(flat + found['shuffled']) / (once + found['requests']):.2f}x",
                    flush=True,
                )


if __name__ == "__main__":
    main()
