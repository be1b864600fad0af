"""What a long history costs: a training step's time and memory by its length, searched, attended to whole, and cut.

    OMP_NUM_THREADS=1 python benchmarks/long_histories.py

One history per row, every row of the same length, event and side of 16 numbers, two tasks, one thread; forward and
backward from embeddings in memory, no tables, no optimizer. Every case runs in a process of its own: memory is what the
steps added to what was there before, time the median processor time of a step. `requests`: four rows share a history.
"""

import argparse
from pathlib import Path

import torch
from farm import alone, peak, timed
from quality import made, rule

from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.models.registry import network
from livetrain.trainers.runtime.versions import versions

LENGTHS = (50, 200, 1000, 10_000)
ROWS = 32
HISTORY = [{"query": ["room"], "events": ["past"], "side": ["beside"]}]
TWIN = {"kind": "twin", "search": HISTORY, "heads": 2, "head_width": 16}
CASES = {  # config of a history's length
    "din, the whole history": lambda length: {"kind": "din", "attention": HISTORY},
    "twin, the whole history": lambda length: {**TWIN, "nearest": length},
    "twin, the nearest 50": lambda length: {**TWIN, "nearest": 50},
}
HEAD = "| model | events per row | ms per step | ms per step, requests | memory, MiB | memory, requests, MiB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/long_histories.md"))
    given = argparse.Namespace(**vars(parser.parse_args()), workers=0)
    torch.set_num_threads(1)
    lines = []
    for name in CASES:
        for length in LENGTHS:
            flat, shared = (alone(step_cost, name, length, each, given.steps) for each in (False, True))
            cells = (name, f"{length:,}", *(f"{x:,.1f}" for pair in zip(flat, shared, strict=True) for x in pair))
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    intro = f"""# Long histories: what a search costs

{made(versions(), given)}

{ROWS} rows, one history each, or four rows of each request's history. Forward and backward of the network alone.
"""
    given.out.write_text("\n".join([intro, HEAD, rule(HEAD), *lines, ""]))


def step_cost(name: str, length: int, requests: bool, steps: int) -> tuple[float, float]:
    """Return a step's median processor time in ms, and the memory that steps took at most, in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = Inputs({"user": 16, "room": 16}, {"past": 16, "beside": 16}, [])
    config = parse_model(CASES[name](length))
    model = network(config.kind)(config, inputs, {f"task{i}": Task(label="y") for i in range(2)}).train()
    histories = ROWS // 4 if requests else ROWS
    values = {"user": torch.randn(ROWS, 16), "room": torch.randn(ROWS, 16)}
    lengths = {feature: torch.ones(ROWS, dtype=torch.long) for feature in values}
    for feature in inputs.sequences:
        values[feature] = torch.randn(histories * length, 16).requires_grad_()
        lengths[feature] = torch.full((histories,), length)
    if requests:
        totals = {feature: ROWS * length for feature in inputs.sequences}
        lengths = jagged.of_requests(lengths, torch.arange(histories).repeat_interleave(4), totals)
    dense, weights = torch.zeros(ROWS, 0), torch.ones(ROWS)

    def step() -> None:
        sum(logit.sum() for logit in model(values, lengths, dense, weights).values()).backward()

    before = peak()
    took = timed(step, steps)
    return took, peak() - before


if __name__ == "__main__":
    main()
