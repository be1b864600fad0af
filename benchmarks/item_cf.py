"""Item CF on ten million drawn events: processor time and peak memory, with `implicit`'s cosine beside it.

Command: python benchmarks/item_cf.py [--events 10000000] [--users 400000] [--items 100000]

Each way runs in a process of its own on one thread. Users have from 1 to 49 items each, drawn by popularity (item r has
the weight 1 / (r + 50)); an item comes once per user. `implicit` (pip install implicit) weighs no pair by distance, so
its line stands beside the one that weighs none either.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from livetrain.configs.load import load_recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.recall.fitted import Lists, Rows

WAYS = {
    "livetrain, cosine, all pairs alike": {"weigh_users": False},
    "livetrain, cosine, .7 per step, users weighed": {"pair_step": 0.7},
    "livetrain, swing, 30 users per item": {"similarity": "swing", "item_users": 30},
    "implicit, cosine": None,
}


def drawn(events: int, users: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the user and the item of events, by user, without repetitions."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 2 * events // users, users)
    user = np.repeat(np.arange(users, dtype=np.int32), lengths)
    weight = 1 / (np.arange(items) + 50)
    item = np.searchsorted(np.cumsum(weight) / weight.sum(), draw.random(len(user))).astype(np.int32)
    once = np.unique(user.astype(np.int64) * items + item)
    order = draw.permutation(len(once))  # a user's events are in no order of the items
    user = (once[order] // items).astype(np.int32)
    order = order[np.argsort(user, kind="stable")]
    return (once[order] // items).astype(np.int32), (once[order] % items).astype(np.int32)


def chunks(user: np.ndarray, item: np.ndarray) -> Iterator[Rows]:
    """Yield a row per user, a few thousand at a time: the last item is the row's own, the others are its history."""
    begins = np.flatnonzero(np.diff(user, prepend=-1))
    ends = np.append(begins[1:], len(user))
    for start in range(0, len(begins), 8192):
        first, last = begins[start : start + 8192], ends[start : start + 8192]
        part = item[first[0] : last[-1]].astype(np.int64)
        own = np.zeros(len(part), bool)
        own[last - first[0] - 1] = True
        ids = {
            "item": Lists(part[own], np.ones(len(first), np.int64)),
            "past": Lists(part[~own], (last - first - 1).astype(np.int64)),
        }
        yield Rows(start, np.ones(len(first), bool), ids, {})


def measure(way: str, events: int, users: int, items: int) -> None:
    """Print one line of the table."""
    user, item = drawn(events, users, items)
    changes, before = WAYS[way], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if changes is None:
        from implicit.nearest_neighbours import CosineRecommender
        from scipy import sparse

        matrix = sparse.csr_matrix((np.ones(len(user)), (user, item)), shape=(users, items))
        started = time.process_time()
        model = CosineRecommender(K=101, num_threads=1)
        model.fit(matrix, show_progress=False)
        entries = model.similarity.nnz
    else:
        recipe = load_recipe(
            {
                "data": {"path": "nowhere"},
                "features": {"item": {"type": "id"}, "past": {"type": "sequence", "max_length": 50}},
                "model": {"kind": "item_cf", "key": "item", "history": "past", **changes},
                "tasks": {"click": {"label": "label", "kind": "retrieval"}},
                "cluster": {"workers": 0},
            }
        )
        own = fitted(recipe)
        assert own is not None
        started = time.process_time()
        entries = len(own.table(own.fit(chunks(user, item))).scores)
    spent, peak = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"| {way} | {len(user):,} | {spent:,.0f} | {before / 2**20:.2f} | {peak / 2**20:.2f} | {entries:,} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=400_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--way", choices=WAYS)
    asked = parser.parse_args()
    if asked.way:
        measure(asked.way, asked.events, asked.users, asked.items)
        return
    print("| way | events | processor s | GiB before | GiB at the peak | scores kept |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for way in WAYS:
        words = [sys.executable, __file__, "--way", way]
        for name in ("events", "users", "items"):
            words += [f"--{name}", str(getattr(asked, name))]
        subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
