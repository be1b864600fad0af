"""How well a model that is fitted finds items: the figures that trainers.evaluate has of every model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing

import torch
from torch import Tensor

from livetrain.configs.schema import CANDIDATES, SEEN, Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.features.carriers import Carried
from livetrain.modules.layers import jagged
from livetrain.modules.recall.inverted import ROWS, Inverted
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.data.read.catalogue import CATALOGUE
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.evaluate.evaluation import Evaluation
from livetrain.trainers.evaluate.intervals import Bootstrap
from livetrain.trainers.evaluate.retrieval import Lists, figures, least, places
from livetrain.trainers.export.rows import inputs_of, some_rows

_CELLS = 2**26  # scores in memory at once: 256 MB
_ENTRY = 8  # scores that an entry of a key takes while it is added up

Tell = Callable[[str, int, int], None]


def measure(
    learned: Inverted,
    recipe: Recipe,
    sources: Mapping[str, Source],
    split: str,
    draws: int,
    tell: Tell = lambda what, done, of: None,
) -> tuple[dict[str, float], Evaluation]:
    """Return the metrics of a split, and the evaluation that found those of its rows.

    The split is read twice: first its rows are scored, which also tells its items and its positive rows, then the
    items are ranked for those of the positive rows that count (`QUERIES` at most).

    Args:
        learned: the model.
        recipe: the run.
        sources: the split, and the catalogue if the recipe has one.
        split: which.
        draws: of the bootstrap for intervals; 0 for none.
        tell: told how far it is.
    """
    bootstrap = Bootstrap(draws)
    reader = _reader(sources[split], recipe, True)
    evaluation = Evaluation(
        kinds(recipe.tasks, recipe.evaluate.top),
        memory=recipe.evaluate.memory,
        rows=reader.steps * recipe.data.batch_size * (recipe.data.candidates or 1),
        slices=list(recipe.evaluate.slices),
        bootstrap=bootstrap,
    )
    sequences = {name: f.limit for name, f in recipe.features.items() if f.form == "sequence"}
    history = max(sequences, key=sequences.__getitem__, default=None)
    items: list[Tensor] = []
    positive: list[Tensor] = []
    with torch.no_grad():
        for done, batch in enumerate(_batches(reader, recipe)):
            tell(f"scoring {split}", done, reader.steps)
            score = learned(*inputs_of(batch, recipe))[learned.task]
            lengths = batch.lists(history).lengths() if history else None
            evaluation.update(
                score.unsqueeze(1), batch.labels, batch.weights, batch.groups, lengths, batch.slices, batch.rows
            )
            own, there = _items(batch, learned.key)
            items.append(own[there].unique())
            positive.append(batch.rows[there & (batch.labels[:, 0] == 1)])
        if CATALOGUE in sources:
            every = _batches(_reader(sources[CATALOGUE], recipe, False), recipe)
            items = [own[there] for own, there in (_items(batch, learned.key) for batch in every)]
        known = torch.cat([torch.zeros(0, dtype=torch.int64), *items]).unique()
        every_row = torch.cat([torch.zeros(0, dtype=torch.int64), *positive])
        chosen = every_row[least(every_row)].sort().values
        ranked = [_ranked(learned, recipe, batch, known, chosen) for batch in _batches(reader, recipe)]
    tell("computing the metrics", 0, 0)
    rows, ranks, slices, group = (torch.cat(part) for part in zip(*ranked, strict=True))
    order = rows.argsort()
    parts = ["", *(f"{name}." for name in recipe.evaluate.slices)]
    ranks, slices, group = ranks[order], slices[order], group[order]
    found, drawn = figures(learned.task, parts, ranks, slices, group, len(known), bootstrap)
    metrics = evaluation.compute() | found
    evaluation.draws.values |= drawn
    return metrics, evaluation


def _reader(source: Source, recipe: Recipe, split: bool) -> Reader:
    return Reader(source, recipe, rank=0, world=1, shuffle=False, groups=True, slices=split)


def _batches(reader: Reader, recipe: Recipe) -> Iterator[Batch]:
    """Yield all batches, with every feature repeated for each row."""
    widths = Carried(recipe.features).widths
    with closing(reader.batches(0)) as batches:
        for batch in batches:
            yield batch.flat(widths)


def _items(batch: Batch, key: str) -> tuple[Tensor, Tensor]:
    """Return each row's item, (B,) int64, and which rows have one."""
    part = batch.lists(key)
    own = jagged.rows(part.values().unsqueeze(1), part.lengths()).squeeze(1)
    return own, (batch.weights > 0) & (part.lengths() > 0)


def _ranked(
    learned: Inverted, recipe: Recipe, batch: Batch, known: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return row, rank, slices and group of each of a batch's rows that are chosen.

    Args:
        learned: the model.
        recipe: the run.
        batch: some rows.
        known: (C,) the items that are ranked, rising.
        chosen: numbers of the rows, rising.
    """
    own, there = _items(batch, learned.key)
    picked = torch.nonzero(there & (batch.labels[:, 0] == 1) & torch.isin(batch.rows, chosen)).flatten()
    place = torch.searchsorted(learned.items, known).clamp(max=max(learned.items.numel() - 1, 0))
    scored = learned.items[place] == known if learned.items.numel() else torch.zeros_like(known, dtype=torch.bool)
    lists = {name: batch.lists(name) for name in recipe.asides()}
    beside = {name: Lists(part.values(), part.lengths().long()) for name, part in lists.items()}
    inputs = inputs_of(batch, recipe)
    lists_of = [batch.lists(name).lengths() for name, f in recipe.features.items() if f.form == "sequence"]
    keys = max((float(lengths.float().mean()) for lengths in lists_of if len(lengths)), default=1.0)
    entries = _ENTRY * keys * learned.scores.numel() / max(learned.keys.numel(), 1)  # of a row, in scores
    step = max(min(_CELLS // max(len(known), learned.items.numel(), int(entries), 1), ROWS), 1)
    found = [torch.zeros(0, dtype=torch.float64)]
    for part in picked.split(step) if len(known) else ():
        scores = torch.zeros(len(part), len(known))
        if scored.any():
            scores[:, scored] = learned.of_all(*some_rows(inputs, part, len(batch.rows)))[:, place[scored]]
        among = {name: one[part].padded(own[part]) for name, one in beside.items()}
        found.append(places(scores, own[part], among.get(SEEN), known, among.get(CANDIDATES)))
    slices = torch.zeros_like(own) if batch.slices is None else batch.slices
    group = batch.rows if batch.groups is None else batch.groups
    return batch.rows[picked], torch.cat(found), slices[picked], group[picked]
