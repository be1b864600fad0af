"""What a fit has learned, from its checkpoint to what answers; and the file that scores, of one that ranks."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.fitted import State, fitted
from livetrain.modules.fusion import Fused
from livetrain.modules.recall.inverted import Inverted
from livetrain.modules.tables.mapped import Files
from livetrain.modules.tasks.registry import kinds
from livetrain.modules.trees.scorer import Ranker
from livetrain.trainers.export import fusion
from livetrain.trainers.export.parity import compared
from livetrain.trainers.export.rows import golden_inputs, held_out_rows, synthetic_rows
from livetrain.trainers.export.signature import _signature
from livetrain.trainers.export.written import written
from livetrain.trainers.runtime import arrays, manifest, run_folder
from livetrain.trainers.runtime.run_folder import ANOTHER
from livetrain.trainers.train import compatible


def state_in(path: Path) -> State:
    """Return what a fit has learned, from its checkpoint, mapped.

    Raises:
        Damaged: the checkpoint is not as its manifest says.
    """
    if (wrong := manifest.damage(path, run_folder.content(path))) is not None:
        raise run_folder.Damaged(f"{path}: {wrong}")
    return arrays.read(path)


def state_of(recipe: Recipe, path: Path) -> State:
    """Return what a run's checkpoint has learned.

    Raises:
        BadInput: the checkpoint is damaged, or another model's.
    """
    compatible.check_same(path, recipe, resume=False)
    try:
        return state_in(path)
    except run_folder.Damaged as error:
        raise BadInput(f"{error}; {ANOTHER}") from None


def answering(model: Any, recipe: Recipe, state: State, fused: Fused | None = None) -> nn.Module:
    """Return what answers for a model, of what it has learned: `Inverted` of one that finds items, else `Ranker`."""
    if recipe.model.finds:
        return Inverted(model, recipe, model.table(state)).eval()
    return Ranker(model.module(state), {**kinds(recipe.tasks)}, list(recipe.features), fused).eval()


def learned(recipe: Recipe, path: Path, fused: Fused | None = None) -> nn.Module:
    """Return what answers for a checkpoint's model; errors as of `state_of`."""
    return answering(fitted(recipe), recipe, state_of(recipe, path), fused)


def write(run: Path, recipe: Recipe, path: Path, draft: Path) -> dict[str, Any]:
    """Write the files of a fitted ranker's export into an empty folder, and prove them; return the signature.

    Raises:
        BadInput: the checkpoint is damaged, or the file's scores differ from the model's beyond the tolerance.
    """
    plain = learned(recipe, path, fusion.fused_of(run, recipe, path))
    scored = written(torch.jit.script(plain), draft / "model.pt", Files(draft))
    size = (draft / "model.pt").stat().st_size
    none = {"tables": 0, "file": size}
    with torch.no_grad():
        parity = compared(lambda batch, inputs: plain(*inputs), scored, recipe, "none")
    content = _signature(run, recipe, path, None) | {
        "quantize": "none",
        "sizes": none | {"float32": none},
        "parity": parity,
    }
    content = manifest.finite(content)
    manifest.write_json(draft / "signature.json", content)
    count, kind = recipe.export.golden_rows, recipe.export.golden
    rows = held_out_rows(recipe, count) if kind == "rows" else synthetic_rows(recipe, content, count)
    scores = {task: score.tolist() for task, score in scored(*golden_inputs(rows)).items()}
    golden = {"source": kind, **rows, "scores": scores, "tolerance": recipe.export.tolerance}
    manifest.write_json(draft / "golden.json", golden)
    return content
