"""What a training step asks a GPU to do: operators, launches, bytes, before and after the dense part is one graph.

    pip install --no-deps --target /some/folder triton==3.9.0
    PYTHONPATH=/some/folder python benchmarks/launches.py

No GPU is needed, and none is used. One rank trains the recipes of RECIPES on a CPU, on made-up batches of 768 rows, by
plain PyTorch as on a GPU. A dispatch mode counts what a step dispatches, after some others; further ranks add their
collectives, and what packs these:

    operators   all that is dispatched below autograd, without a profiler's marks
    launches    those that compute: views, allocations and questions about shapes are left out
    KB per row  bytes that the launches but those of matrix products read and write, over the rank's rows

The dense part is then compiled as on a GPU, but its graphs go to torch's own inductor with Triton's scheduling, which
fuses and writes the kernels without running them: kernels and calls of libraries (matrix products, collectives) are
those in the code that it writes, and their bytes are the scheduler's. What runs in their place is the graph by eager
PyTorch, which is not counted. The rest of the step is counted as before.

An optimizer of one call over all parameters (fused, foreach) is one launch here, and on a GPU a few. Triton itself
only has to be importable.
"""

import argparse
import datetime
import platform
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.graph import GraphLowering
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.trainers.runtime import ranks
from livetrain.trainers.runtime.process import set_up
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import compiled_dense
from livetrain.trainers.train.compiled_tasks import TasksAtOnce
from livetrain.trainers.train.gradients import combination
from livetrain.trainers.train.sharding import shard

PCGRAD = "gradients={kind: pcgrad, scope: shared}"
RECIPES = {
    "din_ml1m": ("din_ml1m", []),
    "mmoe_kuairand": ("mmoe_kuairand", []),
    "mmoe_kuairand, pcgrad": ("mmoe_kuairand", [PCGRAD]),
    "farm_kuairand": ("farm_kuairand", []),
}
ROWS = 768
WARM = 2  # steps before the one that is counted
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "linear"}
NOTHING = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "_unsafe_view",
    "resize_",
    "squeeze_",
}


class Counted(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.launches, self.bytes = 0, Counter(), 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Have a graph run while this counts; PyTorch takes none otherwise."""
        return True

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        namespace, name = function.namespace, function._schema.name.partition("::")[2]
        if namespace in ("profiler", "record_function") or "record_function" in name:
            return out
        if any(isinstance(t, FakeTensor) for t in tensors([*args, out])):  # while a graph is made
            return out
        if any(t.dtype == torch.float64 for t in tensors([*args, out])):  # a combiner's, on the host
            return out
        self.operators += 1
        viewing = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        if viewing or name in NOTHING:
            return out
        self.launches[name] += 1
        if name not in PRODUCTS:
            written = [each for each in (out if isinstance(out, tuple | list) else [out])]
            self.bytes += sum(t.nbytes for t in tensors([*args, *(kwargs or {}).values(), *written]))
        return out


def tensors(values: Any) -> list[torch.Tensor]:
    """Return the tensors of arguments or results."""
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class Hopper:
    """What inductor asks Triton's driver for, of a GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


class _Written(Exception):
    """The code of a graph is written, which is all that is wanted."""


class Scheduled:
    """A backend that has inductor write a graph's kernels for Triton, keeps count, and runs the graph without them."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []  # of each run: kernels, calls of libraries, bytes

    def __call__(self, graph: torch.fx.GraphModule, examples: list) -> Callable:
        return compile_fx(graph, examples, inner_compile=self._inner)

    def several(self) -> TasksAtOnce:
        """Return the same for runs that compare tasks."""
        return TasksAtOnce(self._inner)

    def _inner(self, graph: torch.fx.GraphModule, examples: list, **options: Any) -> Callable:
        found: list[tuple[int, int, int]] = []

        def stop(lowering: GraphLowering) -> None:
            code, _ = lowering.codegen()
            lines = [line.strip() for line in code.value.splitlines()]
            kernels = sum(".run(" in line and not line.startswith(("#", "def")) for line in lines)
            libraries = sum(
                bool(re.search(r"extern_kernels\.\w+\(|torch\.ops\.\w+\.\w+\.\w+\(", line)) for line in lines
            )
            apart = [node for node in lowering.scheduler.nodes if not node.is_extern()]
            found.append((kernels, libraries, sum(node.get_read_write_buffers_sizes() for node in apart)))
            raise _Written

        with mock.patch.object(GraphLowering, "_compile_to_module", stop), config.patch(cpu_backend="triton"):
            try:
                compile_fx_inner(graph, examples, **options)
            except Exception:
                if not found:
                    raise

        def run(given: list) -> Any:
            self.calls += found
            with _disable_current_modes():
                return graph(*given)

        run._boxed_call = True  # type: ignore[attr-defined]  # as AOTAutograd asks
        return run


def batches(recipe: Recipe, count: int) -> list[Batch]:
    """Make batches of ROWS rows: histories of 0 to max_length events, a few missing ids."""
    draw = torch.Generator().manual_seed(1)
    size, tasks = ROWS, len(recipe.tasks)
    keyed = {name: f for name, f in recipe.features.items() if f.carrier == "ids"}
    out = []
    for _ in range(count):
        shared: dict[int, torch.Tensor] = {}
        lengths, values = [], []
        of = {name: place for place, part in enumerate(recipe.model.attention) for name in part.events + part.side}
        for name, feature in keyed.items():
            if feature.form == "sequence":
                place = of.get(name, -1)
                if place not in shared:
                    shared[place] = torch.randint(0, feature.limit + 1, (size,), generator=draw)
                length = shared[place]
            else:
                length = (torch.rand(size, generator=draw) > 0.004).long()
            lengths.append(length)
            values.append(torch.randint(0, 2**40, (int(length.sum()),), generator=draw))
        out.append(
            Batch(
                KeyedJaggedTensor(keys=list(keyed), values=torch.cat(values), lengths=torch.cat(lengths)),
                torch.randn(size, len(recipe.features) - len(keyed), generator=draw),
                (torch.rand(size, tasks, generator=draw) < 0.3).float(),
                torch.ones(size),
                torch.arange(size),
            )
        )
    return out


def add_gram(gram: torch.Tensor, rows: list[torch.Tensor]) -> None:
    """Do what the combiner's function of that name does, by its operations on a GPU."""
    stacked = combination._stacked(rows).reshape(len(rows), -1).float()
    gram.addmm_(stacked, stacked.T)


def measure(name: str, compiled: bool) -> tuple[Counted, list[tuple[int, int, int]]]:
    """Train a recipe for some steps; return what the last one dispatched, and its graphs' figures."""
    recipe = load_recipe(f"configs/recipes/{RECIPES[name][0]}.yaml", ["data.path=unused", *RECIPES[name][1]])
    torch._dynamo.reset()
    with ranks.alone(cuda=False), mock.patch.object(combination, "_add_gram", add_gram):
        sharded, backend = shard(recipe, torch.device("cpu")), Scheduled()
        if compiled:
            several = backend.several() if len(recipe.tasks) > 1 and recipe.gradients.scope == "shared" else backend
            compiled_dense.enable(sharded, sys.exit, several)
        sharded.module.train()
        sharded.set_rates(1.0)
        feed = iter(batches(recipe, WARM + 4))
        for step in range(WARM + 1):
            ranks.seed_step(1, step)
            backend.calls.clear()
            with Counted() as counted:  # in each: PyTorch makes a graph anew where another mode is on
                sharded.pipeline.progress(feed)
    return counted, backend.calls


def line(name: str, compiled: bool, counted: Counted, calls: list[tuple[int, int, int]]) -> str:
    kernels, libraries, fused = (sum(column) for column in zip(*calls, strict=True)) if calls else (0, 0, 0)
    outside = sum(counted.launches.values())
    cells = [name, "graph" if compiled else "eager", *(f"{n:,}" for n in (counted.operators, outside))]
    cells += [f"{n:,}" if compiled else "" for n in (kernels, libraries)]
    cells += [f"{outside + kernels + libraries:,}", f"{(counted.bytes + fused) / 1e3 / ROWS:,.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    set_up()
    torch.set_num_threads(1)
    driver.set_active(Hopper())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument(
        "--most", type=int, default=0, help="tell so many operators that launch most outside the graphs"
    )
    given = parser.parse_args()
    print(f"Command: `python {shlex.join(sys.argv)}`, {datetime.date.today()}; {platform.machine()}; {versions()}\n")
    heads = (
        "| recipe | dense part | operators outside | launches outside | kernels of graphs | library calls of graphs |"
    )
    print(f"{heads} launches | elementwise KB per row |\n{'| --- ' * 8}|")
    for name in given.only:
        for compiled in (False, True):
            counted, calls = measure(name, compiled)
            print(line(name, compiled, counted, calls), flush=True)
            if given.most:
                print(dict(counted.launches.most_common(given.most)), calls, flush=True)


if __name__ == "__main__":
    main()
