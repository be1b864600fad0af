"""What lies in a run's folder: its recipe, its committed checkpoints, its result and its export."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.configs.trees import read_tree
from livetrain.trainers.runtime import manifest

LOG = "metrics.jsonl"  # in a run's folder: what it says while it goes on, see runlog.py
LOCK = ".lock"  # there too, held by the process that trains it


def check(run: Path) -> None:
    """Raise BadInput where a folder is no run's, and name the runs beside it."""
    try:
        if (run / "config.yaml").exists():
            return
        if lines := sorted(run.glob("????-??-??/config.yaml")):
            raise BadInput(f"{run}: this folder holds the lines of a follower; name one of them, as {lines[-1].parent}")
        beside = [str(found.parent) for found in run.parent.glob("*/config.yaml")]
    except OSError:  # a name that no file system takes
        beside = []
    raise BadInput(f"{run}: this folder holds no run (config.yaml is missing){nearest(str(run), beside)}")


def finished(run: Path) -> dict[str, Any] | None:
    """Return the result.json of a run that was trained to its end, or None."""
    try:
        found = json.loads((run / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def exported(run: Path) -> bool:
    """Return whether a finished run has an export that was made since its end."""
    try:
        made, ended = ((run / name).stat().st_mtime_ns for name in (f"export/{manifest.MANIFEST}", "result.json"))
    except OSError:
        return False
    return made >= ended


def checkpoint(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def committed(run: Path) -> list[Path]:
    """Return the committed checkpoints of a run, oldest first."""
    return [p for p in sorted((run / "checkpoints").glob("step-*")) if manifest.read(p) is not None]


class Damaged(BadInput):
    """A checkpoint is not there, or not as its manifest says; no rank has loaded anything of it."""


def content(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest.

    Raises:
        Damaged: there is no committed checkpoint.
    """
    found = manifest.read(path)
    if found is None:
        raise Damaged(f"{path}: this checkpoint is gone, or its {manifest.MANIFEST} is")
    return found


def recipe_of(run: Path) -> Recipe:
    """Return a run's recipe: its config.yaml's or, where that file holds no keys at all, its newest checkpoint's.

    Raises:
        BadInput: the run has neither.
    """
    try:
        return load_recipe(run / "config.yaml")
    except BadInput:
        found = committed(run)
        if not found or _holds_keys(run / "config.yaml"):  # what somebody has written into it is not passed over
            raise
        return recipe_in(found[-1])


def _holds_keys(file: Path) -> bool:
    try:
        return bool(read_tree(file, "recipe", "keys")[0])
    except BadInput:
        return False


def recipe_in(path: Path) -> Recipe:
    try:
        return Recipe.model_validate(content(path)["recipe"])
    except (ValidationError, KeyError) as error:
        found = error.errors() if isinstance(error, ValidationError) else []
        plugin = next((one["ctx"]["error"] for one in found if one["loc"] == ("plugins",)), None)
        strange = "its recipe is none that this version of livetrain reads; use the version that wrote it, or another"
        raise BadInput(f"{path}/{manifest.MANIFEST}: {plugin or f'{strange} checkpoint'}") from None


LAST = "use --checkpoint last"  # what helps where there is no best checkpoint
ANOTHER = "put it back from a copy, or use another (--checkpoint best or last)"  # where one is not whole


def find_checkpoint(run: Path, which: str, mend: str = LAST) -> Path:
    """Return a run's ``best`` or ``last`` committed checkpoint.

    Args:
        run: the run folder.
        which: of its checkpoints.
        mend: what helps where the best is not there, for the message.

    Raises:
        BadInput: the folder is no run, or has no such checkpoint.
    """
    check(run)
    found = committed(run)
    if not found:
        raise BadInput(
            f"{run}/checkpoints: no committed checkpoint; let the run come to its first evaluation, or name another"
        )
    if which == "last":
        return found[-1]
    best = content(found[-1])["position"]["best_step"]
    if best is None:
        raise BadInput(f"{run}: not evaluated yet, so no checkpoint is the best; {mend}")
    path = checkpoint(run, best)
    if path not in found:
        raise BadInput(f"{path}: the best checkpoint is gone; {mend}")
    return path
