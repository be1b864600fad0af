"""Dice with the running statistics (model.activation: running_dice) beside exact Dice: what it costs in quality.

    python benchmarks/running_dice.py configs/recipes/din_ml1m.yaml configs/recipes/din_kuairand.yaml --seeds 1 2 3

Every recipe is trained with either activation and several seeds, each keeping the checkpoint that is best on the
validation split. Which of them to use is for the validation figures to say; the test split is read once, after that.
Runs go to --runs as <activation>/<recipe>-seed<n>, and one that is there is read, not trained again.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import add_training, made, measure, rule, spread

from livetrain.trainers.runtime.process import threads

KINDS = ("dice", "running_dice")
FIGURES = ("valid.{}.auc", "valid.{}.log_loss", "test.{}.auc", "test.{}.gauc", "test.{}.log_loss")
HEAD = (
    "| recipe | task | activation | seeds | valid AUC | valid log loss | test AUC | test GAUC | test log loss "
    "| error, rows | best steps |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/running_dice.md"))
    add_training(parser)
    parser.set_defaults(runs=Path("runs/running_dice"))
    given = parser.parse_args()
    torch.set_num_threads(threads())
    found: dict[tuple[Path, str], list[dict[str, Any]]] = {}
    for seed in given.seeds:
        for path in given.recipes:
            for kind in given.kinds:
                asked = argparse.Namespace(**vars(given))
                asked.runs, asked.set = given.runs / kind, [*given.set, f"model.activation={kind}"]
                found.setdefault((path, kind), []).append(measure(path, seed, asked))
                print(path.stem, kind, seed, {k: v for k, v in found[path, kind][-1].items() if "auc" in k}, flush=True)
    rows = [line for path in given.recipes for line in lines(path, given.kinds, found)]
    some = next(iter(found.values()))[0]
    given.out.write_text("\n".join([intro(some["versions"], given), HEAD, rule(HEAD), *rows, ""]))
    print(f"written to {given.out}")


def lines(path: Path, kinds: list[str], found: dict[tuple[Path, str], list[dict[str, Any]]]) -> list[str]:
    """Return a recipe's lines of the table: by task, one per activation."""
    some = found[path, kinds[0]][0]
    tasks = [key.split(".")[1] for key in some if key.startswith("test.") and key.endswith(".error_rows")]
    return [line(path.stem, task, kind, found[path, kind]) for task in tasks for kind in kinds]


def line(recipe: str, task: str, kind: str, results: list[dict[str, Any]]) -> str:
    """Return one line of the table."""

    def of(key: str) -> np.ndarray:
        return np.array([result[key] for result in results])

    cells = [recipe, task, kind, len(results), *(spread(of(figure.format(task))) for figure in FIGURES)]
    cells += [f"{of(f'test.{task}.error_rows').mean():.4f}", ", ".join(f"{step:,.0f}" for step in of("best_step"))]
    return f"| {' | '.join(map(str, cells))} |"


def intro(versions: dict[str, str], given: argparse.Namespace) -> str:
    """Return what stands above the table."""
    return f"""# Dice with the running statistics

{made(versions, given)}

Mean ± deviation over seeds; "error": bootstrap deviation of the test AUC over rows. A run keeps the checkpoint of the
best validation figure. Both activations give the same figures on any number of ranks, so one rank measured them.
"""


if __name__ == "__main__":
    main()
