"""signature.json: what a server has to know of an exported file."""

import time
from pathlib import Path
from typing import Any

from livetrain.configs.schema import FUSED, Recipe
from livetrain.modules.model import Model, measured
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.export import fusion
from livetrain.trainers.runtime import run_folder, runlog
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import tracking

_FORMAT = 1
_TOP = {
    "top": "model.top(ids, lengths, dense, k) -> (Tensor (B, k) int64, Tensor (B, k) float32): the best items of B"
    " rows, from the features of the request, and their scores; a list that ends early goes on with the score -inf"
}


def _signature(run: Path, recipe: Recipe, path: Path, model: Model | None) -> dict[str, Any]:
    """Return what a caller has to know about the file, and where it comes from; no `model` of one that is fitted."""
    found = run_folder.content(path)
    step, ids = found["step"], found.get("ids", {})
    mean, std = dict[str, list[float]](), dict[str, list[float]]()
    finds: dict[str, Any] = _TOP if recipe.model.finds else {}
    if model is None:
        mean, std = (found["position"].get(part, {}) for part in ("mean", "std"))
    if model is not None:
        places, normalise = measured(model), model.dense.normalise
        mean, std = ({n: x[place].tolist() for n, place in places.items()} for x in (normalise.mean, normalise.std))
        towers = model.dense.network.towers
        finds = {} if towers is None else {"towers": _towers(towers.names, getattr(towers, "interests", 1))}
    return {
        "format": _FORMAT,
        "call": "model(ids: Dict[str, Tensor], lengths: Dict[str, Tensor], dense: Dict[str, Tensor])"
        " -> Dict[str, Tensor]: by feature the int64 ids of all rows one after the other, the int64 number of ids of"
        " each row, a float32 number per row, or (rows, width) of a feature with a width, and what lies beside ids; by"
        " task a float32 number per row, see tasks",
        "rank": "model.rank(ids, lengths, dense): the same for candidates of one user, whose features are given once,"
        " as one row",
        "features": {
            n: f.signature(mean.get(n, []), std.get(n, []))
            | ({"ids": ids[n]} if n in ids else {})
            | ({"beside": carried[1]} if (carried := recipe.beside(n)) else {})
            | {"columns": [*recipe.reads(n)]}  # of the samples, where a feature store finds the same
            | ({"column_unit": f.time_unit} if f.time_unit else {})
            for n, f in recipe.features.items()
        },
        "tables": {
            name: t.model_dump(include={"rows", "dim", "hash", "dtype"})
            | ({"capacity": 8 * t.buckets} if t.buckets else {})
            for name, t in recipe.tables.items()
        },
        **({"lineage": tracked["lineage"]} if (tracked := found.get(tracking.NAME)) is not None else {}),
        "hashing": "in the file; row = splitmix64(id) with the sign bit cleared, mod rows (hash: mix), or id mod rows,"
        " never negative (hash: modulo); of hash: table the row whose key is the id, or a shared one",
        "strings": "a string id is the xxh64 (seed 0) of its UTF-8 bytes, read as a signed 64-bit integer",
        "tasks": {
            name: {"label": recipe.tasks[name].label, "output": kind.output}
            for name, kind in kinds(recipe.answered).items()
        },
        **finds,
        **_fusion(run, recipe),
        "model": recipe.model.model_dump(),
        "run": recipe.name,
        "checkpoint": {"step": step, "path": path.name},
        "training": found.get("training"),  # None of an older checkpoint
        "metrics": _metrics(run, step),
        "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _fusion(run: Path, recipe: Recipe) -> dict[str, Any]:
    """Return what a caller has to know of the fused score, if the file has one."""
    weights = fusion.weights_in(run, recipe)
    if recipe.fusion is None or weights is None:
        return {}
    return {"fusion": {"name": FUSED, "score": recipe.fusion.score, "weights": weights}}


def _towers(names: dict[str, list[str]], interests: int) -> dict[str, Any]:
    several = " of user.pt (B, interests, width), and the largest of the products counts;" if interests > 1 else ""
    return {
        "call": "user.pt and item.pt (ids, lengths, dense) -> Tensor (B, width): the vectors of B rows, from the"
        f" features of their side alone;{several} the product of the two is the score",
        "interests": interests,
        **names,
    }


def _metrics(run: Path, step: int) -> dict[str, Any]:
    """Return what the run's log says of a checkpoint, as ``<split>.<task>.<metric>``."""
    found = [line for line in runlog.read(run) if line.get("kind") == "eval" and line.get("step") == step]
    apart = ("kind", "time", "step", "split")
    return {f"{line['split']}.{key}": value for line in found for key, value in line.items() if key not in apart}
