"""What one score of several tasks is worth: by each task's labels, beside each task's own score and their product.

    livetrain data kuairand --raw DIR --out data/kuairand
    python benchmarks/fusion.py configs/recipes/rankmixer_kuairand_fused.yaml --seeds 1 2 3

A run searches the formula's weights on the validation days when it has trained; the test days are read once, after
that. Figures are the AUC within users (GAUC), mean ± deviation over seeds; "fused less": the paired difference, in
brackets its bootstrap error over whole users. What stands in the file of results from "## Found" on is written by hand,
and is kept.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from quality import add_training, made, rule, spread, trained

from livetrain.configs.schema import FUSED, Recipe
from livetrain.modules.fusion import Fused
from livetrain.modules.metrics import binary
from livetrain.trainers.evaluate.fused import beside
from livetrain.trainers.evaluate.intervals import Bootstrap
from livetrain.trainers.export import fused_rows, fusion
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

FOUND = "## Found"
DRAWS = 200
Of = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]  # score -> task -> AUC and rows, (G,) each, of its groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fusion.md"))
    add_training(parser)
    parser.set_defaults(runs=Path("runs/fusion"))
    given = parser.parse_args()
    torch.set_num_threads(threads())
    lines = [intro(given)]
    for seed in given.seeds:
        recipe, run = trained(given.recipe, seed, given)
        weights = fusion.weights_in(run, recipe)
        assert weights is not None
        lines.append(f"- seed {seed}: {', '.join(f'{name} {value:.3g}' for name, value in weights.items())}")
    for split in ("valid", "test"):
        found = [by_group(*trained(given.recipe, seed, given), split) for seed in given.seeds]
        lines += ["", f"{split.capitalize()}:", "", *table(found)]
    kept = given.out.read_text() if given.out.exists() else ""
    text = "\n".join([*lines, ""])
    given.out.write_text(text + (f"\n{FOUND}{kept.split(FOUND, 1)[1]}" if FOUND in kept else ""))
    print(text)


def by_group(recipe: Recipe, run: Path, split: str) -> Of:
    """Return the AUC within each user of the fused score and of what it is compared with, by each task's labels."""
    weights = fusion.weights_in(run, recipe)
    assert recipe.fusion is not None
    assert weights is not None
    rows = fused_rows.predicted(run, split)
    fused = Fused(recipe.fusion, list(recipe.answered), weights)(rows.predictions)
    found: Of = {}
    for name, score in ({FUSED: fused} | beside(rows, recipe)).items():
        found[name] = {}
        for place, task in enumerate(recipe.tasks):
            runs = binary.group_runs(rows.labels[:, place], score.double().numpy(), rows.groups)
            found[name][task] = binary.group_aucs(runs)
    return found


def table(found: list[Of]) -> list[str]:
    """Return the lines of a split's table."""
    tasks = list(found[0][FUSED])
    head = f"| score | {' | '.join(f'{task} | fused less' for task in tasks)} |"
    lines = [head, rule(head)]
    for name in found[0]:
        cells = [name]
        for task in tasks:
            cells.append(spread(np.array([binary.mean(*of[name][task]) for of in found])))
            cells.append("-" if name == FUSED else lead(found, name, task))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def lead(found: list[Of], name: str, task: str) -> str:
    """Return what the fused score is ahead of another one, in the mean over seeds, with its error over users."""
    drawn = Bootstrap(DRAWS)

    def mean(times: np.ndarray | float) -> float:
        leads = []
        for of in found:
            aucs, rows = of[FUSED][task]
            leads.append(binary.mean(aucs - of[name][task][0], rows * times))
        return float(np.mean(leads))

    groups = np.arange(len(found[0][FUSED][task][0]))
    error = np.std([mean(drawn.times(groups, draw)) for draw in range(DRAWS)], ddof=1)
    return f"{mean(1.0):+.4f} ({error:.4f})"


def intro(given: argparse.Namespace) -> str:
    """Return what stands above the tables."""
    return f"""# One score of four tasks on KuaiRand-Pure

{made(versions(), given)}

The AUC within users (GAUC) by each task's labels, mean ± deviation over seeds; "fused less": what the fused score is
ahead, paired, in brackets its bootstrap error over whole users. The weights were searched on the validation days, the
test days looked at once, after that. The formula is the recipe's, `{given.recipe}`; its weights:
"""


if __name__ == "__main__":
    main()
