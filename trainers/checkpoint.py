"""Checkpoints: sharded files by torch.distributed.checkpoint, then a manifest that commits them.

    <run>/checkpoints/step-00000640/  *.distcp, .metadata, manifest.json (last)

A checkpoint holds the tables' shards, the dense part, both optimizers' state and, in its manifest, the position in the
data, the best evaluation so far, the sharding plan and the recipe. It loads on any number of ranks.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
import yaml

from configs.errors import BadInput
from configs.load import dump_recipe
from configs.schema import Recipe
from modules.model import Model
from trainers import manifest, ranks
from trainers.sharding import Sharded

log = logging.getLogger("livetrain")


def _state(sharded: Sharded) -> dict[str, Any]:
    """Return the live tensors of a sharded model, by name; loading into them loads the model."""
    state: dict[str, Any] = {"model": sharded.model.state_dict()}
    for name, optimizer in sharded.optimizers.items():
        # An optimizer without state (plain SGD) must leave no empty entry: nothing would be written for it.
        kept = {key: values for key, values in optimizer.state_dict()["state"].items() if values}
        if kept:
            state[f"optimizer_{name}"] = kept
    return state


def folder(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def save(sharded: Sharded, recipe: Recipe, run: Path, step: int, position: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` and commit it. Collective.

    Args:
        sharded: what to save.
        recipe: kept in the manifest, so that a checkpoint of another model is told apart.
        run: the run folder, on storage that every rank shares.
        step: optimizer steps done.
        position: JSON-able state of the loop (best metric, evaluations without a better one ...).

    Returns:
        The checkpoint's folder.
    """
    path = folder(run, step)
    if ranks.is_main():
        # What lies here was never committed, or is the same step of a longer run that was resumed further back.
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    ranks.barrier()
    dcp.save(_state(sharded), storage_writer=dcp.FileSystemWriter(path, sync_files=True), no_dist=ranks.world() == 1)
    names = ranks.from_main(sorted(p.name for p in path.iterdir()))
    mine = {name: manifest.digest(path / name) for name in names[ranks.rank() :: ranks.world()]}
    files = {name: entry for part in ranks.gather(mine) for name, entry in part.items()}
    if ranks.is_main():
        manifest.commit(
            path,
            files,
            step=step,
            position=position,
            workers=ranks.world(),
            plan=sharded.plan(),
            recipe=yaml.safe_load(dump_recipe(recipe)),
        )
    ranks.barrier()
    return path


def committed(run: Path) -> list[Path]:
    """Return the committed checkpoints of a run, oldest first."""
    return [p for p in sorted((run / "checkpoints").glob("step-*")) if manifest.read(p) is not None]


def prune(run: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the one of step `best`. The newest is never deleted."""
    for path in committed(run)[:-keep]:
        if best is None or path != folder(run, best):
            (path / manifest.MANIFEST).unlink()
            shutil.rmtree(path)


def load_latest(sharded: Sharded, recipe: Recipe, run: Path) -> dict[str, Any] | None:
    """Load the newest undamaged checkpoint of a run into a sharded model. Collective.

    Returns:
        Its manifest, or None where the run has none.

    Raises:
        BadInput: it belongs to another model, or to another order of the data.
    """
    for path in reversed(ranks.from_main(committed(run))):
        content = manifest.read(path)
        damaged = [d for d in ranks.gather(manifest.damage(path, content, (ranks.rank(), ranks.world()))) if d]
        if not damaged:
            load(sharded, recipe, path, resume=True)
            return content
        if ranks.is_main():
            log.warning("%s; falling back to the checkpoint before it", damaged[0])
    return None


def load(sharded: Sharded, recipe: Recipe, path: Path, resume: bool = False) -> None:
    """Load one committed checkpoint into a sharded model, in place, on any number of ranks. Collective."""
    check_same(path, recipe, resume)
    dcp.load(_state(sharded), checkpoint_id=path, no_dist=ranks.world() == 1)


def load_plain(model: Model, path: Path) -> None:
    """Load a checkpoint's tables and dense part into a plain model, in one process, without a process group."""
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=path, no_dist=True)
    model.load_state_dict(state["model"])


def check_same(path: Path, recipe: Recipe, resume: bool) -> None:
    """Raise BadInput, naming the first difference, where a checkpoint cannot be loaded under `recipe`.

    Args:
        path: the checkpoint.
        recipe: the run's recipe.
        resume: whether the position in the data is to hold too.
    """
    saved, wanted = manifest.read(path)["recipe"], yaml.safe_load(dump_recipe(recipe))
    for content in (saved, wanted):
        for table in content["tables"].values():
            del table["sharding"]
    same = ["features", "tables", "model", "tasks", "optimizers.sparse.kind", "optimizers.dense.kind"]
    if resume:
        same += ["data.path", "data.batch_size", "data.shards", "data.shuffle_window", "train.seed"]
    for key in same:
        before, now = _at(saved, key), _at(wanted, key)
        if before != now:
            where, before, now = _first_difference(key, before, now)
            raise BadInput(
                f"{path}: this checkpoint was written with {where}={before}, but the recipe says {now}; "
                "use that recipe, or another run name"
            )


def _at(content: dict[str, Any], dotted: str) -> Any:
    for part in dotted.split("."):
        content = content[part]
    return content


def _first_difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(n for n in now if n not in before)]:
            if before.get(name) != now.get(name):
                return _first_difference(f"{key}.{name}", before.get(name), now.get(name))
    return key, before, now
