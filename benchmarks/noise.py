"""How much of the tasks' gradients is noise, and what conflict is left without it.

The gradients of every task are taken at one state of a model over many batches. Inner products of two tasks' *mean*
gradients come from products of different batches alone, in which the batches' noise has mean zero:

    <E g_i, E g_j>  ~  (<S_i, S_j> - sum_b <g_ib, g_jb>) / (n (n - 1)),    S_i = sum_b g_ib,    n batches

In tables they come from products of one half of the batches with the other, row by row. At the embeddings each sample
has a gradient of its own, so there it is the mean of the samples' products. Errors are the jackknife's, over blocks of
batches or parts of the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from quality import rule
from torch import Tensor

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.features.carriers import Carried
from livetrain.modules.model import Model
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export.export import plain_model
from livetrain.trainers.runtime.run_folder import committed
from livetrain.trainers.train.loss import Loss

BLOCK = 10  # batches that make a larger one
PARTS = 10  # of a table's rows
PLACES = 4  # of an epoch
TABLES = ("user", "streamer", "topic")  # whose rows are looked at

Pair = tuple[int, int]
Estimate = tuple[np.ndarray, np.ndarray]  # (T, T) cosines, and their errors


@dataclass
class Noise:
    """What was found at one state of a model, of n batches and T tasks.

    Attributes:
        small, large: (n, T, T) and (n / BLOCK, T, T) Gram matrices of the dense gradients of batches and of blocks.
        signal: by task |E g|^2 / E |g_b|^2: the part of a batch's dense gradient that is no noise.
        cosines: by place, those of mean gradients.
        again: by table and pair of tasks the rows that both move in both halves of the batches, and the shares of them
            in conflict in the second half: of those in conflict in the first half, and of the rest.
    """

    small: np.ndarray
    large: np.ndarray
    signal: np.ndarray
    cosines: dict[str, Estimate]
    again: dict[str, dict[Pair, tuple[int, float, float]]]


def sampled(recipe: Recipe, count: int) -> list[Batch]:
    """Return `count` batches of an epoch, a multiple of PLACES and of 2 BLOCK: as many from each of PLACES places.

    Rows of requests come with lists of their own, so that each has an embedding, and a gradient, of its own.
    """
    reader = Reader(Source.open(recipe, "train"), recipe, rank=0, world=1, shuffle=True)
    starts = [reader.steps * place // PLACES for place in range(PLACES)]
    widths = Carried(recipe.features).widths
    return [batch.flat(widths) for start in starts for batch in reader.batches(0, start, start + count // PLACES)]


def measured(model: Model, recipe: Recipe, batches: list[Batch]) -> Noise:
    """Measure at one state of a model.

    Args:
        model: in evaluation mode; its dense parameters must ask for gradients.
        recipe: its own.
        batches: as of `sampled`.
    """
    loss, tasks = Loss(recipe).train(), len(recipe.tasks)
    shared = _shared(model, loss, batches[0])
    sizes = sum(parameter.numel() for parameter in shared)
    blocks = torch.zeros(len(batches) // BLOCK, tasks, sizes)
    small, at_samples = (np.zeros((len(batches), tasks, tasks)) for _ in range(2))
    rows = {table: torch.zeros(2, tasks, recipe.tables[table].rows, recipe.tables[table].dim) for table in TABLES}
    for number, batch in enumerate(batches):
        dense, cut = _by_task(model, loss, batch, shared)
        blocks[number // BLOCK] += dense / BLOCK
        small[number] = (dense.double() @ dense.double().T).numpy()
        looked = model.hash(batch.ids)
        for name, each in cut.items():  # (T, N, d)
            flat = each.flatten(1).double()
            at_samples[number] += (flat @ flat.T).numpy()
            table = recipe.features[name].table
            if table in rows:
                found = rows[table][int(number >= len(batches) // 2)]
                found.index_add_(1, looked[name].values(), each)
    flat = blocks.flatten(2).double()
    large = (flat @ flat.mT).numpy()
    means = _jackknife(lambda kept: _of_means(flat[kept], large[kept]), len(blocks))
    batch_blocks = at_samples.reshape(len(blocks), BLOCK, tasks, tasks).sum(1)
    cosines = {"dense parameters": means, "embeddings": _jackknife(lambda kept: batch_blocks[kept].sum(0), len(blocks))}
    for table, halves in rows.items():
        parts = np.stack([_of_halves(halves[:, :, part::PARTS]) for part in range(PARTS)])
        cosines[f"rows of {table}"] = _jackknife(lambda kept, parts=parts: parts[kept].sum(0), PARTS)
    whole = np.einsum("tt->t", (flat.mean(0) @ flat.mean(0).T).numpy())
    each = np.einsum("btt->t", small) / len(small)
    signal = (len(small) * whole - each) / (len(small) - 1) / each
    pairs = list(combinations(range(tasks), 2))
    again = {table: {pair: _again(halves, pair) for pair in pairs} for table, halves in rows.items()}
    return Noise(small, large, signal, cosines, again)


def _shared(model: Model, loss: Loss, batch: Batch) -> list[Tensor]:
    """Return the dense parameters that several tasks reach."""
    parameters = list(model.dense.parameters())
    losses, _ = loss(model(batch.ids, batch.dense, batch.weights, batch.vectors), batch)
    reached = [torch.autograd.grad(each, parameters, retain_graph=True, allow_unused=True) for each in losses]
    return [p for p, *found in zip(parameters, *reached, strict=True) if sum(g is not None for g in found) > 1]


def _by_task(model: Model, loss: Loss, batch: Batch, shared: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a batch's gradients by task: (T, P) of dense parameters, and by feature (T, N, d) of its embeddings."""
    leaves: dict[str, Tensor] = {}

    def cut(_: torch.nn.Module, inputs: tuple) -> tuple:
        leaves.update({name: value.detach().requires_grad_() for name, value in inputs[0].items()})
        return leaves, *inputs[1:]

    handle = model.dense.register_forward_pre_hook(cut)
    losses, _ = loss(model(batch.ids, batch.dense, batch.weights, batch.vectors), batch)
    handle.remove()
    inputs = [*shared, *leaves.values()]
    found = [torch.autograd.grad(each, inputs, retain_graph=True, materialize_grads=True) for each in losses]
    by_input = [torch.stack(each) for each in zip(*found, strict=True)]
    dense = torch.cat([each.flatten(1) for each in by_input[: len(shared)]], 1)
    return dense, dict(zip(leaves, by_input[len(shared) :], strict=True))


def _of_means(blocks: Tensor, grams: np.ndarray) -> np.ndarray:
    """Return, but for a factor, the products of mean gradients from blocks (n, T, P) with Gram matrices (n, T, T)."""
    total = blocks.sum(0)
    return (total @ total.T).numpy() - grams.sum(0)


def _of_halves(halves: Tensor) -> np.ndarray:
    """Return the products (T, T), over all rows, of one half's gradients with the other's, from (2, T, n, d)."""
    first, second = halves.flatten(2).double()
    products = (first @ second.T).numpy()
    return (products + products.T) / 2


def _jackknife(gram: Callable[[np.ndarray], np.ndarray], count: int) -> Estimate:
    """Return cosines, and their errors, of a Gram matrix that is made of `count` parts; `gram` takes those kept."""
    every = np.arange(count)
    left_out = np.stack([_cosines(gram(every[every != one])) for one in range(count)])
    return _cosines(gram(every)), np.sqrt((count - 1) * left_out.var(0))


def _cosines(gram: np.ndarray) -> np.ndarray:
    """Return cosines; nan where a length squared, which an estimate without noise may have below 0, is not positive."""
    squares = np.einsum("tt->t", gram)
    lengths = np.sqrt(np.where(squares > 0, squares, np.nan))
    return gram / lengths[:, None] / lengths


def _again(halves: Tensor, pair: Pair) -> tuple[int, float, float]:
    i, j = pair
    moved = halves[:, [i, j]].any(-1).flatten(0, 1).all(0)
    first, second = ((half[i][moved] * half[j][moved]).sum(1) < 0 for half in halves)
    return int(moved.sum()), _share(second[first]), _share(second[~first])


def _share(found: Tensor) -> float:
    return float(found.double().mean()) if len(found) else float("nan")


def page(asked: Recipe, run: Path) -> list[str]:
    """Return what the gradients at the beginning, at the first checkpoint and at the end of a run are made of."""
    size = 256  # rows, as `combiners` has them
    recipe = load_recipe(run / "config.yaml", [f"data.batch_size={size}"])
    batches = sampled(recipe, 160)
    paths = committed(run)
    models = {path.name.lstrip("step-0"): plain_model(asked, path) for path in (paths[0], paths[-1])}
    begun = Model(asked).eval()
    begun.dense.normalise.load_state_dict(next(iter(models.values())).dense.normalise.state_dict())
    found = {}
    for step, model in {"0": begun, **models}.items():
        model.dense.requires_grad_()
        found[step] = measured(model, recipe, batches)
    pairs = list(combinations(range(len(asked.tasks)), 2))
    tasks = list(asked.tasks)
    named = [f"{tasks[i]}, {tasks[j]}" for i, j in pairs]
    steps = list(found)
    heads = [f"| step | {' | '.join(tasks)} |", f"| step | rows | {' | '.join(named)} |"]
    heads += [f"| cosine of means | step | {' | '.join(named)} |", f"| rows of | step | {' | '.join(named)} |"]
    lines = [f"Gradients of the sum's first seed, of {len(batches)} batches of {size} rows, ± error.", ""]
    lines += ["The part of a batch's dense gradient that is no noise, |E g|² / E|g|²:", "", heads[0], rule(heads[0])]
    lines += [f"| {step} | {' | '.join(f'{share:.1%}' for share in each.signal)} |" for step, each in found.items()]
    lines += ["", "Share of batches whose dense gradients of two tasks conflict:", "", heads[1], rule(heads[1])]
    for step, each in found.items():
        for rows, grams in ((size, each.small), (size * BLOCK, each.large)):
            shares = " | ".join(f"{(grams[:, i, j] < 0).mean():.0%}" for i, j in pairs)
            lines.append(f"| {step} | {rows:,} | {shares} |")
    lines += ["", "Cosines of mean gradients, the noise taken out:", "", heads[2], rule(heads[2])]
    for place in found[steps[0]].cosines:
        for step in steps:
            cosines, errors = found[step].cosines[place]
            shown = " | ".join(f"{cosines[pair]:+.2f} ± {errors[pair]:.2f}" for pair in pairs)
            lines.append(f"| {place} | {step} | {shown} |")
    lines += ["", "Rows that both tasks move in both halves of the batches, and the share of them that conflict in the"]
    lines += [
        "second half: of those that conflict in the first, and of those that do not:",
        "",
        heads[3],
        rule(heads[3]),
    ]
    for table in TABLES:
        for step in steps:
            again = found[step].again[table]
            shown = " | ".join("{:,}: {:.0%}, {:.0%}".format(*again[pair]) for pair in pairs)
            lines.append(f"| {table} | {step} | {shown} |")
    return [*lines, ""]
