"""Rows per second of HSTU's layers on jagged rows over the same layers on padded rows, and what memory both take.

    python benchmarks/hstu.py

Two layers of width 64, one head, with the bias of places and of times, forward and backward, on one thread. A batch has
about EVENTS places when it is padded: rows of one length, or of drawn lengths, length * u^3 with u uniform, which are a
quarter of the longest in the mean, as few users have long histories. The sides take turns; figures are medians of the
rounds, in processor time, which a machine that others use too can still tell. Before that both sides must give the same
states and gradients.

    jagged    modules/layers/hstu.py
    padded    the equations as they are usually written: rows padded to the longest of the batch, one matrix of scores
              per row and head, an index of times per pair, autograd; also in float32, without compilation
"""

import argparse
import ctypes
import datetime
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.modules.layers.hstu import HSTULayer
from livetrain.modules.layers.pointwise import clocks
from livetrain.trainers.runtime.versions import versions

LENGTHS = (50, 100, 200, 500, 1000, 2000)
WIDTH, LAYERS, EVENTS = 64, 2, 16384
Lengths = Callable[[int, int], Tensor]


def fixed(rows: int, length: int) -> Tensor:
    """Return rows of one length."""
    return torch.full((rows,), length)


def drawn(rows: int, length: int) -> Tensor:
    """Return drawn lengths; the first is the longest."""
    found = (length * torch.rand(rows, generator=torch.Generator().manual_seed(0)) ** 3).long().clamp(min=1)
    found[0] = length
    return found


def jagged(layers: nn.ModuleList, x: Tensor, lengths: Tensor, gaps: Tensor) -> Tensor:
    """Return the states of all events, (N, d)."""
    clock = clocks(gaps, lengths, True)
    for layer in layers:
        x = layer(x, lengths, clock)
    return x


def padded(layers: nn.ModuleList, x: Tensor, lengths: Tensor, gaps: Tensor) -> Tensor:
    """Return the same by padding every row to the longest one."""
    there = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # (B, T)
    size = there.size(1)
    rows = x.new_zeros(*there.shape, x.size(1)).masked_scatter(there.unsqueeze(2), x)
    asked, happened = torch.zeros(2, *there.shape, dtype=torch.long)
    asked[there], happened[there] = clocks(gaps, lengths, True).long().unbind(1)
    seconds = (asked.unsqueeze(2) - happened.unsqueeze(1)).abs().clamp(min=1)
    classes = (torch.log(seconds) / 0.301).long()  # (B, T, T)
    place = torch.arange(size)
    apart = (place.unsqueeze(1) - place).clamp(min=0)
    seen = torch.ones(size, size).tril()
    for layer in layers:
        normed = F.layer_norm(rows, [x.size(1)], eps=1e-6)
        u, v, q, k = F.silu(normed @ layer.project).chunk(4, 2)
        scores = q @ k.transpose(1, 2) + layer.by_place[apart] + layer.by_gap[classes]
        mixed = (F.silu(scores) / layer.most * seen) @ v
        rows = rows + layer.out(u * F.layer_norm(mixed, [x.size(1)], eps=1e-6))
    return rows[there]


SIDES = {"jagged": jagged, "padded": padded}


class Case:
    """A batch and the layers that read it.

    Args:
        lengths: (B,).
        longest: what attention is divided by.
    """

    def __init__(self, lengths: Tensor, longest: int) -> None:
        torch.manual_seed(0)
        self.lengths = lengths
        self.layers = nn.ModuleList(HSTULayer(WIDTH, 1, longest, 0.0, True) for _ in range(LAYERS))
        self.x = torch.randn(int(lengths.sum()), WIDTH, requires_grad=True)
        self.gaps = torch.exp(14 * torch.rand(len(self.x))).floor()
        self.upstream = torch.randn(len(self.x), WIDTH)

    def step(self, side: str) -> list[Tensor]:
        """Return the states and all gradients."""
        out = SIDES[side](self.layers, self.x, self.lengths, self.gaps)
        return [out, *torch.autograd.grad(out, [self.x, *self.layers.parameters()], self.upstream)]

    def seconds(self, side: str) -> float:
        """Return the processor time of one step."""
        start = time.process_time()
        self.step(side)
        return time.process_time() - start

    def memory(self, side: str) -> float:
        """Return by how many MB a step raises the memory of a process that does nothing else."""
        context = multiprocessing.get_context("fork")
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=self._measure, args=(side, send))
        process.start()
        found = receive.recv()
        process.join()
        return found

    def _measure(self, side: str, send) -> None:
        torch.set_num_threads(1)
        Case(fixed(2, 8), 8).step(side)  # code and buffers that every step needs
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier steps have let go
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _held("VmRSS")
        self.step(side)
        send.send((_held("VmHWM") - before) / 1024)


def _held(what: str) -> int:
    """Return the KB of memory that this process holds, or held at most."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what))


def check(case: Case) -> None:
    """Raise AssertionError unless both sides give the same, but for rounding."""
    for one, other in zip(*(case.step(side) for side in SIDES), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def measure(made: Lengths, length: int, rounds: int) -> str:
    """Return a line of the table."""
    rows = max(EVENTS // length, 8)
    case = Case(made(rows, length), length)
    check(case)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, taken in times.items():
            taken.append(case.seconds(side))
    rate = {side: rows / statistics.median(taken) for side, taken in times.items()}
    ratio = statistics.median(b / a for a, b in zip(times["jagged"], times["padded"], strict=True))
    memory = {side: case.memory(side) for side in SIDES}
    return (
        f"| {made.__name__} | {length:,} | {rows} | {len(case.x) / rows:,.0f} | {rate['jagged']:,.0f} | "
        f"{rate['padded']:,.0f} | **{ratio:.2f}** | {memory['jagged']:,.0f} | {memory['padded']:,.0f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{datetime.date.today()}; {versions()}\n")
    print("| lengths | longest | rows | events per row | jagged, rows/s | padded, rows/s | ratio | MB | MB padded |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for made in (fixed, drawn):
        for length in options.lengths:
            print(measure(made, length, options.rounds), flush=True)


if __name__ == "__main__":
    main()
