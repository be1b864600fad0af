"""The file that scores, of a model that is fitted: its table inside or beside it, and the proof.

model.pt   ids, lengths and dense by feature -> the score of each row's item; `rank`, and `top`
"""

from pathlib import Path
from typing import Any

import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Quantization, Recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.recall.fitted import Fitted, Table
from livetrain.modules.recall.inverted import ROWS, Inverted
from livetrain.modules.tables.mapped import Files
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.export.fitted import state_of
from livetrain.trainers.export.parity import apart, check_close, rank_difference
from livetrain.trainers.export.rows import _held_out, golden_inputs, held_out_rows, inputs_of, some_rows, synthetic_rows
from livetrain.trainers.export.signature import _signature
from livetrain.trainers.export.written import written
from livetrain.trainers.runtime import manifest

MAPPED = 1 << 32  # bytes of a table from which on it is mapped, where nothing else is asked for
_TOP = 10  # length of the lists that are compared


def table_in(recipe: Recipe, path: Path) -> tuple[Fitted, Table]:
    """Return a checkpoint's model, and the table that it has learned.

    Raises:
        BadInput: the checkpoint is damaged, or another model's.
    """
    model = fitted(recipe)
    return model, model.table(state_of(recipe, path))


def retriever(recipe: Recipe, path: Path) -> Inverted:
    """Return a checkpoint's model as it answers requests; arguments and errors as of `table_in`."""
    model, table = table_in(recipe, path)
    return Inverted(model, recipe, table).eval()


def write(model: Fitted, run: Path, recipe: Recipe, path: Path, draft: Path, quantize: Quantization) -> dict[str, Any]:
    """Write the files of an export into an empty folder, and prove them; return the signature.

    Raises:
        BadInput: the checkpoint is damaged, there is no space, or the file's scores differ from the model's beyond the
            tolerance.
    """
    _, table = table_in(recipe, path)
    plain, stored = (Inverted(model, recipe, table, how).eval() for how in ("none", quantize))  # in the same memory
    beside = Files(draft)
    size, wide = (sum(part.nbytes for part in each.tensors().values()) for each in (stored, plain))
    asked = recipe.export.tables
    if asked == "mapped" or (asked == "auto" and size > MAPPED):
        for name, part in stored.tensors().items():
            if part.numel():  # a file of no bytes cannot be mapped
                beside.room(name, part.shape, part.dtype).copy_(part)
        stored.let_go()
    scored = written(torch.jit.script(stored), draft / "model.pt", beside)
    whole = (draft / "model.pt").stat().st_size + sum((draft / f["file"]).stat().st_size for f in beside.index.values())
    found = {
        "quantize": quantize,
        "sizes": {"tables": size, "file": whole, "float32": {"tables": wide, "file": whole - size + wide}},
        "parity": _prove(plain, scored, recipe, quantize),
        **({"stored": beside.index} if beside.index else {}),
    }
    content = manifest.finite(_signature(run, recipe, path, None) | found)
    manifest.write_json(draft / "signature.json", content)
    count = recipe.export.golden_rows
    known = dict.fromkeys([model.key, *(n for n in model.features if recipe.features[n].lists)], plain.items.numpy())
    kind = recipe.export.golden
    rows = held_out_rows(recipe, count) if kind == "rows" else synthetic_rows(recipe, content, count, known)
    scores = {task: score.tolist() for task, score in scored(*golden_inputs(rows)).items()}
    golden = {"source": kind, **rows, "scores": scores, "tolerance": recipe.export.tolerance}
    manifest.write_json(draft / "golden.json", golden)
    return content


def _prove(plain: Inverted, scored: torch.jit.ScriptModule, recipe: Recipe, quantize: Quantization) -> dict[str, Any]:
    """Return how closely the file scores held-out rows, ranks and lists items like the model.

    Raises:
        BadInput: less closely than the recipe's tolerance.
    """
    (task, kind), *_ = kinds(recipe.tasks).items()
    parts, ranked, listed = [], 0.0, 0.0
    with torch.no_grad():
        for batch, real in _held_out(recipe, recipe.export.parity_rows):
            inputs = inputs_of(batch, recipe)
            found, wanted = scored(*inputs)[task], plain(*inputs)[task]
            parts.append(torch.stack([found[real], wanted[real], batch.labels[real, 0]]))
            ranked = max(ranked, rank_difference(scored, batch, recipe))
            few = some_rows(inputs, real[:ROWS], len(batch.rows))
            (_, one), (_, other) = scored.top(*few, _TOP), plain.top(few[0], few[1], few[2], _TOP)
            listed = max(listed, apart(one.clamp(min=-1e30), other.clamp(min=-1e30)))
    if not parts:
        raise BadInput("export: the test split has no rows to prove the file on; nothing was exported: give it some")
    found, wanted, labels = torch.cat(parts, 1)
    key = "tolerance" if quantize == "none" else f"tolerance_{quantize}"
    worst = apart(found, wanted)
    check_close(f"on {len(found)} held-out rows the file's predictions differ from the model's", worst, key, recipe)
    check_close("the file's rank differs from its forward", ranked, "tolerance", recipe)
    check_close("the file's lists have other scores than the model's", listed, key, recipe)
    both = {"file": found.numpy(), "model": wanted.numpy()}
    order = {name: kind.order(labels.numpy(), scores) for name, scores in both.items()}
    differences = {"largest_difference": worst, "largest_difference_of_rank": ranked}
    return {"rows": len(found), **differences, f"{task}.{kind.ordered_by}": order}
