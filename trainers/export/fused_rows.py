"""What a run predicts for a split, for what judges a fused score of it."""

import math
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from livetrain.configs.schema import Days
from livetrain.modules.features.carriers import Carried
from livetrain.modules.serving.scorer import Scorer
from livetrain.modules.tables import hashing
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.evaluate.fused import Predicted
from livetrain.trainers.export.export import plain_model
from livetrain.trainers.export.fitted import learned
from livetrain.trainers.export.rows import inputs_of
from livetrain.trainers.runtime import run_folder

MOST = 1 << 21  # rows that are held


def predicted(run: Path, split: str, days: Days | None = None) -> Predicted:
    """Return what a run's best checkpoint predicts for a split, with what judges a fused score.

    All of it is done, and held, in this process: of a split with more than `MOST` rows those of a share of the groups.

    Raises:
        BadInput: the checkpoint or the split is not there, or damaged.
    """
    recipe = run_folder.recipe_of(run)
    if days is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"days": days})})
    source, path = Source.open(recipe, split), run_folder.find_checkpoint(run, "best")
    model = learned(recipe, path) if recipe.model.fitted else Scorer(plain_model(recipe, path), recipe).eval()
    rows = source.rows * (recipe.data.candidates or 1)
    halvings = math.ceil(math.log2(max(rows / MOST, 1)))
    scores: dict[str, list[Tensor]] = {task: [torch.zeros(0)] for task in recipe.answered}
    labels, groups = [torch.zeros(0, len(recipe.tasks))], [torch.zeros(0, dtype=torch.int64)]
    widths = Carried(recipe.features).widths
    reader = Reader(source, recipe, rank=0, world=1, shuffle=False, groups=True)
    with torch.inference_mode(), closing(reader.batches(0)) as batches:
        for given in batches:
            batch = given.flat(widths)
            assert batch.groups is not None  # a fused score has evaluate.group_by
            kept = batch.weights > 0
            if halvings:
                kept &= hashing.mix(batch.groups) % 2**halvings == 0
            for task, found in model(*inputs_of(batch, recipe)).items():
                scores[task].append(found[kept])
            labels.append(batch.labels[kept])
            groups.append(batch.groups[kept])
    joined = {task: torch.cat(parts) for task, parts in scores.items()}
    return Predicted(joined, torch.cat(labels).numpy(), torch.cat(groups).numpy(), 2.0**-halvings)
