"""A checkpoint becomes a TorchScript file that scores.

    <run>/export/  model.pt, signature.json, golden.json, manifest.json (last)

The file is the model that was evaluated: hashing, normalisation and the cut of long sequences are inside. It appears
only after it has scored held-out rows like the checkpoint.
"""

import math
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrec.fx import Tracer

from configs.errors import BadInput
from configs.load import load_recipe
from configs.schema import DenseFeature, IdFeature, Recipe, SequenceFeature
from modules.batch import Batch
from modules.model import Model
from modules.serving import Scorer
from trainers import checkpoint, manifest
from trainers.data.reader import Reader
from trainers.data.source import Source
from trainers.evaluation import Evaluation

_FORMAT = 1


def find_checkpoint(run: Path, which: str) -> Path:
    """Return a run's ``best`` or ``last`` committed checkpoint.

    Raises:
        BadInput: the folder is no run, or has no committed checkpoint.
    """
    if not (run / "config.yaml").exists():
        raise BadInput(f"{run}: no config.yaml here; name a run folder that `livetrain train` wrote, as runs/<name>")
    found = checkpoint.committed(run)
    if not found:
        raise BadInput(f"{run}/checkpoints: no committed checkpoint; the run has not reached its first evaluation")
    if which == "last":
        return found[-1]
    best = manifest.read(found[-1])["position"]["best_step"]
    path = checkpoint.folder(run, best)
    if path not in found:
        raise BadInput(f"{path}: the best checkpoint is gone; use --checkpoint last")
    return path


def plain_model(recipe: Recipe, path: Path) -> Model:
    """Return a checkpoint's model, whole, on this process's CPU, in evaluation mode."""
    checkpoint.check_same(path, recipe, resume=False)
    damaged = manifest.damage(path, manifest.read(path))
    if damaged:
        raise BadInput(f"{damaged}; use another checkpoint")
    model = Model(recipe)
    checkpoint.load_plain(model, path)
    return model.eval()


def script(model: Model, recipe: Recipe) -> torch.jit.ScriptModule:
    """Return the model as TorchScript: dicts of tensors in, probabilities by task out."""
    scorer = Scorer(model, recipe).eval()
    leaves = ["Inbox", "Columns", "IdHash", "Dense", "Probabilities"]
    graph = Tracer(leaf_modules=leaves).trace(scorer)
    return torch.jit.script(torch.fx.GraphModule(scorer, graph))


def export(run: Path, which: str = "best", out: Path | None = None) -> dict[str, Any]:
    """Export one checkpoint of a run and prove it on held-out rows.

    Args:
        run: the run folder.
        which: ``best`` or ``last``.
        out: folder to write, by default <run>/export; replaced as a whole.

    Returns:
        The signature, with the parity figures.

    Raises:
        BadInput: no such checkpoint, or the file's scores differ from the model's beyond export.tolerance: then
            nothing is written.
    """
    path = find_checkpoint(run, which)
    recipe = load_recipe(run / "config.yaml")
    model = plain_model(recipe, path)
    out = out or run / "export"
    if out.exists() and any(out.iterdir()) and manifest.read(out) is None:
        raise BadInput(f"{out}: holds something that is not an export; name an empty folder")
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        script(model, recipe).save(str(draft / "model.pt"))
        scored = torch.jit.load(str(draft / "model.pt")).eval()
        parity, golden = _prove(model, scored, recipe)
        content = _signature(recipe, path, parity)
        manifest.write_json(draft / "signature.json", content)
        manifest.write_json(draft / "golden.json", golden)
        files = {name: manifest.digest(draft / name) for name in ("model.pt", "signature.json", "golden.json")}
        manifest.commit(draft, files, format=_FORMAT)
        shutil.rmtree(out, ignore_errors=True)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return content


def inputs_of(batch: Batch, recipe: Recipe, rows: slice) -> tuple[dict, dict, dict]:
    """Return some rows of a batch as the exported file takes them: ids, lengths, dense."""
    ids, lengths, dense = {}, {}, {}
    for name, feature in recipe.features.items():
        if isinstance(feature, DenseFeature):
            dense[name] = batch.dense[rows, len(dense)].contiguous()
        else:
            jagged = batch.ids[name]
            offsets = jagged.offsets()
            lengths[name] = jagged.lengths()[rows].contiguous()
            ids[name] = jagged.values()[offsets[rows.start] : offsets[rows.stop]].contiguous()
    return ids, lengths, dense


def _prove(model: Model, scored: torch.jit.ScriptModule, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score held-out rows with the file and with the model; return the figures and the golden rows."""
    source = Source.open(recipe, "test")
    reader = Reader(source, recipe, rank=0, world=1, shuffle=False, groups=False)
    by_file, by_model = (Evaluation(list(recipe.tasks), memory="exact") for _ in range(2))
    rows, worst, golden = 0, 0.0, None
    batches = reader.batches(0)
    with torch.no_grad():
        for batch in batches:
            real = slice(0, batch.rows.shape[0])
            scores = scored(*inputs_of(batch, recipe, real))
            logits = model(batch.ids, batch.dense, None)
            found = torch.stack([scores[task] for task in recipe.tasks], dim=1)
            wanted = torch.stack([torch.sigmoid(logits[task]) for task in recipe.tasks], dim=1)
            kept = batch.weights > 0
            rows += int(kept.sum())
            worst = max(worst, float((found - wanted)[kept].abs().max()) if kept.any() else 0.0)
            by_file.update(torch.logit(found.double()).float(), batch.labels, batch.weights, None, None)
            by_model.update(torch.logit(wanted.double()).float(), batch.labels, batch.weights, None, None)
            golden = golden or _golden(batch, recipe, found)
            if rows >= recipe.export.parity_rows:
                break
    batches.close()
    if not worst <= recipe.export.tolerance:
        raise BadInput(
            f"export: the file's probabilities differ from the model's by {worst:.2e} on {rows} held-out rows, more than "
            f"export.tolerance={recipe.export.tolerance}; nothing was exported"
        )
    file_metrics, model_metrics = by_file.compute(), by_model.compute()
    aucs = {f"{t}.auc": [file_metrics[f"{t}.auc"], model_metrics[f"{t}.auc"]] for t in recipe.tasks}
    return {"rows": rows, "largest_difference": worst, "auc_of_file_and_model": aucs}, golden


def _golden(batch: Batch, recipe: Recipe, scores: torch.Tensor) -> dict[str, Any]:
    """Return the first real rows of a batch as lists, with the scores that a server must reproduce."""
    count = min(int((batch.weights > 0).sum()), recipe.export.golden_rows)
    order = torch.nonzero(batch.weights > 0).flatten()[:count]
    picked: dict[str, Any] = {"ids": {}, "lengths": {}, "dense": {}}
    dense = 0
    for name, feature in recipe.features.items():
        if isinstance(feature, DenseFeature):
            column = batch.dense[order, dense].tolist()
            picked["dense"][name] = [None if math.isnan(x) else x for x in column]
            dense += 1
        else:
            jagged = batch.ids[name].to_dense()
            lists = [jagged[i].tolist() for i in order.tolist()]
            picked["ids"][name] = [value for values in lists for value in values]
            picked["lengths"][name] = [len(values) for values in lists]
    named = {task: scores[order, number].tolist() for number, task in enumerate(recipe.tasks)}
    return {"rows": count, **picked, "scores": named, "tolerance": recipe.export.tolerance}


def _signature(recipe: Recipe, path: Path, parity: dict[str, Any]) -> dict[str, Any]:
    content = manifest.read(path)
    return {
        "format": _FORMAT,
        "call": "model(ids: Dict[str, int64 Tensor], lengths: Dict[str, int64 Tensor], dense: Dict[str, float Tensor])"
        " -> Dict[str, float Tensor] of probabilities, one a row",
        "features": {name: _feature(feature, recipe) for name, feature in recipe.features.items()},
        "tables": {n: {"rows": t.rows, "dim": t.dim, "hash": t.hash, "dtype": t.dtype} for n, t in recipe.tables.items()},
        "hashing": "row = splitmix64(id) with the sign bit cleared, mod rows (hash: mix); id mod rows (hash: modulo)",
        "strings": "a string id is the xxh64 (seed 0) of its UTF-8 bytes, read as a signed 64-bit integer",
        "tasks": {name: {"label": task.label, "output": "probability"} for name, task in recipe.tasks.items()},
        "model": recipe.model.model_dump(),
        "checkpoint": {"step": content["step"], "path": path.name},
        "training_data": recipe.data.path,
        "metrics": content["position"].get("valid"),
        "parity": parity,
        "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _feature(feature, recipe: Recipe) -> dict[str, Any]:
    if isinstance(feature, IdFeature):
        return {"type": "id", "dtype": "int64", "table": feature.table, "missing": "length 0"}
    if isinstance(feature, SequenceFeature):
        return {
            "type": "sequence",
            "dtype": "int64",
            "table": feature.table,
            "order": "newest last",
            "max_length": feature.max_length,
            "missing": "length 0",
        }
    return {"type": "dense", "dtype": "float32", "missing": "NaN"}


def versions() -> dict[str, str]:
    """Return the versions that decide what a run computes."""
    names = ["livetrain", "torch", "torchrec", "ray", "pyarrow", "numpy"]
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
