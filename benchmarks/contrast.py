"""What the losses against all other rows of a batch cost: in blocks, and by the whole matrix of scores.

    python -m benchmarks.contrast

One rank of R: its own rows against the rows of all ranks, vectors of 32 numbers in float32, forward and backward, in
this process and with one thread. Both ways take turns, and the least processor time of each is taken. Elements are
those of the largest tensor that any operation makes, counted as they are made.
"""

import argparse
import datetime
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from livetrain.modules.layers import others

WIDTH, ROWS, RANKS = 32, 1024, (1, 4, 16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/contrast.md"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for ranks in RANKS:
        given = batch(ROWS, ROWS * ranks)
        ways: tuple[Callable[..., Tensor], ...] = (whole, others.logsumexp_of_others)
        taken: dict[Callable, list[float]] = {way: [] for way in ways}
        for _ in range(asked.times):
            for way, times in taken.items():
                times.append(seconds(way, *given))
        figures = [f"{peak(way, *given):,}" for way in ways] + [f"{min(taken[way]):.3f}" for way in ways]
        lines.append(f"| {ranks} | {ROWS * ranks:,} | " + " | ".join(figures) + " |")
    text = document("\n".join(lines))
    asked.out.write_text(text, encoding="utf-8")
    print(text)


def batch(rows: int, columns: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.nn.functional.normalize(torch.randn(n, WIDTH, generator=generator)) for n in (rows, columns))
    marks = torch.randint(columns, (columns,), generator=generator)
    return (u / 0.1).requires_grad_(), v.requires_grad_(), torch.zeros(columns), marks[:rows], marks


def whole(rows: Tensor, columns: Tensor, bias: Tensor, mark: Tensor, marks: Tensor) -> Tensor:
    """Return what `logsumexp_of_others` does, as it is written down."""
    scores = rows @ columns.t() + bias
    return scores.masked_fill(mark.unsqueeze(1) == marks, -1e30).logsumexp(1)


def seconds(way: Callable[..., Tensor], *given: Tensor) -> float:
    """Return the processor time of one forward and backward pass."""
    begun = time.process_time()
    way(*given).sum().backward()
    return time.process_time() - begun


def peak(way: Callable[..., Tensor], *given: Tensor) -> int:
    """Return how many elements the largest tensor has that a forward and backward pass make."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            self.elements = max([self.elements, *(x.numel() for x in tree_leaves(made) if isinstance(x, Tensor))])
            return made

    with Largest() as seen:
        way(*given).sum().backward()
    return seen.elements


def document(lines: str) -> str:
    return f"""# Losses against all other rows: in blocks, and by the whole matrix

    python -m benchmarks.contrast

{datetime.date.today()}, {os.cpu_count()}-core {platform.machine()} (AMD EPYC VM), other programs beside it, so
processor seconds; torch {torch.__version__}, one thread. {ROWS:,} rows of a rank against those of all, {WIDTH} numbers
a vector, forward and backward; blocks of {others.CELLS:,} scores.

| ranks | rows of all | elements of the largest tensor, whole | blocks | processor s, whole | blocks |
| --- | --- | --- | --- | --- | --- |
{lines}
"""


if __name__ == "__main__":
    main()
