"""Made-up rows of a recipe: what a step is counted on."""

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch

EACH = 16  # rows that repeat: their lists are together as long as lists are in the mean, to 1/16 of an id


def made_up(recipe: Recipe, rows: int, lengths: dict[str, float]) -> Batch:
    """Return a batch of B rows with as many ids as the recipe's rows have in the mean, every EACH rows alike.

    Args:
        recipe: says what a row has.
        rows: B, a multiple of EACH.
        lengths: mean ids per row of each feature whose carrier is ids.

    Example:
        >>> from livetrain.configs.load import load_recipe
        >>> recipe = load_recipe("configs/recipes/din_ml1m.yaml")
        >>> lengths = {name: 2.25 if feature.lists else 1.0 for name, feature in recipe.features.items()}
        >>> batch = made_up(recipe, 32, lengths)
        >>> batch.ids["history"].lengths().tolist()[:18], batch.labels.shape
        ([3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3], torch.Size([32, 1]))
    """
    keyed = {name: feature for name, feature in recipe.features.items() if feature.carrier == "ids"}
    counts = {name: round(EACH * lengths[name]) for name in keyed}  # of EACH rows
    place = torch.arange(rows)
    each = [count // EACH + (place % EACH < count % EACH).long() for count in counts.values()]
    total = sum(counts.values()) * rows // EACH
    ids = KeyedJaggedTensor(
        keys=list(keyed),
        values=torch.randint(2**31, (total,)),
        weights=torch.ones(total) if any(feature.weighted for feature in keyed.values()) else None,
        lengths=torch.cat([place[:0], *each]),
        stride=rows,
        length_per_key=[count * rows // EACH for count in counts.values()],
    )
    labels = torch.randint(2, (rows, len(recipe.tasks))).float()
    beside = {name: recipe.beside(name) for name, feature in keyed.items() if feature.carried}
    vectors = sum(counts[name] * rows // EACH * found[1] for name, found in beside.items() if found)
    groups = len(set(recipe.groups().values()))
    return Batch(
        ids=ids,
        dense=torch.randn(rows, sum(f.numbers for f in recipe.features.values() if f.carrier == "numbers")),
        labels=labels,
        weights=torch.ones(rows),
        rows=place,
        sample_weights=torch.ones_like(labels) if any(task.sample_weight for task in recipe.tasks.values()) else None,
        task_groups=(place // 8).unsqueeze(1).expand(rows, groups).contiguous() if groups else None,
        vectors=torch.zeros(vectors) if beside else None,
    )
