"""A bag whose embeddings are pooled where their rows lie, against the same ids as a sequence that is averaged.

    python benchmarks/bags.py --ranks 2

Both learn the same: a table of --rows rows by --dim columns, spread over the ranks by rows or whole on one of them, and
0 to --longest ids per row of a batch. Batches are made in memory, so what is timed is training steps. Bytes are those
of the tensors that rank 0 gives to collectives in a step, its own part included; most are ids and embeddings.
"""

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchrec
from torch import multiprocessing
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.trainers.train.sharding import shard

WARM = 10  # steps before the timed ones
# What is counted: function -> the place of the tensor, or of the tensors, that a rank gives.
SENT = {
    "all_to_all_single": 1,
    "all_to_all": 1,
    "all_reduce": 0,
    "reduce_scatter_tensor": 1,
    "all_gather_into_tensor": 1,
}


def recipe(kind: str, given: argparse.Namespace, sharding: str) -> Recipe:
    """Return a network on one feature of lists, `kind` bag or sequence, and one id."""
    tags = {"type": kind, "table": "tag", "max_length": given.longest}
    return Recipe.model_validate(
        {
            "data": {"path": "unused", "batch_size": given.batch, "shards": given.ranks},
            "features": {"user": {"type": "id", "table": "user"}, "tags": tags},
            "tables": {
                "user": {"rows": 10_000, "dim": given.dim, "sharding": sharding},
                "tag": {"rows": given.rows, "dim": given.dim, "sharding": sharding},
            },
            "model": {"kind": "dnn", "units": [64]},
            "tasks": {"click": {"label": "label"}},
            "cluster": {"workers": given.ranks, "device": "cpu"},
        }
    )


def batches(given: argparse.Namespace, rank: int) -> Iterator[Batch]:
    """Yield a rank's batches, the same ones for either kind."""
    size = given.batch // given.ranks
    draw = torch.Generator().manual_seed(rank)
    for _ in range(WARM + given.steps):
        lengths = torch.randint(0, given.longest + 1, (size,), generator=draw)
        ids = torch.randint(0, 2**40, (size + int(lengths.sum()),), generator=draw)
        yield Batch(
            ids=KeyedJaggedTensor(
                keys=["user", "tags"], values=ids, lengths=torch.cat([torch.ones(size, dtype=torch.long), lengths])
            ),
            dense=torch.zeros(size, 0),
            labels=torch.randint(0, 2, (size, 1), generator=draw).float(),
            weights=torch.ones(size),
            rows=torch.arange(size),
        )


def counting(counted: dict[str, int]) -> None:
    """Make collectives add the bytes that this rank gives them, by name."""

    def wrap(name: str, call: Callable, place: int) -> Callable:
        @wraps(call)
        def sent(*args: Any, **kwargs: Any) -> Any:
            value = args[place] if len(args) > place else kwargs.get("input", kwargs.get("tensor"))
            tensors = value if isinstance(value, list) else [value]
            counted[name] = counted.get(name, 0) + sum(tensor.nbytes for tensor in tensors)
            return call(*args, **kwargs)

        return sent

    for name, place in SENT.items():
        setattr(dist, name, wrap(name, getattr(dist, name), place))


def work(rank: int, given: argparse.Namespace, store: str, results: Any) -> None:
    """Train on one rank, and let rank 0 tell what it took."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=given.ranks)
    counted: dict[str, int] = {}
    counting(counted)
    for sharding in ("row_wise", "table_wise"):
        for kind in ("sequence", "bag"):
            made = recipe(kind, given, sharding)
            sharded = shard(made, torch.device("cpu"))
            sharded.module.train()
            feed = iter(list(batches(given, rank)))
            for _ in range(WARM):
                sharded.pipeline.progress(feed)
            dist.barrier()
            counted.clear()
            start, busy = time.perf_counter(), time.process_time()
            for _ in range(given.steps):
                sharded.pipeline.progress(feed)
            dist.barrier()
            taken, own = time.perf_counter() - start, time.process_time() - busy
            if rank == 0:
                sent = sum(counted.values()) / given.steps
                rows = given.batch * given.steps
                results.put((sharding, kind, rows / taken, rows / given.ranks / own, sent / 2**20))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "ranks": 2,
        "batch": 4096,
        "longest": 50,
        "dim": 32,
        "rows": 100_000,
        "steps": 40,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    results = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (given, str(Path(folder) / "store"), results), nprocs=given.ranks)
    print("| sharding | feature | rows/s | rows / processor s of a rank | MiB a step to collectives, rank 0 |")
    print("| --- | --- | --- | --- | --- |")
    for _ in range(4):
        sharding, kind, rate, own, sent = results.get()
        print(f"| {sharding} | {kind} | {rate:,.0f} | {own:,.0f} | {sent:.2f} |")
    versions = f"torch {torch.__version__}, torchrec {torchrec.__version__}"
    print(f"\n{datetime.date.today()}, {os.cpu_count()} processors, {given.ranks} gloo ranks, {versions}")


if __name__ == "__main__":
    main()
