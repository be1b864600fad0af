"""Bytes that a row of a training step moves, by what computes activation units and Dice: din_ml1m's dense part.

    pip install -e '.[kernels]'
    TRITON_INTERPRET=1 python benchmarks/kernels.py

No GPU is needed, and none is used. One process takes the dense part, forward and backward, of a batch of made-up
histories of 0 to 20 events, 10 on average, as a GPU would: plain PyTorch, and Triton's kernels in their interpreter.
Counted are

    elementwise  bytes that operators read and write, but those of matrix products, views and allocations
    products     the same of matrix products
    kernels      bytes that blocks of Triton's kernels load and store, masked entries left out: what several programs
                 read, weights of layers for instance, counts as often as it is read; a cache would serve most of these

Kernels' loads are upper bounds of what reaches memory. "launches" are operators that compute, and kernels.
"""

import argparse
import datetime
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from livetrain.configs.load import load_recipe
from livetrain.modules.layers import compiled
from livetrain.modules.model import Model
from livetrain.trainers.runtime.versions import versions

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear"}
NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}


class Counted(TorchDispatchMode):
    """Counts what PyTorch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.elementwise, self.products = 0, 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # noqa: ANN001, ANN204
        made = function(*arguments, **(options or {}))
        name = function.overloadpacket.__name__
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        if not views and name not in NOTHING:
            moved = sum(x.nbytes for x in _tensors([*arguments, *(options or {}).values(), made]))
            self.launches += 1
            if name in PRODUCTS:
                self.products += moved
            else:
                self.elementwise += moved
        return made


def _tensors(values: list) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(list(value))


@contextmanager
def interpreted() -> Iterator[dict[str, int]]:
    """Count the bytes that blocks load and store, and launches, in Triton's interpreter."""
    from triton.runtime import interpreter

    counts = {"bytes": 0, "launches": 0}
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, run = builder.create_masked_load, builder.create_masked_store, executor.__call__

    def size(pointers, mask) -> int:  # noqa: ANN001
        return int(np.count_nonzero(mask.data)) * pointers.get_element_ty().primitive_bitwidth // 8

    def counting_load(self, pointers, mask, *rest):  # noqa: ANN001, ANN202
        counts["bytes"] += size(pointers, mask)
        return load(self, pointers, mask, *rest)

    def counting_store(self, pointers, value, mask, *rest):  # noqa: ANN001, ANN202
        counts["bytes"] += size(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counting_run(self, *arguments, **options):  # noqa: ANN001, ANN202
        counts["launches"] += 1
        with torch.utils._python_dispatch._disable_current_modes():  # what the interpreter does is no operator
            return run(self, *arguments, **options)

    with (
        mock.patch.object(builder, "create_masked_load", counting_load),
        mock.patch.object(builder, "create_masked_store", counting_store),
        mock.patch.object(executor, "__call__", counting_run),
    ):
        yield counts


def measured(rows: int, way: str) -> tuple[float, float, float, int]:
    """Return KB per row, elementwise, of products and of kernels, and launches, of one step after another."""
    recipe = load_recipe("configs/recipes/din_ml1m.yaml", ["data.path=nowhere"])
    torch.manual_seed(0)
    model = Model(recipe, device="cpu")
    draw = torch.Generator().manual_seed(0)
    lengths = {name: torch.ones(rows, dtype=torch.int64) for name in recipe.features}
    events = torch.randint(0, 21, (rows,), generator=draw)
    lengths |= {"history": events, "history_rating": events}
    values = {name: torch.randn(int(n.sum()), 16, generator=draw).requires_grad_() for name, n in lengths.items()}
    if way == "plain":
        compiled.use()
    else:
        from livetrain.modules.layers.gpu.passes import Triton

        compiled.use(Triton("cpu"))
    dense, weights, labels = torch.zeros(rows, 0), torch.ones(rows), torch.rand(rows, generator=draw).round()
    for _ in range(2):  # the first one makes what is made once
        with interpreted() as kernels, Counted() as counted, torch.autocast("cpu", enabled=False):
            logits = model.dense(values, lengths, dense, weights)["label"]
            torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
    sizes = (counted.elementwise, counted.products, kernels["bytes"])
    return *(size / rows / 1000 for size in sizes), counted.launches + kernels["launches"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    rows = parser.parse_args().rows
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"
    print(f"{datetime.date.today()}, {platform.machine()}, {versions()}\n")
    print("| din_ml1m | elementwise, KB a row | kernels | products | launches |\n| --- | --- | --- | --- | --- |")
    for way in ("plain", "triton"):
        elementwise, products, kernels, launches = measured(rows, way)
        print(f"| {way} | {elementwise:.1f} | {kernels:.1f} | {products:.1f} | {launches} |")


if __name__ == "__main__":
    main()
