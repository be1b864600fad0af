"""What a run of a fitted model that ranks fits, measures and tells."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from livetrain.configs.schema import Recipe
from livetrain.modules.features.carriers import Carried
from livetrain.modules.fitted import FittedRanker, State
from livetrain.modules.tasks.registry import kinds
from livetrain.modules.trees.scorer import Ranker
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.evaluate.evaluation import Evaluation
from livetrain.trainers.evaluate.intervals import Bootstrap
from livetrain.trainers.export.rows import inputs_of
from livetrain.trainers.fitted.rows import passes
from livetrain.trainers.train.loop import Job, Tell


def fit(model: FittedRanker, job: Job, scratch: Path, before: State | None) -> State:
    """Return what a model learns of the training split, with files in `scratch` while it does."""
    train, valid = (passes(job.sources[split], job.recipe) for split in ("train", "valid"))
    return model.fit(train, valid, scratch, before)


def sizes(model: FittedRanker, found: nn.Module, state: State) -> dict[str, int]:
    """Return what result.json tells of how large the model is."""
    return model.sizes(state)


def told(sizes: dict[str, int]) -> str:
    """Return a line of the run's log on how large the model is."""
    return ", ".join(f"{count:,} {name}" for name, count in sizes.items())


def measure(
    learned: Ranker,
    recipe: Recipe,
    sources: Mapping[str, Source],
    split: str,
    draws: int,
    tell: Tell = lambda what, done, of: None,
) -> tuple[dict[str, float], Evaluation]:
    """Return the metrics of a split, and the evaluation that found them.

    Args:
        learned: the model.
        recipe: the run.
        sources: the split.
        split: which.
        draws: of the bootstrap for intervals; 0 for none.
        tell: told how far it is.
    """
    asked = recipe.evaluate
    reader = Reader(sources[split], recipe, rank=0, world=1, shuffle=False, groups=True, slices=True)
    evaluation = Evaluation(
        kinds(recipe.tasks, asked.top),
        memory=asked.memory,
        rows=reader.steps * recipe.data.batch_size * (recipe.data.candidates or 1),
        slices=list(asked.slices),
        bootstrap=Bootstrap(draws),
    )
    sequences = {name: f.limit for name, f in recipe.features.items() if f.form == "sequence"}
    history, widths = max(sequences, key=sequences.__getitem__, default=None), Carried(recipe.features).widths
    with torch.no_grad(), closing(reader.batches(0)) as batches:
        for done, given in enumerate(batches):
            tell(f"scoring {split}", done, reader.steps)
            batch = given.flat(widths)
            logits = learned.logits(*inputs_of(batch, recipe))
            lengths = batch.lists(history).lengths() if history else None
            table = torch.stack([logits[task] for task in recipe.tasks], 1)
            evaluation.update(table, batch.labels, batch.weights, batch.groups, lengths, batch.slices, batch.rows)
    tell("computing the metrics", 0, 0)
    return evaluation.compute(), evaluation
