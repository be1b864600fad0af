"""The feature store: a night's fill, what it holds of each id, and how long the features of a request take.

    python benchmarks/online_store.py --data data/simulated-topics --recipe configs/recipes/din_simulated_topics.yaml

The data are an event log's prepared days. Each store is filled twice, as on two nights, and the second one counts,
for it also removes what was there. Then users of the last day are asked for one by one, each with rooms of that day and
their authors, at noon of the next day: `Features.row`, in Python, from the store to what `rank` takes. "In the store"
is the time of its `get` alone; two times are p50 and p99. This process's own processor time stands beside what the
clock says; Redis has its own.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis_server
from quality import made, rule

from livetrain.configs.load import load_recipe
from livetrain.trainers.data.store.fill import KEEP_DAYS, fill, read_meta
from livetrain.trainers.data.store.kv import Store, open_store
from livetrain.trainers.online.features import Features
from livetrain.trainers.runtime.versions import versions

NOON = 12 * 3_600_000
IDS = "| of each | ids | bytes |"
HEAD = (
    "| store | keys | keys/s | keys per processor s | MB of values | MB held | keys per request | ms | processor ms "
    "| ms in the store |"
)


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A redis-server that keeps nothing on disk; yields its address."""
    port = redis_server.free_port()
    process = redis_server.start(port, folder)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


class Timed:
    """A store of which the time of `get` is counted."""

    def __init__(self, store: Store) -> None:
        self._store, self.seconds, self.keys = store, 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, keys: list[str]) -> list[bytes | None]:
        begin = time.perf_counter()
        found = self._store.get(keys)
        self.seconds += time.perf_counter() - begin
        self.keys += len(keys)
        return found


def asked(data: Path, requests: int, rooms: int) -> tuple[list[int], dict[str, list[int]]]:
    """Return users of the last day, and rooms of it with their authors."""
    day = max(data.glob("date=*"))
    table = pa.concat_tables(
        [pq.read_table(path, columns=["user", "room", "streamer"]) for path in day.glob("*.parquet")]
    )
    draw = np.random.default_rng(0)
    users = draw.choice(np.unique(table["user"].to_numpy()), requests).tolist()
    pairs = np.unique(np.stack([table["room"].to_numpy(), table["streamer"].to_numpy()], 1), axis=0)
    chosen = pairs[draw.choice(len(pairs), rooms, replace=len(pairs) < rooms)]
    return users, {"room": chosen[:, 0].tolist(), "streamer": chosen[:, 1].tolist()}


def measured(place: str, size: Callable[[], int], options: argparse.Namespace) -> list[str]:
    """Return the row of a store: its fill, its bytes, its lookups."""
    store = open_store(place, create=True)
    for _ in range(2):
        begin, own = time.perf_counter(), time.process_time()
        found = fill(store, options.data, KEEP_DAYS, options.data.parent, lambda words: None)
        wall, own = time.perf_counter() - begin, time.process_time() - own
    keys, held = sum(found.keys.values()), sum(found.bytes.values())
    print(f"\n{place}\n\n{IDS}\n{rule(IDS)}")
    for kind, count in found.keys.items():
        print(f"| {kind} | {count:,} | {found.bytes[kind] / count:,.0f} |")
    users, candidates = asked(options.data, options.requests, options.rooms)
    meta = read_meta(store)
    assert meta is not None
    moment, timed = meta["horizon"] + NOON, Timed(store)
    features = Features(timed, load_recipe(options.recipe))
    for user in users[:10]:
        features.row(user, candidates, moment)
    timed.keys, took = 0, np.zeros((len(users), 3))
    for at, user in enumerate(users):
        begin, inside, processor = time.perf_counter(), timed.seconds, time.process_time()
        features.row(user, candidates, moment)
        took[at] = time.perf_counter() - begin, time.process_time() - processor, timed.seconds - inside
    total = size()
    store.close()
    times = [f"{p50:.1f} / {p99:.1f}" for p50, p99 in zip(*np.percentile(1000 * took, [50, 99], axis=0), strict=True)]
    figures = [f"{keys:,}", f"{keys / wall:,.0f}", f"{keys / own:,.0f}", f"{held / 1e6:,.1f}", f"{total / 1e6:,.1f}"]
    return [*figures, f"{timed.keys / len(users):,.0f}", *times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rooms", type=int, default=500)
    parser.set_defaults(workers=0)
    options = parser.parse_args()
    print(made(versions(), options))
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows["LMDB"] = measured(
            str(folder / "lmdb"), lambda: (folder / "lmdb/data.mdb").stat().st_blocks * 512, options
        )
        if shutil.which("redis-server"):
            from redis import Redis

            with redis(folder) as url:
                used = lambda: int(Redis.from_url(url).info("memory")["used_memory"])  # noqa: E731
                rows["Redis"] = measured(url, used, options)
    print(f"\n{HEAD}\n{rule(HEAD)}")
    for store, cells in rows.items():
        print("| " + " | ".join([store, *cells]) + " |")
    print(f"\n{options.requests} requests of {options.rooms} rooms")


if __name__ == "__main__":
    main()
