"""Bytes that a row of a training step moves, by what computes activation units and Dice: din_ml1m's dense part.

    pip install -e '.[kernels]'
    TRITON_INTERPRET=1 python benchmarks/kernels.py

No GPU is needed, and none is used. One process takes the dense part, forward and backward, of a batch of made-up
histories of 0 to 20 events, 10 on average, as a GPU would: as PyTorch writes it, and by Triton's passes. Counted are

    operators  bytes of what PyTorch's operators are given and give, views, allocations and matrix products left out
    kernels    bytes of the arrays that Triton's kernels read and write, each array once a launch, as an operator's are
    products   bytes of what matrix products are given and give
    launches   operators that compute, and kernels

Kernels are not run for that, so that what they would have computed is whatever lies there. `--blocks` runs them in
Triton's interpreter, on few rows, and counts what their blocks load and store: weights, for instance, are read by each
program, and mostly from a cache.
"""

import argparse
import datetime
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from livetrain.configs.load import load_recipe
from livetrain.modules.layers import compiled
from livetrain.modules.model import Model
from livetrain.trainers.runtime.versions import versions

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear"}
NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
FILLED = {"new_zeros", "zeros_like", "new_full", "ones_like", "new_ones", "full_like"}  # read nothing


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
            read = [] if name in FILLED else [*arguments, *(options or {}).values()]
            moved = sum(x.nbytes for x in _tensors([*read, made]))
            self.launches += 1
            if name in PRODUCTS:
                self.products += moved
            else:
                self.elementwise += moved
        return made


def _tensors(values: Any) -> list[torch.Tensor]:
    """Return the tensors of arguments or results."""
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


@contextmanager
def kernels_counted(run: bool) -> Iterator[dict[str, int]]:
    """Count what Triton's kernels are given, or if they are run what their blocks load and store; and launches."""
    from triton.runtime import interpreter

    counts = {"bytes": 0, "launches": 0}
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, execute = builder.create_masked_load, builder.create_masked_store, executor.__call__

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
        if not run:
            arrays = {x.data_ptr(): x.nbytes for x in arguments if isinstance(x, torch.Tensor)}
            twice = self.fn.__name__ == "dice_complete"  # what it completes is read and written
            counts["bytes"] += sum(arrays.values()) + (arguments[0].nbytes if twice else 0)
            return None
        with _disable_current_modes():  # what the interpreter does is no operator
            return execute(self, *arguments, **options)

    with (
        mock.patch.object(builder, "create_masked_load", counting_load),
        mock.patch.object(builder, "create_masked_store", counting_store),
        mock.patch.object(executor, "__call__", counting_run),
    ):
        yield counts


def measured(rows: int, way: str, run: bool) -> tuple[float, float, float, int]:
    """Return KB per row, of operators, kernels and products, and launches, of one step after another."""
    recipe = load_recipe("configs/recipes/din_ml1m.yaml", ["data.path=nowhere"])
    torch.manual_seed(0)
    model = Model(recipe, device="cpu")
    draw = torch.Generator().manual_seed(0)
    lengths = {name: torch.ones(rows, dtype=torch.int64) for name in recipe.features}
    events = torch.randint(0, 21, (rows,), generator=draw)
    lengths |= {"history": events, "history_rating": events}
    values = {name: torch.randn(int(n.sum()), 16, generator=draw).requires_grad_() for name, n in lengths.items()}
    if way == "PyTorch":
        compiled.use()
    else:
        from livetrain.modules.layers.gpu.passes import Triton

        compiled.use(Triton("cpu"))
    dense, weights, labels = torch.zeros(rows, 0), torch.ones(rows), torch.rand(rows, generator=draw).round()
    with kernels_counted(run) as kernels, Counted() as counted:
        logits = model.dense(values, lengths, dense, weights)["label"]
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
    sizes = (counted.elementwise, kernels["bytes"], counted.products)
    return *(size / rows / 1000 for size in sizes), counted.launches + kernels["launches"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1536)
    parser.add_argument("--blocks", action="store_true", help="run the kernels and count what their blocks move")
    arguments = parser.parse_args()
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"
    print(f"{datetime.date.today()}, {platform.machine()}, {versions()}\n")
    print("| din_ml1m, KB a row | operators | kernels | both | products | launches |\n" + "| --- " * 6 + "|")
    for way in ("PyTorch", "Triton"):
        operators, kernels, products, launches = measured(arguments.rows, way, arguments.blocks)
        both = operators + kernels
        print(f"| {way} | {operators:.1f} | {kernels:.1f} | {both:.1f} | {products:.1f} | {launches} |")


if __name__ == "__main__":
    main()
