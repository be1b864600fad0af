"""ALS on drawn events: processor time of a sweep and memory per rank, on one rank and on two, beside `implicit`.

    pip install implicit
    python benchmarks/als.py --out benchmarks/results/als.md

Users and items are drawn from long-tailed distributions. Every side is processes of one thread each, one side after the
other. A rank draws its own share of the events, so what it holds is what a run's rank would hold. Memory is the largest
resident size of a rank from the draw to the end, without what a process holds that has only imported.
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PIECE = 200_000  # events that are drawn at a time
UNOBSERVED, REGULARISATION = 0.1, 0.01


def drawn(given: argparse.Namespace) -> Iterator[tuple]:
    """Yield users and items of this rank's pieces of the events, whatever the number of ranks."""
    import numpy as np

    for piece in range(given.rank, -(-given.events // PIECE), given.world):
        draw = np.random.default_rng([0, piece])
        count = min(PIECE, given.events - piece * PIECE)
        users = (given.users * draw.random(count) ** 1.5).astype(np.int64)
        yield users, (given.items * draw.random(count) ** 3).astype(np.int64)


def ours(given: argparse.Namespace) -> dict[str, float]:
    """Fit on this rank's part of the events."""
    import numpy as np
    import torch
    import torch.distributed as dist

    from livetrain.trainers.recall import als

    torch.set_num_threads(1)
    if given.world > 1:
        dist.init_process_group("gloo", init_method=f"file://{given.store}", rank=given.rank, world_size=given.world)
    idle = peak()
    nothing = np.zeros(0, np.int64)
    parts = [torch.from_numpy(np.concatenate(part)) for part in zip((nothing, nothing), *drawn(given), strict=True)]
    sides = als.both_sides(*parts, torch.ones(len(parts[0])), given.items)
    del parts
    began, busy = time.perf_counter(), time.process_time()
    vectors = torch.empty(als.own_rows(given.items), given.dim)
    for row, vector in zip(range(given.rank, given.items, given.world), vectors, strict=True):
        vector.normal_(0, 0.1 / given.dim**0.5, generator=torch.Generator().manual_seed(row))
    for _ in range(given.sweeps):
        vectors, loss = als.sweep(*sides, vectors, als.Weighing(UNOBSERVED, REGULARISATION, 1.0))
    return {**spent(began, busy, given.sweeps), "memory": peak() - idle, "loss": loss / given.events}


def library(given: argparse.Namespace) -> dict[str, float]:
    """Fit by `implicit`, with exact solves or its own 3 steps of conjugate gradients."""
    import numpy as np
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    idle = peak()
    users, items = (np.concatenate(part) for part in zip(*drawn(given), strict=True))
    matrix = csr_matrix((np.full(len(users), 1 / UNOBSERVED, np.float32), (users, items)), (given.users, given.items))
    del users, items
    matrix.data += 1
    began, busy = time.perf_counter(), time.process_time()
    model = AlternatingLeastSquares(
        given.dim,
        regularization=REGULARISATION / UNOBSERVED,
        iterations=given.sweeps,
        use_cg=given.side == "cg",
        num_threads=1,
        random_state=0,
    )
    model.fit(matrix, show_progress=False)
    return {**spent(began, busy, given.sweeps), "memory": peak() - idle}


def peak() -> float:
    """Return the largest resident size so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def spent(began: float, busy: float, sweeps: int) -> dict[str, float]:
    """Return the seconds per sweep since two moments, of the wall clock and of processors."""
    return {"wall": (time.perf_counter() - began) / sweeps, "busy": (time.process_time() - busy) / sweeps}


def side(given: argparse.Namespace, name: str, world: int, folder: str) -> list[dict[str, float]]:
    """Return what each rank of a side measured."""
    sizes = ("events", "users", "items", "dim", "sweeps")
    settings = [part for key in sizes for part in (f"--{key}", str(getattr(given, key)))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, *settings, "--side", name, "--rank", str(rank), "--world", str(world)]
            + ["--store", f"{folder}/{name}-{world}"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(world)
    ]
    return [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in running]


SIDES = {
    "livetrain, 1 rank": ("ours", 1),
    "livetrain, 2 ranks": ("ours", 2),
    "livetrain, 4 ranks": ("ours", 4),
    "implicit, exact solves": ("cholesky", 1),
    "implicit, 3 conjugate gradients": ("cg", 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for key, value in (("events", 10_000_000), ("users", 500_000), ("items", 100_000), ("dim", 64), ("sweeps", 2)):
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    for key in ("side", "store"):
        parser.add_argument(f"--{key}", help=argparse.SUPPRESS)
    for key, value in (("rank", 0), ("world", 1)):
        parser.add_argument(f"--{key}", type=int, default=value, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps((ours if given.side == "ours" else library)(given)))
        return
    lines = [
        "| side | processor s per sweep, all ranks | largest rank's | MiB per rank | loss per event |",
        "| --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for title, (name, world) in SIDES.items():
            found = side(given, name, world, folder)
            busy, memory = [rank["busy"] for rank in found], max(rank["memory"] for rank in found)
            loss = f"{found[0]['loss']:.5f}" if "loss" in found[0] else ""
            lines.append(f"| {title} | {sum(busy):.1f} | {max(busy):.1f} | {memory:,.0f} | {loss} |")
            print(lines[-1], flush=True)
    title = (
        f"`python benchmarks/als.py`, {datetime.date.today()}: {given.events:,} events of {given.users:,} users and "
        f"{given.items:,} items, vectors of {given.dim}, mean of {given.sweeps} sweeps"
    )
    text = "\n".join([title, "", *lines]) + "\n"
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
