"""What metrics of lists, slices and intervals add to an evaluation, side by side on the same made-up predictions.

    python -m benchmarks.evaluation --rows 1000000

Each figure is the processor time, the median of some runs taken in turns, of the work between scored batches and
figures, in this process and with one thread: two tasks, groups of ten rows. A whole evaluation also reads and scores
the rows, which takes as long with all of them.
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from livetrain.configs.schema import Task
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.evaluate.evaluation import Evaluation
from livetrain.trainers.evaluate.intervals import Bootstrap

WAYS: dict[str, dict[str, Any]] = {
    "AUC, GAUC, log loss": {},
    "and lists of 5, 10 and 50": {"top": [5, 10, 50]},
    "and two slices": {"top": [5, 10, 50], "slices": ["few", "half"]},
    "and 20 draws, without slices": {"top": [5, 10, 50], "bootstrap": Bootstrap(20, 1)},
}
BATCH = 4096


def columns(rows: int) -> dict[str, torch.Tensor]:
    """Return an evaluation's batches, joined: two tasks, groups of about ten rows."""
    generator = np.random.default_rng(0)
    logits = generator.normal(-1, 1, (rows, 2)).astype(np.float32)
    made = {
        "logits": logits,
        "labels": (generator.random((rows, 2)) < 1 / (1 + np.exp(-logits))).astype(np.float32),
        "weights": np.ones(rows, np.float32),
        "groups": generator.integers(0, rows // 10, rows),
        "slices": (generator.random(rows) < 0.1) + 2 * (generator.random(rows) < 0.5),
    }
    return {name: torch.from_numpy(column) for name, column in made.items()}


def seconds(data: dict[str, torch.Tensor], memory: Any, top: list[int] | None = None, **options: Any) -> float:
    """Return the processor time from the first batch to the figures."""
    tasks = kinds({name: Task(label=name) for name in ("click", "stay")}, top)
    begun = time.process_time()
    evaluation = Evaluation(tasks, memory=memory, **options)
    given = data if options.get("slices") else {name: part for name, part in data.items() if name != "slices"}
    for start in range(0, len(data["weights"]), BATCH):
        evaluation.update(**{name: part[start : start + BATCH] for name, part in given.items()})
    evaluation.compute()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/evaluation.md"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = columns(asked.rows)
    taken: dict[tuple[str, str], list[float]] = {(way, memory): [] for way in WAYS for memory in ("exact", "bounded")}
    for _ in range(asked.times):
        for (way, memory), times in taken.items():
            times.append(seconds(data, memory, **WAYS[way]))
    lines = []
    for way in WAYS:
        exact, bounded = (statistics.median(taken[way, memory]) for memory in ("exact", "bounded"))
        lines.append(f"| {way} | {exact:.2f} | {bounded:.2f} |")
    command = f"python -m benchmarks.evaluation --rows {asked.rows} --times {asked.times}"
    text = document(command, asked.rows, "\n".join(lines))
    asked.out.write_text(text, encoding="utf-8")
    print(text)


def document(command: str, rows: int, lines: str) -> str:
    return f"""# What metrics of lists, slices and intervals add to an evaluation

    {command}

{datetime.date.today()}, {os.cpu_count()}-core {platform.machine()} (AMD EPYC VM), other programs beside it, so
processor seconds, of one thread; torch {torch.__version__}, NumPy {np.__version__}. {rows:,} rows, two tasks,
groups of ten rows; from scored batches to figures.

| processor s | `memory: exact` | `memory: bounded` |
| --- | --- | --- |
{lines}
"""


if __name__ == "__main__":
    main()
