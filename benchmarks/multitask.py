"""Multi-task models and ways to combine gradients side by side: on KuaiRand, on simulated streams, under conflict.

    livetrain data kuairand --raw DIR --out data/kuairand
    python benchmarks/multitask.py kuairand --seeds 1 2 3

    for c in 0 0.5 1; do
        livetrain data simulate --users 6k --days 14 --conflict $c --out data/world-$c
        livetrain data kuailive --raw data/world-$c/kuailive --out data/conflict-$c
    done
    python benchmarks/multitask.py simulated --seeds 1 2 3
    python benchmarks/multitask.py conflict --seeds 1 2 3
    python benchmarks/multitask.py combiners --seeds 1 2 3
    python benchmarks/multitask.py rows --seeds 1 2 3

    livetrain data simulate --users 60k --days 14 --conflict 1 --out data/world-1-60k
    livetrain data kuailive --raw data/world-1-60k/kuailive --out data/conflict-1-60k
    python benchmarks/multitask.py larger --seeds 1

A run is one epoch, measured at its end; no figure of the test days is used to choose anything. Runs that are there are
read, not trained again. What stands in a file of results from "## Found" on is written by hand, and is kept.
"""

import argparse
import json
from itertools import combinations
from pathlib import Path

import noise
import numpy as np
import torch
from quality import add_training, made, rule
from quality_kuairand import HEAD, TEST, TRAIN, baselines, read
from truth import Truth
from variants import (
    ALONE,
    CGC,
    COMBINERS,
    GRADNORM,
    IN_ROWS,
    LARGE_COMBINERS,
    LARGE_SUM,
    LARGER_PCGRAD,
    LARGER_SUM,
    LONGER,
    MODELS,
    PCGRAD,
    TASKS,
    Bench,
    Variant,
    row,
)

from livetrain.trainers.runtime import runlog
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

STRENGTHS = (0, 0.5, 1)  # the worlds' --conflict; the interests behind click and like correlate with 1, 0 and -1
FOUND = "## Found"
SIMULATED_HEAD = (
    "| model | task | seeds | test AUC | test GAUC | expected AUC | way to the oracle | valid AUC | best steps |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kuairand", "simulated", "conflict", "combiners", "rows", "larger"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of kuairand/, world-*/ and conflict-*/")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    add_training(parser)
    parser.set_defaults(runs=Path("runs/multitask"))
    given = parser.parse_args()
    torch.set_num_threads(threads())
    write, name = {
        "kuairand": (kuairand, "multitask_kuairand.md"),
        "simulated": (simulated, "multitask_simulated.md"),
        "conflict": (conflict, "conflict.md"),
        "combiners": (combiners, "combiners.md"),
        "rows": (rows, "conflict_rows.md"),
        "larger": (larger, "conflict_larger.md"),
    }[given.what]
    text = "\n".join(write(given)) + "\n"
    kept = (given.out / name).read_text() if (given.out / name).exists() else ""
    (given.out / name).write_text(text + (f"\n{FOUND}{kept.split(FOUND, 1)[1]}" if FOUND in kept else ""))
    print(f"{text}\nwritten to {given.out / name}")


def single(source: str) -> list[Variant]:
    """Return the shared bottom cut to each task alone."""
    return [Variant("single task", "shared_bottom", task=task) for task in TASKS[source]]


def kuairand(given: argparse.Namespace) -> list[str]:
    """Return the lines of the file on KuaiRand."""
    bench = Bench("kuairand", given.data / "kuairand", given)
    bench.train([*MODELS, *single("kuairand")])
    test = read(bench.data, TEST)
    trees = without_embeddings(bench)
    lines = []
    for task in TASKS["kuairand"]:
        lines += trees[task]
        lines += [row(name, task, bench.of(name, task), ["-", "-"]) for name in names()]
    positives = ", ".join(f"{task} {test[task].to_numpy().sum():,}" for task in TASKS["kuairand"])
    intro = f"""# Multi-task learning on KuaiRand-Pure

{made(versions(), given)}

Mean ± deviation over seeds, on {len(test):,} rows of 05-06..05-08; positives: {positives}. Baselines learn from
04-25..05-05; recipes from 04-25..05-04 in one epoch, measured at its end, and 05-05 is their validation. "single task"
is the shared bottom cut to one task, a run per task. Histories are cut to 20 events. "error": bootstrap deviation of
the test AUC over rows and over whole users, of the baselines, and about as large for the rest.
"""
    return [intro, HEAD, rule(HEAD), *lines, "", *gradients(bench, [CGC, PCGRAD, GRADNORM])]


def without_embeddings(bench: Bench) -> dict[str, list[str]]:
    """Return the baselines' lines by task; kept beside the runs."""
    kept = bench.given.runs / bench.data.name / "baselines.json"
    if not kept.exists():
        train, test = read(bench.data, TRAIN), read(bench.data, TEST)
        found = {task: baselines(train, test, task, [1, 2, 3]) for task in TASKS["kuairand"]}
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def names() -> list[str]:
    """Return the variants' names in the order of the tables."""
    return ["single task", *(variant.name for variant in MODELS)]


def gradients(bench: Bench, variants: list[Variant]) -> list[str]:
    """Return a table of what was measured of the tasks' gradients: cosines, conflicts, weights; means over steps."""
    tasks = list(bench.of(variants[0].name, "click")[0].recipe.tasks)
    pairs = list(combinations(tasks, 2))
    head = f"| cosines, {bench.data.name} | {' | '.join(f'{a}, {b}' for a, b in pairs)} | steps in conflict | weights |"
    lines = [head, rule(head)]
    for variant in variants:
        means = [_logged(run.folder) for run in bench.of(variant.name, "click")]

        def mean(key: str, means=means) -> str:
            return f"{np.mean([found[key] for found in means]):.2f}"

        cosines = [mean(f"grad.cos.{a}.{b}") for a, b in pairs]
        weights = ", ".join(f"{task} {mean(f'grad.{task}.weight')}" for task in tasks)
        lines.append(f"| {' | '.join([variant.name, *cosines, mean('grad.conflict'), weights])} |")
    return [*lines, ""]


def _logged(folder: Path) -> dict[str, float]:
    """Return the means over a run's steps of what its log says of gradients."""
    found = [line for line in runlog.read(folder) if line.get("kind") == "train"]
    steps = np.diff([0, *(line["step"] for line in found)])
    keys = [key for key in found[0] if key.startswith("grad.")]
    return {key: float(np.average([line[key] for line in found], weights=steps)) for key in keys}


def simulated(given: argparse.Namespace) -> list[str]:
    """Return the lines of the file on simulated streams, with a conflict of 0.5."""
    bench = Bench("simulated", given.data / "conflict-0.5", given)
    bench.train([*MODELS, *single("simulated")])
    truth = truth_of(bench, given.data / "world-0.5")
    lines = []
    for task in TASKS["simulated"]:
        lines.append(truth.oracle(task))
        lines += [truth.row(name, task, bench.of(name, task)) for name in names()]
    intro = f"""# Multi-task learning on simulated live streams

{about(given, truth)}
The world has a conflict of 0.5: the interests behind click and behind like do not correlate. "single task" is the
shared bottom cut to one task, a run per task.
"""
    return [intro, SIMULATED_HEAD, rule(SIMULATED_HEAD), *lines, "", *gradients(bench, [CGC, PCGRAD, GRADNORM])]


def truth_of(bench: Bench, world: Path) -> Truth:
    """Return the truth of a bench's test rows."""
    return Truth(world, bench.of(CGC.name, "click")[0].recipe)


def about(given: argparse.Namespace, truth: Truth) -> str:
    """Return how a file on simulated streams was made, and what its columns are."""
    positives = ", ".join(f"{task} {truth.label(task).sum():,}" for task in TASKS["simulated"])
    return f"""Data: `livetrain data simulate --users 6k --days 14 --conflict C --out data/world-C`, then
`livetrain data kuailive --raw data/world-C/kuailive --out data/conflict-C`, for each C.
{made(versions(), given)}

Mean ± deviation over seeds, on {truth.rows:,} rows of the last two days; positives in {truth.name}: {positives}.
A run is one epoch, measured at its end. Expected AUC: that of the same scores with each row a positive to the extent of
its true probability, so without the noise of the labels' draw; way = (expected AUC - .5) / (the truth's - .5).
Histories are cut to 20 events.
"""


def conflict(given: argparse.Namespace) -> list[str]:
    """Return the lines of the file on planted conflict."""
    head = SIMULATED_HEAD.replace("| model | task |", "| conflict | combiner | task |").replace(
        "| valid AUC |", "| over the sum, x 1e-4 | valid AUC |"
    )
    lines, cosines = [], []
    for strength in STRENGTHS:
        bench = Bench("simulated", given.data / f"conflict-{strength}", given)
        bench.train([CGC, PCGRAD, GRADNORM])
        truth = truth_of(bench, given.data / f"world-{strength}")
        for task in TASKS["simulated"]:
            lines += [f"| {strength} {line}" for line in compared(bench, truth, task, CGC, [PCGRAD, GRADNORM])]
        cosines += gradients(bench, [CGC, PCGRAD, GRADNORM])
    intro = f"""# Conflict between tasks, planted at three strengths

{about(given, truth)}
The interests behind click and watch time correlate with those behind like and gift with 1, 0 and -1 for a conflict of
0, 0.5 and 1. "over the sum": the expected AUC less that of the plain sum with the same seed, mean ± deviation.
Cosines are means over steps: of the sum over every fifth step. sum and pcgrad measure them in all that is shared,
gradnorm at the input of the trunk. "in conflict": any two tasks' gradients point against each other.
"""
    return [intro, head, rule(head), *lines, "", *cosines]


def combiners(given: argparse.Namespace) -> list[str]:
    """Return the lines of the file on all combiners under full conflict."""
    head = SIMULATED_HEAD.replace("| valid AUC |", "| over the sum, x 1e-4 | valid AUC |")
    bench = Bench("simulated", given.data / "conflict-1", given)
    bench.train([CGC, *COMBINERS, LARGE_SUM, *LARGE_COMBINERS])
    truth = truth_of(bench, given.data / "world-1")
    lines = []
    for task in TASKS["simulated"]:
        lines += compared(bench, truth, task, CGC, COMBINERS)
        lines += compared(bench, truth, task, LARGE_SUM, LARGE_COMBINERS)[1:]
    seconds = {
        variant.name: float(np.median([run.result["wall_s"] for run in bench.of(variant.name, "click")]))
        for variant in (CGC, *COMBINERS)
    }
    costs = ["| combiner | time over the sum's |", rule("| combiner | time over the sum's |")]
    costs += [f"| {name} | {taken / seconds[CGC.name]:.2f} |" for name, taken in seconds.items()]
    intro = f"""# Every combiner under full conflict

{about(given, truth)}
The interests behind click and watch time are the opposite of those behind like and gift. Gradients are compared at the
input of the trunk; the sum measures them every fifth step, in all that is shared. "mean over steps": of the gradients'
products, with a decay of .99. "2048 rows": batches eight times as large, with rates times the square root of 8, beside
the plain sum with such batches. "over the sum": the expected AUC less that of the plain sum with the same seed.
"""
    return [
        intro,
        head,
        rule(head),
        *lines,
        "",
        "Median of a whole run's time, the seeds of all one after the other:",
        "",
        *costs,
    ]


def rows(given: argparse.Namespace) -> list[str]:
    """Return the lines of the file on PCGrad in every row of tables, under full conflict."""
    head = SIMULATED_HEAD.replace("| valid AUC |", "| over the sum, x 1e-4 | valid AUC |")
    bench = Bench("simulated", given.data / "conflict-1", given)
    bench.train([CGC, IN_ROWS, *LONGER])
    truth = truth_of(bench, given.data / "world-1")
    lines = [line for task in TASKS["simulated"] for line in compared(bench, truth, task, CGC, [IN_ROWS, *LONGER])]
    logged = [_logged(run.folder)["grad.conflict.rows"] for run in bench.of(IN_ROWS.name, "click")]
    intro = f"""# PCGrad in every row of the tables, under full conflict

{about(given, truth)}
The interests behind click and watch time are the opposite of those behind like and gift. "rows": each row of every
table gets PCGrad of the tasks' gradients of the step in that row. "mean over steps": of the products that the dense
part's weights come from. "over the sum": the expected AUC less that of the plain sum with the same seed.

Of the rows that several tasks moved in a step, two tasks' gradients conflicted in {np.mean(logged):.0%}.
"""
    return [intro, head, rule(head), *lines]


def larger(given: argparse.Namespace) -> list[str]:
    """Return the lines of the file on full conflict with ten times the data, and on what of its gradients is noise."""
    head = SIMULATED_HEAD.replace("| valid AUC |", "| over the sum, x 1e-4 | valid AUC |")
    bench = Bench("simulated", given.data / "conflict-1-60k", given)
    bench.train([LARGER_SUM, LARGER_PCGRAD, ALONE])
    truth = truth_of(bench, given.data / "world-1-60k")
    lines = []
    for task in TASKS["simulated"]:
        alone = [ALONE] if task == ALONE.task else []
        lines += compared(bench, truth, task, LARGER_SUM, [LARGER_PCGRAD, *alone])
    intro = f"""# Full conflict with ten times the data, and what of the gradients is noise

{about(given, truth).replace("6k", "60k")}
The world and the settings are those of `combiners.md` but for ten times the users, tables of ten times the rows, and
batches of 1,024 rows with twice the rates.
"one task alone": the same network, which learns that task and no other.
"""
    run = bench.of(LARGER_SUM.name, "click")[0]
    return [intro, head, rule(head), *lines, "", *noise.page(run.recipe, run.folder)]


def compared(bench: Bench, truth: Truth, task: str, plain: Variant, others: list[Variant]) -> list[str]:
    """Return a task's lines: the truth, and each combiner with its lead over the plain sum."""
    own = [truth.of_run(run)[task] for run in bench.of(plain.name, task)]
    lines = [truth.oracle(task).replace("| 100 % |", "| 100 % | - |")]
    for variant in (plain, *others):
        runs = bench.of(variant.name, task)
        lead = 1e4 * (np.array([truth.of_run(run)[task] for run in runs]) - own)
        shown = f"{round(lead.mean()):+d}" + (f" ± {lead.std(ddof=1):.0f}" if len(lead) > 1 else "")
        before, percent, after = truth.row(variant.name, task, runs).partition("%** |")
        lines.append(f"{before}{percent} {shown if variant is not plain else '-'} |{after}")
    return lines


if __name__ == "__main__":
    main()
