"""Small recipes, batches made in memory, and training as plain PyTorch would do it."""

from collections.abc import Callable
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs import registry
from livetrain.configs.schema import Recipe, SparseOptimizer
from livetrain.modules.batch import Batch
from livetrain.modules.layers.dice import RunningDice
from livetrain.modules.model import Model
from livetrain.modules.network import REGULARISER, TARGETS
from tests import slow_losses as losses_of


def recipe(**changes: Any) -> Recipe:
    """A DIN over two tables of one dim and one of another; `changes` are dotted keys with __ for dots."""
    content = {
        "data": {"path": "unused", "batch_size": 48, "shards": 12, "shuffle_window": 64},
        "features": {
            "user": {"type": "id", "table": "user"},
            "movie": {"type": "id", "table": "movie"},
            "history": {"type": "sequence", "table": "movie", "max_length": 6},
            "rating": {"type": "sequence", "table": "rating", "max_length": 6},
            "rate": {"type": "dense"},
        },
        "tables": {
            "user": {"rows": 61, "dim": 8, "sharding": "row_wise", "init_std": 0.1},
            "movie": {"rows": 40, "dim": 8, "sharding": "table_wise", "init_std": 0.1},
            "rating": {"rows": 8, "dim": 4, "hash": "modulo", "sharding": "table_wise", "init_std": 0.1},
        },
        "model": {
            "kind": "din",
            "attention": [{"query": ["movie"], "events": ["history"], "side": ["rating"]}],
            "attention_units": [8, 4],
            "units": [16, 8],
        },
        "tasks": {"click": {"label": "label"}},
        "optimizers": {"sparse": {"lr": 0.05}, "dense": {"kind": "sgd", "lr": 0.05}},
        "train": {"epochs": 2, "log_every": 1},
        "cluster": {"workers": 0, "device": "cpu"},
    }
    for dotted, value in changes.items():
        place, keys = content, dotted.split("__")
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
    return Recipe.model_validate(content)


def batches(made_for: Recipe, count: int, seed: int = 0) -> list[Batch]:
    """Global batches with missing ids, empty sequences, missing dense values and padding rows.

    Labels are of their tasks' kinds, three in ten unknown where that is allowed; sample weights are between 0 and 2.
    """
    size, tasks = made_for.data.batch_size, list(made_for.tasks.values())
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(-high, high, shape, generator=generator)

    out = []
    for number in range(count):
        shared = torch.randint(0, 7, (size,), generator=generator)
        values, lengths, shares, dense, vectors = [], [], [], [], []
        weights = torch.ones(size)
        weights[torch.rand(size, generator=generator) < 0.1] = 0
        for feature in made_for.features.values():
            if feature.carrier == "numbers":
                column = torch.randn(size, *[feature.numbers][: feature.numbers > 1], generator=generator)
                column[::7] = float("nan")
                dense.append(column)
                continue
            if feature.parts:
                continue
            length = shared.clone() if feature.form == "sequence" else (shared > 0).long()
            if feature.pooled:
                length = torch.randint(0, 5, (size,), generator=generator)
            length[weights == 0] = 0
            lengths.append(length)
            values.append(draw(1000, int(length.sum())))
            given = torch.ones(len(values[-1]))
            if feature.weighted:
                given = torch.randn(len(given), generator=generator)
                given[::5] = 0
            shares.append(given)
            if feature.alike is not None:
                beside = torch.randn(len(given), made_for.features[feature.alike].numbers, generator=generator)
                beside[::4] = float("nan")
                vectors.append(beside.flatten())
            elif feature.carried:  # seconds between times
                vectors.append(torch.exp(16 * torch.rand(len(given), generator=generator)).floor())
        keys = [n for n, f in made_for.features.items() if f.carrier == "ids"]
        rows = torch.arange(size) + number * size
        labels = (torch.rand(size, len(tasks), generator=generator) < 0.4).float()
        for t, task in enumerate(tasks):
            if registry.TASKS.owner(task.kind).numeric:
                labels[:, t] *= torch.rand(size, generator=generator) * 9
            if task.unknown:
                labels[torch.rand(size, generator=generator) < 0.3, t] = float("nan")
        labels[weights == 0] = 0
        sample_weights = None
        if any(task.sample_weight for task in tasks):
            sample_weights = 2 * torch.rand(size, len(tasks), generator=generator)
            sample_weights[:, [not task.sample_weight for task in tasks]] = 1
        weighted = any(feature.weighted for feature in made_for.features.values())
        out.append(
            Batch(
                ids=_keyed(keys, values, lengths, shares if weighted else None),
                dense=torch.column_stack(dense) if dense else torch.zeros(size, 0),
                labels=labels,
                weights=weights,
                rows=torch.where(weights > 0, rows, -1),
                sample_weights=sample_weights,
                task_groups=_groups(made_for, size, generator),
                vectors=torch.cat(vectors) if vectors else None,
            )
        )
    return out


def _groups(made_for: Recipe, size: int, generator: torch.Generator) -> torch.Tensor | None:
    columns = len(set(made_for.groups().values()))
    return torch.randint(-4, 6, (size, columns), generator=generator) if columns else None


def _keyed(
    keys: list[str], values: list[torch.Tensor], lengths: list[torch.Tensor], shares: list[torch.Tensor] | None = None
) -> KeyedJaggedTensor:
    none = torch.zeros(0, dtype=torch.long)  # where a recipe has no ids at all
    weights = None if shares is None else torch.cat(shares)
    return KeyedJaggedTensor(
        keys=keys, values=torch.cat([none, *values]), weights=weights, lengths=torch.cat([none, *lengths])
    )


def part(batch: Batch, rank: int, world: int) -> Batch:
    """The contiguous part of a global batch that a rank holds; of vectors, those of the history."""
    size = batch.weights.shape[0] // world
    rows = slice(rank * size, (rank + 1) * size)
    values, lengths, shares, vectors = [], [], [], None
    for key in list(batch.ids.keys()):
        jagged = batch.ids[key]
        offsets = jagged.offsets()
        values.append(jagged.values()[offsets[rows.start] : offsets[rows.stop]])
        lengths.append(jagged.lengths()[rows])
        if jagged.weights_or_none() is not None:
            shares.append(jagged.weights()[offsets[rows.start] : offsets[rows.stop]])
        if batch.vectors is not None and key == "history":
            each = batch.vectors.view(len(jagged.values()), -1)
            vectors = each[offsets[rows.start] : offsets[rows.stop]].flatten()
    return Batch(
        _keyed(list(batch.ids.keys()), values, lengths, shares or None),
        batch.dense[rows],
        batch.labels[rows],
        batch.weights[rows],
        batch.rows[rows],
        sample_weights=None if batch.sample_weights is None else batch.sample_weights[rows],
        groups=None if batch.groups is None else batch.groups[rows],
        task_groups=None if batch.task_groups is None else batch.task_groups[rows],
        vectors=vectors,
        asides=None if batch.asides is None else _part_of(batch.asides, rows),
    )


def _part_of(lists: KeyedJaggedTensor, rows: slice) -> KeyedJaggedTensor:
    """Some rows' lists."""
    parts = [lists[key] for key in lists.keys()]  # noqa: SIM118 (no mapping)
    values = [part.values()[part.offsets()[rows.start] : part.offsets()[rows.stop]] for part in parts]
    return _keyed(list(lists.keys()), values, [part.lengths()[rows] for part in parts])


def train_plain(
    made_for: Recipe,
    steps: list[Batch],
    begin: Callable[[Model], None] = lambda model: None,
    before: Callable[[Model, Batch, list[dict[str, torch.Tensor]]], None] = lambda model, batch, states: None,
) -> tuple[Model, list[float], dict[str, torch.Tensor]]:
    """Train one plain model on global batches; `begin` may change what it begins with, `before` what a step finds.

    Returns:
        The model, its tasks' losses, and each table's optimizer state where there is one.
    """
    model = Model(made_for)
    begin(model)
    tables = model.table_weights()
    state = {name: torch.zeros_like(weight) for name, weight in tables.items()}
    squares = {name: torch.zeros_like(weight) for name, weight in tables.items()}  # Adam's second moments
    dense = torch.optim.SGD(model.dense.parameters(), lr=made_for.optimizers.dense.lr)
    losses, grouped = [], made_for.groups()
    columns = list(dict.fromkeys(grouped.values()))
    for batch in steps:
        before(model, batch, [state, squares])
        model.zero_grad()
        logits = model(batch.ids, batch.dense, batch.weights, batch.vectors)
        each = logits.get(TARGETS, torch.ones(len(batch.weights), dtype=torch.long))  # answers of each row
        loss = torch.zeros(())
        for number, (task, declared) in enumerate(made_for.tasks.items()):
            known = (batch.weights > 0) & ~batch.labels[:, number].isnan()
            if declared.kind == "retrieval":
                known &= batch.labels[:, number] == 1
            share = torch.ones(len(known)) if batch.sample_weights is None else batch.sample_weights[:, number]
            groups = batch.task_groups[known, columns.index(grouped[task])] if task in grouped else None
            known, labels, share = (one.repeat_interleave(each) for one in (known, batch.labels[:, number], share))
            own = losses_of.loss(declared, logits[task][known], labels[known], share[known], groups)
            loss = loss + declared.weight * own
        losses.append(float(loss.detach()))
        loss = loss + logits.get(REGULARISER, 0.0)
        running = [(module, module.seen) for module in model.modules() if isinstance(module, RunningDice)]
        loss.backward()  # which sees a batch in parts once more
        for dice, seen in running:
            dice.follow(seen)
        if made_for.optimizers.dense.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.dense.parameters(), made_for.optimizers.dense.clip_norm)
        dense.step()
        touched = _touched(made_for, model, batch)
        with torch.no_grad():
            for name, weight in tables.items():
                if made_for.tables[name].frozen:
                    continue
                if made_for.optimizer(name).kind == "adam":
                    _adam(made_for.optimizer(name), weight, state[name], squares[name], touched[name], len(losses))
                else:
                    _update(made_for.optimizer(name), weight, state[name], touched[name])
    return model, losses, state


def _touched(made_for: Recipe, model: Model, batch: Batch) -> dict[str, torch.Tensor]:
    out = {name: torch.zeros(len(weight), 1) for name, weight in model.table_weights().items()}
    rows = model.hash(batch.ids) if model.select is None else model.hash(batch.ids, batch.dense)
    for name, feature in made_for.features.items():
        if table := feature.looks_up():
            out[table][rows[name].values()] = 1
    return out


def _adam(
    sparse: SparseOptimizer, weight: torch.Tensor, m: torch.Tensor, v: torch.Tensor, touched: torch.Tensor, step: int
) -> None:
    """The published formula, on the rows that the batch looks up; `step` counts from 1."""
    for row in touched.squeeze(1).nonzero().squeeze(1).tolist():
        gradient = weight.grad[row]
        m[row] = 0.9 * m[row] + 0.1 * gradient
        v[row] = 0.999 * v[row] + 0.001 * gradient**2
        root = (v[row] / (1 - 0.999**step)).sqrt() + sparse.eps
        weight[row] -= sparse.lr * (m[row] / (1 - 0.9**step)) / root


def _update(sparse: SparseOptimizer, weight: torch.Tensor, state: torch.Tensor, touched: torch.Tensor) -> None:
    """The published formulas: SGD, Adagrad, and Adagrad with one accumulator a row, L2 on touched rows."""
    gradient = weight.grad if weight.grad is not None else torch.zeros_like(weight)
    gradient = gradient + sparse.weight_decay * touched * weight
    if sparse.kind == "sgd":
        weight -= sparse.lr * gradient
        return
    square = gradient.square()
    state += square.mean(dim=1, keepdim=True) if sparse.kind == "rowwise_adagrad" else square
    weight -= sparse.lr * gradient / (state.sqrt() + sparse.eps)
