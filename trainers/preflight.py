"""Everything that can be wrong with a run, asked before it starts."""

import os
from collections.abc import Callable
from pathlib import Path

from configs.errors import BadInput, nearest
from configs.schema import Recipe
from modules.model import Model
from modules.tasks import kinds
from trainers import memory, tracking
from trainers.data.checks import brief
from trainers.data.source import Source, Statistics, scan
from trainers.evaluation import RANKING
from trainers.loop import SELECTABLE, SELECTABLE_ITEMS, SELECTABLE_NUMBERS

SPLITS = ("train", "valid", "test")


def check(recipe: Recipe, progress: Callable[[str], None]) -> tuple[dict[str, Source], Statistics]:
    """Open and check a recipe's model and data; return its splits and the training split's statistics.

    Args:
        recipe: the run.
        progress: told what is being done, a line at a time.

    Raises:
        BadInput: the first thing that is wrong, with the mend.
    """
    tracking.check(recipe)
    check_select(recipe)
    memory.check(recipe, Model(recipe, device="meta", tables_device="meta"))
    progress("checking the data")
    sources = {split: Source.open(recipe, split) for split in SPLITS}
    for split in SPLITS[1:]:
        _check_groups(sources[split], recipe)
    brief.refuse_outcomes(recipe)
    statistics = {split: scan(sources[split], recipe) for split in SPLITS}
    _check_known(sources["train"], recipe, statistics["train"])
    brief.examine(recipe, sources, statistics, progress)
    return sources, statistics["train"]


def _check_groups(source: Source, recipe: Recipe) -> None:
    """Raise BadInput where a row to evaluate belongs to no group: it would count as one more user's."""
    column = recipe.evaluate.group_by
    count = source.nulls(column) if column else 0
    if count:
        raise BadInput(
            f"{source.folder}: column '{column}' is null in {count:,} rows, and evaluate.group_by needs it in every "
            "row; fill it, or leave evaluate.group_by out"
        )


def _check_known(source: Source, recipe: Recipe, statistics: Statistics) -> None:
    """Raise BadInput where a task has nothing to learn from."""
    for name, share in statistics.unknown.items():
        if share == 1:
            raise BadInput(
                f"{source.folder}: tasks.{name}.label '{recipe.tasks[name].label}' is null in every row, so nothing "
                "can be learned of it; wait until labels are known, or leave the task out"
            )


def check_select(recipe: Recipe) -> None:
    """Raise BadInput where train.select is no metric that a run will have."""
    names = selectable(recipe)
    if recipe.select() not in names:
        hint = nearest(recipe.select(), names)
        raise BadInput(f"train.select: no run of this recipe has a metric '{recipe.select()}'{hint}")


def selectable(recipe: Recipe) -> dict[str, int]:
    """Return the metrics ``<task>.<metric>`` of an evaluation that can be best: 1 where more is, -1 where less is."""
    grouped = ("gauc", "uauc")
    known = {m: sign for m, sign in SELECTABLE.items() if recipe.evaluate.group_by or m not in grouped}
    ranking = {m: sign for m, sign in known.items() if m in RANKING}
    return {
        f"{task}.{metric}": sign
        for task, kind in kinds(recipe.tasks).items()
        for metric, sign in (
            SELECTABLE_NUMBERS if kind.numeric else ranking | SELECTABLE_ITEMS if kind.retrieval else known
        ).items()
    }


def run_folder(runs: Path, name: str) -> Path:
    """Create (or find) a run's folder and prove that it can be written to.

    Raises:
        BadInput: it cannot.
    """
    run = runs / name
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe = run / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise BadInput(f"{run}: cannot write here ({error.strerror}); choose another folder with --runs") from error
    return run
