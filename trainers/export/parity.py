"""The proof that an exported file gives the trained model's scores."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Quantization, Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.fusion import FUSED, Fused
from livetrain.modules.layers import products
from livetrain.modules.model import Model
from livetrain.modules.serving.flat import once
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.export.rows import Inputs, _held_out, inputs_of, one_user


def prove(
    model: Model,
    scored: torch.nn.Module,
    recipe: Recipe,
    quantize: Quantization,
    towers: Sequence[torch.nn.Module] = (),
    fused: Fused | None = None,
) -> dict[str, Any]:
    """Return how closely the file, and the product of the towers' vectors, score held-out rows like the model.

    Raises:
        BadInput: less closely than the recipe's tolerance.
    """
    predict = kinds(recipe.answered)

    def predicted(batch: Batch, inputs: Inputs) -> dict[str, torch.Tensor]:
        logits = model(batch.ids, batch.dense, None, batch.vectors)
        out = {task: kind(logits[task]) for task, kind in predict.items()}
        return out if fused is None else out | {FUSED: fused(out)}

    return compared(predicted, scored, recipe, quantize, towers)


def compared(
    model: Callable[[Batch, Inputs], dict[str, torch.Tensor]],
    scored: torch.nn.Module,
    recipe: Recipe,
    quantize: Quantization,
    towers: Sequence[torch.nn.Module] = (),
) -> dict[str, Any]:
    """Return what `prove` does of anything that predicts for a batch, which comes as the file takes it too.

    Raises:
        BadInput: as `prove`.
    """
    parts, ranked, product, predict = [], 0.0, 0.0, kinds(recipe.answered)
    columns = [list(recipe.tasks).index(task) for task in predict]
    with torch.no_grad():
        for batch, real in _held_out(recipe, recipe.export.parity_rows):
            inputs = inputs_of(batch, recipe)
            scores, own = scored(*inputs), model(batch, inputs)
            found, wanted = (torch.stack([of[name] for name in own])[:, real] for of in (scores, own))  # (T, n)
            parts.append((found, wanted, batch.labels.T[columns][:, real]))
            ranked = max(ranked, rank_difference(scored, batch, recipe))
            if towers:
                user, item = (tower(*inputs) for tower in towers)
                product = max(product, apart(products.of_pairs(user, item), next(iter(scores.values()))))
    found, wanted, labels = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    rows = found.shape[1]
    key = "tolerance" if quantize == "none" else f"tolerance_{quantize}"
    if not rows:
        raise BadInput("export: the test split has no rows to prove the file on; nothing was exported: give it some")
    worst = apart(found, wanted, recipe.model.jumps)
    check_close(f"on {rows} held-out rows the file's predictions differ from the model's", worst, key, recipe)
    check_close("the file's rank differs from its forward", ranked, "tolerance", recipe)
    check_close("the towers' product differs from the file's score", product, "tolerance", recipe)
    aucs = {}
    for t, (task, kind) in enumerate(predict.items()):
        known = ~labels[t].isnan()
        both = {k: p[t, known].numpy() for k, p in (("file", found), ("model", wanted))}
        aucs[f"{task}.{kind.ordered_by}"] = {k: kind.order(labels[t, known].numpy(), p) for k, p in both.items()}
    return {"rows": rows, "largest_difference": worst, "largest_difference_of_rank": ranked, **aucs}


def apart(one: torch.Tensor, other: torch.Tensor, jumps: bool = False) -> float:
    """Return the largest difference of two predictions, relative to the second where that is above 1.

    Args:
        one: (..., n).
        other: as many.
        jumps: leave out the worst row of each thousand begun, as `ModelConfig.jumps` allows; never one that is NaN.
    """
    each = ((one - other).abs() / other.abs().clamp(min=1)).reshape(-1, one.size(-1)).amax(0)  # (n,)
    if not jumps or each.isnan().any():
        return float(each.max())
    return float(each.sort()[0][max(len(each) - math.ceil(len(each) / 1000), 1) - 1])


def check_close(what: str, difference: float, key: str, recipe: Recipe) -> None:
    tolerance = getattr(recipe.export, key)
    if difference <= tolerance:
        return
    if math.isnan(difference):
        mend = "export another checkpoint: --checkpoint best or last"
    else:
        mend = f"raise export.{key} in the run's config.yaml"
        mend += "" if key == "tolerance" else ", or leave the tables as they are: --quantize none"
    raise BadInput(
        f"export: {what} by {difference:.2e}, more than export.{key}={tolerance}; nothing was exported: {mend}"
    )


def rank_difference(scored: Any, batch: Batch, recipe: Recipe, ranks: Any = None) -> float:
    """Return how far `rank` is from `forward` where all rows of a batch get the features of one user.

    Args:
        scored: the file.
        batch: of rows; the user is the one with the longest sequence.
        recipe: its recipe.
        ranks: what has the `rank` instead, which takes each of `once` once.
    """
    user = once(recipe)
    sequences = [name for name in user if recipe.features[name].form == "sequence"]
    longest = int(batch.ids[sequences[0]].lengths().argmax()) if sequences else 0
    given, repeated = one_user(inputs_of(batch, recipe), user or list(recipe.features)[:1], longest)
    scores = zip((ranks or scored).rank(*given).values(), scored(*repeated).values(), strict=True)
    return max(apart(one, other, recipe.model.jumps) for one, other in scores)


def prove_rank(ranks: Any, scored: Any, recipe: Recipe) -> float:
    """Return how closely what can rank alone ranks held-out rows as a file scores them.

    Raises:
        BadInput: less closely than the recipe's tolerance.
    """
    with torch.no_grad():
        batches = (batch for batch, _ in _held_out(recipe, recipe.export.parity_rows))
        worst = max(rank_difference(scored, batch, recipe, ranks) for batch in batches)
    check_close("the scores of model.onnx differ from the file's", worst, "tolerance", recipe)
    return worst
