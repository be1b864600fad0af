"""A checkpoint becomes a TorchScript file that scores.

    <run>/export/  model.pt, signature.json, golden.json, manifest.json (last)

The file is the model that was evaluated: hashing, normalisation and the cut of long sequences are inside, and plain
PyTorch runs it. It computes in float32, also after training under bfloat16 autocast; a float16 table stays float16. It
appears only after it has scored held-out rows like the checkpoint.
"""

import math
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from configs.errors import BadInput, without_credentials
from configs.load import load_recipe
from configs.schema import DenseFeature, Feature, IdFeature, Recipe, SequenceFeature
from modules.batch import Batch
from modules.model import Model
from modules.serving import Scorer
from trainers import checkpoint, manifest, metrics, runlog
from trainers.data.reader import Reader
from trainers.data.source import Source

_FORMAT = 1
_FILES = ("model.pt", "signature.json", "golden.json")
_TIME = "timestamp"  # a column of this name, if the training split has it, says when its rows happened


def find_checkpoint(run: Path, which: str) -> Path:
    """Return a run's ``best`` or ``last`` committed checkpoint.

    Raises:
        BadInput: the folder is no run, or has no such checkpoint.
    """
    if not (run / "config.yaml").exists():
        raise BadInput(f"{run}: no config.yaml here; name a run folder that `livetrain train` wrote, as runs/<name>")
    found = checkpoint.committed(run)
    if not found:
        raise BadInput(f"{run}/checkpoints: no committed checkpoint; the run has not reached its first evaluation")
    if which == "last":
        return found[-1]
    best = manifest.read(found[-1])["position"]["best_step"]
    if best is None:
        raise BadInput(f"{run}: not evaluated yet, so no checkpoint is the best; use --checkpoint last")
    path = checkpoint.folder(run, best)
    if path not in found:
        raise BadInput(f"{path}: the best checkpoint is gone; use --checkpoint last")
    return path


def plain_model(recipe: Recipe, path: Path) -> Model:
    """Return a checkpoint's model, whole, on this process's CPU: float32, evaluation mode, no gradients.

    Raises:
        BadInput: the checkpoint is damaged, or another model's.
    """
    checkpoint.check_same(path, recipe, resume=False)
    damaged = manifest.damage(path, manifest.read(path))
    if damaged:
        raise BadInput(f"{damaged}; use another checkpoint")
    model = Model(recipe)
    checkpoint.load_plain(model, path)
    model.dense.bfloat16 = False
    return model.eval().requires_grad_(False)


def script(model: Model, recipe: Recipe) -> torch.jit.ScriptModule:
    """Return the model as TorchScript: dicts of tensors in, probabilities by task out (see modules.serving)."""
    return torch.jit.script(Scorer(model, recipe).eval())


def export(run: Path, which: str = "best", out: Path | None = None) -> dict[str, Any]:
    """Export one checkpoint of a run and prove it on held-out rows.

    Args:
        run: the run folder, wherever it lies now; the data must still be at the recipe's data.path.
        which: ``best`` or ``last``.
        out: folder to write, by default <run>/export; an earlier export there is replaced as a whole.

    Returns:
        The signature, with the parity figures.

    Raises:
        BadInput: no such checkpoint or data, `out` cannot be written or holds something else, or the file's scores
            differ from the model's beyond export.tolerance: then nothing is written and an earlier export stays.
    """
    path = find_checkpoint(run, which)
    out = (out or run / "export").resolve()
    _check_place(out)
    recipe = load_recipe(run / "config.yaml")
    model = plain_model(recipe, path)
    draft = out.with_name(f".{out.name}.draft")
    try:
        _make(draft)
        script(model, recipe).save(str(draft / "model.pt"))
        scored = torch.jit.load(str(draft / "model.pt"))
        parity = _prove(model, scored, recipe)
        content = manifest.finite(_signature(run, recipe, path, model, parity))
        manifest.write_json(draft / "signature.json", content)
        manifest.write_json(draft / "golden.json", _golden(scored, recipe))
        manifest.commit(draft, {name: manifest.digest(draft / name) for name in _FILES}, format=_FORMAT)
        _replace(out, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return content


def _check_place(out: Path) -> None:
    """Refuse to replace anything but an earlier export or an empty folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    found = manifest.read(out) if out.is_dir() else None
    if found is None or "model.pt" not in found["files"]:
        raise BadInput(f"{out}: holds something that is not an export; name a new or empty folder with --out")


def _make(draft: Path) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise BadInput(
            f"{draft.parent}: cannot write here ({error.strerror}); name another folder with --out"
        ) from error


def _replace(out: Path, draft: Path) -> None:
    """Put a whole draft in the place of `out`; two renames are all the time in which `out` is not there."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    draft.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def inputs_of(batch: Batch, recipe: Recipe) -> tuple[dict[str, torch.Tensor], ...]:
    """Return a batch as the exported file takes it: ids, lengths and dense by feature."""
    keyed, dense = _names(recipe)
    ids, lengths = {k: batch.ids[k].values() for k in keyed}, {k: batch.ids[k].lengths() for k in keyed}
    return ids, lengths, dict(zip(dense, batch.dense.unbind(1), strict=True))


def _names(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Return the names of the id and sequence features, and those of the dense ones."""
    dense = [name for name, feature in recipe.features.items() if isinstance(feature, DenseFeature)]
    return [name for name in recipe.features if name not in dense], dense


def _held_out(recipe: Recipe, rows: int) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yield the test split's first batches, and in each the places of real rows, `rows` in all."""
    reader = Reader(Source.open(recipe, "test"), recipe, rank=0, world=1, shuffle=False)
    with closing(reader.batches(0)) as batches:
        for batch in batches:
            real = torch.nonzero(batch.weights > 0).flatten()[:rows]
            rows -= real.numel()
            yield batch, real
            if not rows:
                return


def _prove(model: Model, scored: torch.jit.ScriptModule, recipe: Recipe) -> dict[str, Any]:
    """Return how closely the file scores held-out rows like the model, where it is close enough."""
    parts = []
    with torch.no_grad():
        for batch, real in _held_out(recipe, recipe.export.parity_rows):
            scores = scored(*inputs_of(batch, recipe))
            logits = model(batch.ids, batch.dense, None)
            found = torch.stack([scores[task] for task in recipe.tasks])[:, real]  # (T, n)
            wanted = torch.stack([torch.sigmoid(logits[task]) for task in recipe.tasks])[:, real]
            parts.append((found, wanted, batch.labels.T[:, real]))
    found, wanted, labels = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    rows = found.shape[1]
    worst = float((found - wanted).abs().max()) if rows else math.nan
    if not worst <= recipe.export.tolerance:  # nan is not close either
        raise BadInput(
            f"export: on {rows} held-out rows the file's probabilities differ from the model's by {worst:.2e}, more "
            f"than export.tolerance={recipe.export.tolerance}; nothing was exported"
        )
    aucs = {
        f"{task}.auc": {"file": metrics.auc(labels[t], found[t]), "model": metrics.auc(labels[t], wanted[t])}
        for t, task in enumerate(recipe.tasks)
    }
    return {"rows": rows, "largest_difference": worst, **aucs}


def golden_inputs(golden: dict[str, Any]) -> tuple[dict[str, torch.Tensor], ...]:
    """Return the rows of a golden.json as the exported file takes them: ids, lengths and dense by feature."""
    ids, lengths = ({k: torch.tensor(v, dtype=torch.int64) for k, v in golden[p].items()} for p in ("ids", "lengths"))
    dense = {k: torch.tensor([math.nan if x is None else x for x in v]) for k, v in golden["dense"].items()}
    return ids, lengths, dense


def _golden(scored: torch.jit.ScriptModule, recipe: Recipe) -> dict[str, Any]:
    """Return held-out rows as lists, a missing dense value as null, with the scores that a server must reproduce."""
    keyed, dense = _names(recipe)
    rows: dict[str, dict[str, list]] = {
        "ids": {key: [] for key in keyed},
        "lengths": {key: [] for key in keyed},
        "dense": {name: [] for name in dense},
    }
    count = 0
    for batch, real in _held_out(recipe, recipe.export.golden_rows):
        count += real.numel()
        for key in keyed:
            lists = batch.ids[key].to_dense()
            for row in real.tolist():
                rows["ids"][key] += lists[row].tolist()
                rows["lengths"][key].append(lists[row].numel())
        for column, values in zip(batch.dense[real].T.tolist(), rows["dense"].values(), strict=True):
            values += [None if math.isnan(x) else x for x in column]
    scores = {task: score.tolist() for task, score in scored(*golden_inputs(rows)).items()}
    return {"rows": count, **rows, "scores": scores, "tolerance": recipe.export.tolerance}


def _signature(run: Path, recipe: Recipe, path: Path, model: Model, parity: dict[str, Any]) -> dict[str, Any]:
    """Return what a caller has to know about the file, and where it comes from."""
    step = manifest.read(path)["step"]
    normalise = model.dense.normalise
    statistics = iter(zip(normalise.mean.tolist(), normalise.std.tolist(), strict=True))
    return {
        "format": _FORMAT,
        "call": "model(ids: Dict[str, Tensor], lengths: Dict[str, Tensor], dense: Dict[str, Tensor])"
        " -> Dict[str, Tensor]: by feature the int64 ids of all rows one after the other, the int64 number of ids of"
        " each row, a float32 number a row; by task a float32 probability a row",
        "features": {name: _feature(feature, statistics) for name, feature in recipe.features.items()},
        "tables": {name: t.model_dump(include={"rows", "dim", "hash", "dtype"}) for name, t in recipe.tables.items()},
        "hashing": "in the file; row = splitmix64(id) with the sign bit cleared, mod rows (hash: mix), or id mod rows,"
        " never negative (hash: modulo)",
        "strings": "a string id is the xxh64 (seed 0) of its UTF-8 bytes, read as a signed 64-bit integer",
        "tasks": {name: {"label": task.label, "output": "probability"} for name, task in recipe.tasks.items()},
        "model": recipe.model.model_dump(),
        "run": recipe.name,
        "checkpoint": {"step": step, "path": path.name},
        "training": _training(recipe),
        "metrics": _metrics(run, step),
        "parity": parity,
        "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _feature(feature: Feature, statistics: Iterator[tuple[float, float]]) -> dict[str, Any]:
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
    mean, std = next(statistics)
    return {"type": "dense", "dtype": "float32", "missing": "NaN", "mean": mean, "std": std}


def _training(recipe: Recipe) -> dict[str, Any]:
    """Return what the model was trained on; the window is read from footers, null where they do not tell."""
    source = Source.open(recipe, "train")
    window = source.id_range(_TIME)
    return {
        "data": without_credentials(recipe.data.path),
        "rows": source.rows,
        "window": None if window is None else [t if isinstance(t, int | float) else str(t) for t in window],
        "window_column": _TIME,
    }


def _metrics(run: Path, step: int) -> dict[str, Any]:
    """Return what the run's log says of a checkpoint, as ``<split>.<task>.<metric>``."""
    found = [line for line in runlog.read(run) if line.get("kind") == "eval" and line.get("step") == step]
    apart = ("kind", "time", "step", "split")
    return {f"{line['split']}.{key}": value for line in found for key, value in line.items() if key not in apart}


def versions() -> dict[str, str]:
    """Return the versions that decide what a run computes."""
    names = ["livetrain", "torch", "torchrec", "ray", "pyarrow", "numpy"]
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
