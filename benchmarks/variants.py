"""What multitask.py trains: models and ways to combine gradients, and the runs of them.

Runs that are there are read, not trained again.
"""

import argparse
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from quality import spread, trained

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe

TASKS = {  # what is learned, of a recipe's tasks
    "kuairand": ("click", "long_view", "like", "profile_enter"),
    "simulated": ("click", "effective_view", "like", "gift"),
}
# Less than half of the base recipes' history, and one evaluation per run: these runs are many.
LENGTHS = {
    "kuairand": ("video_id", "video_author", "video_action", "video_gap", "like_video", "like_author", "like_gap"),
    "simulated": ("live_streamer", "live_category", "live_action", "live_gap"),
}


@dataclass(frozen=True)
class Variant:
    """What is trained: a recipe's kind of model, changes to it, and the only task that it learns, if it is cut."""

    name: str
    model: str
    changes: tuple[str, ...] = ()
    task: str | None = None

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        return "-".join(filter(None, (*self.name.replace(",", "").split(), self.task)))


CGC = Variant("cgc, sum", "cgc", ("gradients.measure_every=5",))
PCGRAD = Variant("cgc, pcgrad shared", "cgc", ("gradients={kind: pcgrad, scope: shared}",))
# Ten times the default rate: at the default, a few hundred steps move the weights by less than a tenth.
GRADNORM = Variant("cgc, gradnorm", "cgc", ("gradients={kind: gradnorm, scope: trunk, lr: 0.25}",))
MODELS = [
    *(Variant(kind, kind) for kind in ("shared_bottom", "esmm", "mmoe")),
    CGC,
    Variant("cgc, pcgrad trunk", "cgc", ("gradients={kind: pcgrad, scope: trunk}",)),
    PCGRAD,
    GRADNORM,
    Variant("cgc, uncertainty", "cgc", ("gradients={kind: uncertainty, scope: trunk}",)),
]


# Every way to combine gradients, at the trunk's input, where measuring them costs least; and the same for noise: a mean
# over steps, and batches eight times as large with the rates of larger batches.
LARGE = ("data.batch_size=2048", "optimizers.rates_for_batch=256")
AT_TRUNK = {
    "pcgrad": "",
    "pcgrad, mean over steps": "average: 0.99",
    "upgrad": "",
    "upgrad, mean over steps": "average: 0.99",
    "cagrad": "",
    "mgda": "",
    "imtl_g": "",
    "aligned_mtl": "",
    "nash_mtl": "",
    "gradnorm": "lr: 0.25",
    "famo": "",
    "uncertainty": "",
}
COMBINERS = [
    Variant(f"cgc, {name}", "cgc", (f"gradients={{kind: {name.split(',')[0]}, scope: trunk, {keys}}}",))
    for name, keys in AT_TRUNK.items()
]
LARGE_SUM = Variant("cgc, sum, 2048 rows", "cgc", (*CGC.changes, *LARGE))
LARGE_COMBINERS = [
    Variant(f"{variant.name}, 2048 rows", "cgc", (*variant.changes, *LARGE))
    for variant in COMBINERS
    if variant.name in ("cgc, pcgrad", "cgc, pcgrad, mean over steps", "cgc, upgrad")
]


# Ten times the users of `combiners`, tables of ten times the rows, and batches four times as large with the rates of
# larger batches. Noise is measured at the sum's checkpoints. What a task reaches alone, with all of the network, bounds
# what it may gain where the others no longer disturb it.
LARGER = (
    *("tables.user.rows=655360", "tables.streamer.rows=655360", "tables.room.rows=2621440"),
    *("data.batch_size=1024", "optimizers.rates_for_batch=256"),
)
KEPT = ("gradients.measure_every=20", "train.checkpoint_every=560", "train.keep=4")
LARGER_SUM = Variant("cgc, sum", "cgc", (*KEPT, *LARGER))
(MEAN,) = (variant for variant in COMBINERS if variant.name == "cgc, pcgrad, mean over steps")
LARGER_PCGRAD = Variant(MEAN.name, "cgc", (*MEAN.changes, *LARGER))
ALONE = Variant("cgc, one task alone", "cgc", LARGER, "gift")

# PCGrad in every row of tables, which then lie whole. The dense part sees a mean over steps, for from single batches it
# loses.
TABLES = ("user", "streamer", "room", "hour", "topic", "category", "action", "gap")
IN_ROWS = Variant(
    "cgc, pcgrad rows, mean over steps",
    "cgc",
    (
        "gradients={kind: pcgrad, scope: rows, average: 0.99}",
        *(f"tables.{name}.sharding=data_parallel" for name in TABLES),
    ),
)
# What longer steps of the tables do without any comparison: a row's combined gradient is longer than the sum. And
# PCGrad with them.
LONGER = [
    Variant("cgc, sum, tables twice as fast", "cgc", (*CGC.changes, "optimizers.sparse.lr=0.04")),
    Variant("cgc, sum, tables four times as fast", "cgc", (*CGC.changes, "optimizers.sparse.lr=0.08")),
    *(
        Variant(f"{IN_ROWS.name}, tables {times} as fast", "cgc", (*IN_ROWS.changes, f"optimizers.sparse.lr={rate}"))
        for times, rate in (("twice", 0.04), ("four times", 0.08))
    ),
]


@dataclass
class Run:
    """A finished run."""

    recipe: Recipe
    folder: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """Its result.json."""
        return json.loads((self.folder / "result.json").read_text())


@dataclass
class Bench:
    """Where variants are trained: recipes <model>_<source>.yaml on the data of one folder.

    Args:
        source: kuairand or simulated.
        data: folder of the prepared data.
        given: the command line.
    """

    source: str
    data: Path
    given: argparse.Namespace
    runs: dict[tuple[str, str | None], list[Run]] = field(default_factory=dict)  # (variant, its task) -> one per seed

    def train(self, variants: list[Variant]) -> None:
        """Train variants with every seed; one seed of all of them after the other."""
        for seed in self.given.seeds:
            for variant in variants:
                recipe, folder = trained(self.path(variant.model), seed, self._given(variant))
                run = Run(recipe, folder)
                self.runs.setdefault((variant.name, variant.task), []).append(run)
                found = [run.result[f"valid.{task}.auc"] for task in TASKS[self.source] if task in recipe.tasks]
                print(self.data, variant.folder, seed, f"{run.result['wall_s']:.0f} s, valid AUC", *found, flush=True)

    def path(self, model: str) -> Path:
        """Return the recipe file of a kind of model."""
        return Path(f"configs/recipes/{model}_{self.source}.yaml")

    def _given(self, variant: Variant) -> argparse.Namespace:
        changes = [f"data.path={self.data}", "train.evaluate_every=1", *self.given.set, *variant.changes]
        changes += [f"features.{name}.max_length=20" for name in LENGTHS[self.source]]
        known = load_recipe(self.path(variant.model)).tasks
        learned = [variant.task] if variant.task else TASKS[self.source]
        tasks = {name: known[name].model_dump(exclude_defaults=True) for name in learned}
        changes.append(f"tasks={json.dumps(tasks)}")
        runs = self.given.runs / self.data.name / variant.folder
        return argparse.Namespace(**vars(self.given) | {"set": changes, "runs": runs})

    def of(self, name: str, task: str) -> list[Run]:
        """Return the runs that tell of a variant's task."""
        return self.runs.get((name, task)) or self.runs[name, None]


def row(name: str, task: str, runs: list[Run], more: list[str]) -> str:
    """Return a variant's line for a task; `more` goes between the test figures and the validation's."""

    def of(key: str) -> np.ndarray:
        return np.array([run.result[key] for run in runs], dtype=float)  # nan: a split without a positive

    cells = [name, task, len(runs), f"**{spread(of(f'test.{task}.auc'))}**", spread(of(f"test.{task}.gauc")), *more]
    cells += [spread(of(f"valid.{task}.auc")), ", ".join(f"{step:,.0f}" for step in of("best_step"))]
    return f"| {' | '.join(map(str, cells))} |"
