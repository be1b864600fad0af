"""What FARM's network costs: a training step's time and peak memory against history length and against padding.

    python benchmarks/farm.py

Two histories per row, as in configs/recipes/farm_simulated.yaml (width 32, two heads, one block, CGC, five tasks), in
float32, from embeddings in memory: forward and backward, no tables, no optimizer. Every case runs in its own process,
and peak memory is what the steps added to what was there before. The peer for padding is the same network on
the same batch with every row filled up to the longest, which is what a padded implementation computes.

The second part times the low-pass alone, against the FFT of each user's rows one after another; the third sets a step
of FARM beside one of DIN, in turns (`--only din` for it alone): the network on one batch, as PyTorch computes it and as
a run does, by compiled passes; and the whole step of a run, with lookups, tables and optimizers, of the recipes that
`farm_quality.py` compares, on batches that are in memory.
"""

import argparse
import datetime
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import run_steps
import torch

from livetrain.configs.load import load_recipe
from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import compiled
from livetrain.modules.layers.frequency import bins, low_pass
from livetrain.modules.models.registry import network
from livetrain.trainers.runtime import ranks
from livetrain.trainers.runtime.process import set_up
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import compiled_layers

LENGTHS = (50, 100, 200, 500, 1000)
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)  # of the rectangle of rows and longest row that is padding
LONGEST = 500  # events, where the padding varies
ROWS = 16
PAIRED = (20, 50, 100, 200)  # longest histories, beside DIN
RECIPES = {"kuairand": ("farm_kuairand", "din_kuairand_cross"), "simulated": ("farm_simulated", "din_simulated_cross")}
CUTOFFS = (3, 10, 0.1, 0.5)
DIMS = {"live": 16, "live_side": 16, "video": 16, "video_side": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", choices=["din"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/farm_speed.md"))
    given = parser.parse_args()
    set_up()  # as a run's process is
    network = {way: [alone(pair_cost, length, way, given.steps) for length in PAIRED] for way in ("written", "passes")}
    pairs = beside_din(network, {data: alone(run_cost, data, given.steps) for data in RECIPES})
    if given.only:
        print(pairs)
        return
    by_length = [alone(step_cost, [length] * ROWS, given.steps) for length in LENGTHS]
    by_share = [alone(step_cost, with_padding(share), given.steps) for share in SHARES]
    by_cutoff = [
        (longest, cutoff, *alone(filter_cost, longest, cutoff, given.steps))
        for longest in (50, 500, 1000)
        for cutoff in CUTOFFS
    ]
    text = document(by_length, by_share, by_cutoff) + pairs
    given.out.write_text(text)
    print(text)


def alone(function: Callable, *arguments):
    """Return function(*arguments), called in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def with_padding(share: float) -> list[int]:
    """Return the lengths of `ROWS` rows, one of them `LONGEST`, of whose rectangle `share` is padding."""
    rest = (LONGEST * ROWS * (1 - share) - LONGEST) / (ROWS - 1)
    spread = min(rest - 1, LONGEST - rest)  # as uneven as can be
    return [LONGEST, *(round(rest + spread * (2 * i / (ROWS - 2) - 1)) for i in range(ROWS - 1))]


def net(kind: str, **more) -> torch.nn.Module:
    """Return FARM, or another kind that attends to two histories."""
    attention = [
        {"query": ["streamer"], "events": ["live"], "side": ["live_side"]},
        {"query": ["streamer"], "events": ["video"], "side": ["video_side"]},
    ]
    inputs = Inputs({"user": 16, "streamer": 16}, DIMS, [])
    config = parse_model({"kind": kind, "attention": attention, **more})
    return network(kind)(config, inputs, {f"task{i}": Task(label="y") for i in range(5)}).train()


def farm() -> torch.nn.Module:
    return net("farm", align={"user": "user"}, positions=1000)


def step_of(model: torch.nn.Module, lengths: list[int]) -> Callable[[], None]:
    """Return a step, forward and backward, of a batch whose rows have two histories of these lengths."""
    size = len(lengths)
    values = {"user": torch.randn(size, 16), "streamer": torch.randn(size, 16)}
    counts = {name: torch.ones(size, dtype=torch.long) for name in values}
    for name, dim in DIMS.items():
        values[name], counts[name] = torch.randn(sum(lengths), dim).requires_grad_(), torch.tensor(lengths)
    dense, weights = torch.zeros(size, 0), torch.ones(size)
    return lambda: sum(logit.sum() for logit in model(values, counts, dense, weights).values()).backward()


def step_cost(lengths: list[int], steps: int) -> tuple[float, float]:
    """Return a step's median time in ms and its peak memory in MiB, both histories having these lengths."""
    torch.set_num_threads(1)
    compiled.use(compiled_layers.library())
    torch.manual_seed(0)
    step = step_of(farm(), lengths)
    before = peak()
    took = timed(step, steps)
    return took, peak() - before


def pair_cost(length: int, way: str, steps: int) -> list[tuple[float, float]]:
    """Return the times in ms of a step of FARM and of one of DIN, in turns, on 256 rows of 0 to `length` events.

    The networks are computed as they are "written", or by compiled "passes", as in a run.
    """
    torch.set_num_threads(1)
    if way == "passes":
        compiled.use(compiled_layers.library())
    lengths = torch.randint(0, length + 1, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    models = farm(), net("din")
    sides = [step_of(model, lengths) for model in models]
    return [(timed(sides[0], 1), timed(sides[1], 1)) for _ in range(2 * steps)]


def run_cost(data: str, steps: int) -> tuple[int, list[tuple[float, float]]]:
    """Return the rows of a step, and as `pair_cost` the times of whole ones, as runs on a data set make them."""
    torch.set_num_threads(1)
    calls, rows = [], 0
    with ranks.alone(cuda=False):
        for name in RECIPES[data]:
            recipe = load_recipe(Path(f"configs/recipes/{name}.yaml"), ["cluster.workers=0", "cluster.device=cpu"])
            calls.append(run_steps.steps(recipe, 6))
            rows = recipe.data.batch_size
        return rows, [(timed(calls[0], 3), timed(calls[1], 3)) for _ in range(2 * steps)]


def beside_din(network: dict[str, list], runs: dict[str, tuple[int, list]]) -> str:
    """Return the tables of FARM's step beside DIN's."""
    lines = ["", "FARM beside DIN, in turns. The network alone: 256 rows, two histories of 0 to so many events each.\n"]
    lines += ["| longest history | computed | FARM, ms | DIN, ms | FARM / DIN, median (range) |", "| --- " * 5 + "|"]
    for way, found in network.items():
        told = "as written" if way == "written" else "by compiled passes, as in a run"
        lines += [f"| {length} | {told} | {cells(pairs)} |" for length, pairs in zip(PAIRED, found, strict=True)]
    lines += ["", "The whole step of a run, batches being in memory.\n"]
    lines += ["| recipes | rows | FARM, ms | DIN, ms | FARM / DIN, median (range) |", "| --- " * 5 + "|"]
    lines += [f"| {' / '.join(RECIPES[data])} | {rows} | {cells(pairs)} |" for data, (rows, pairs) in runs.items()]
    return "\n".join([*lines, ""])


def cells(pairs: list[tuple[float, float]]) -> str:
    ratios = [one / other for one, other in pairs]
    farm_ms, din_ms = (statistics.median(side) for side in zip(*pairs, strict=True))
    return f"{farm_ms:,.1f} | {din_ms:,.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


def filter_cost(longest: int, cutoff: float, steps: int) -> tuple[float, float]:
    """Return the times in ms of the low-pass, forward and backward: ours, and an FFT per user."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest + 1, (256,), generator=generator)
    values = torch.randn(int(lengths.sum()), 32, generator=generator).requires_grad_()
    counted, low = lengths.tolist(), bins(lengths, cutoff).tolist()

    def ours() -> None:
        low_pass(values, lengths, cutoff).sum().backward()

    def by_user() -> None:
        out = []
        for part, kept in zip(values.split(counted), low, strict=True):
            spectrum = torch.fft.rfft(part, dim=0)[:kept]
            out.append(torch.fft.irfft(spectrum, n=len(part), dim=0))
        torch.cat(out).sum().backward()

    return timed(ours, steps), timed(by_user, steps)


def timed(step: Callable[[], None], steps: int) -> float:
    """Return the median processor time of a step in ms, after one that warms up."""
    step()
    times = []
    for _ in range(steps):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def peak() -> float:
    """Return this process's peak memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def document(by_length: list, by_share: list, by_cutoff: list) -> str:
    """Return the Markdown file."""
    made_with = ", ".join(map(" ".join, versions().items()))
    lines = [
        "# What FARM's network costs\n",
        f"Command: `python {' '.join(sys.argv)}`. Times are processor time of one thread, which other programs on the",
        f"machine stretch less than the clock's; its load was {os.getloadavg()[0]:.0f}.\n",
        f"{datetime.date.today()}, {os.cpu_count()}-core {platform.machine()}, one thread; {made_with}.\n",
        f"{ROWS} rows, two histories each.\n",
    ]
    lines += ["| events per history | step, ms | us per event | peak memory, MiB | KiB per event |", "| --- " * 5 + "|"]
    for length, (took, memory) in zip(LENGTHS, by_length, strict=True):
        events = 2 * ROWS * length
        each = f"{1e3 * took / events:.1f} | {memory:,.0f} | {1024 * memory / events:.1f}"
        lines.append(f"| {length:,} | {took:,.1f} | {each} |")
    full = by_share[0]
    lines += ["", f"The longest of the {ROWS} rows has {LONGEST} events; the others are shorter.\n"]
    lines += [
        "| padding a rectangle would hold | events | step, ms | of the padded step | peak memory, MiB | of the padded |"
    ]
    lines += ["| --- " * 6 + "|"]
    for share, (took, memory) in zip(SHARES, by_share, strict=True):
        events = 2 * sum(with_padding(share))
        cells = f"{took:,.1f} | {took / full[0]:.2f} | {memory:,.0f} | {memory / full[1]:.2f}"
        lines.append(f"| {share:.0%} | {events:,} | {cells} |")
    lines += ["", "The low-pass alone, forward and backward, 256 rows of 1 to so many events, 32 columns.\n"]
    lines += ["| longest row | cutoff | ours, ms | an FFT per user, ms |", "| --- " * 4 + "|"]
    for longest, cutoff, ours, by_user in by_cutoff:
        shown = f"{cutoff:.0%} of a user's frequencies" if cutoff < 1 else f"{cutoff} frequencies"
        lines.append(f"| {longest:,} | {shown} | {ours:.1f} | {by_user:.1f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
