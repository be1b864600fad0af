"""What more rows per GPU would gain: below a few thousand a GPU mostly waits for its host to launch kernels.

All figures are estimates and no measurements: they come from counting operators and bytes of din_ml1m's step, eager and
compiled, see docs/guide/batch.md. On one H200 a step of n rows takes about launches + n / speed seconds.
"""

import torch

from livetrain.configs.schema import Recipe
from livetrain.trainers.train import compiled_dense

FEW = 4096  # rows of one GPU's part of a step
# By whether the network is compiled: seconds of launches, however many rows; the rows' own work per second; in words.
EAGER, COMPILED = (0.006, 14e6, "5 to 7 ms"), (0.0022, 32e6, "about 2 ms")


def rows_per_s(rows: float, compiled: bool) -> float:
    """Return about how many rows per second one GPU trains on, at so many per step.

    Example:
        >>> [round(rows_per_s(rows, compiled=False), -4) for rows in (24, 1536, 4096, 98_304)]
        [0.0, 250000.0, 650000.0, 7550000.0]
        >>> [round(rows_per_s(rows, compiled=True), -4) for rows in (24, 1536, 4096, 98_304)]
        [10000.0, 680000.0, 1760000.0, 18650000.0]
    """
    launches, speed, _ = COMPILED if compiled else EAGER
    return rows / (launches + rows / speed)


def advice(recipe: Recipe, world: int, device: str) -> str | None:
    """Return what a run on GPUs with few rows on each is told, or None where they have enough, and on CPUs.

    Args:
        recipe: the run; of requests each has as many rows as data.candidates.
        world: number of workers.
        device: cuda, one for each worker, or cpu.

    Example:
        >>> from livetrain.configs.load import load_recipe
        >>> recipe = load_recipe("configs/recipes/din_ml1m.yaml", cluster={"workers": 64})
        >>> "1,536 rows per step are 24 per GPU" in advice(recipe, 64, "cuda")
        True
        >>> advice(load_recipe(recipe, data={"batch_size_per_worker": 4224}), 64, "cuda") is None
        True
    """
    candidates = recipe.data.candidates or 1
    rows = recipe.data.batch_size * candidates
    own = rows / world
    if own >= FEW or device != "cuda":
        return None
    shards = max(recipe.data.shards // world, 1)
    wanted = -(-FEW // (candidates * shards)) * shards
    compiled = compiled_dense.wanted(recipe, torch.device(device))
    gain = rows_per_s(wanted * candidates, compiled) / rows_per_s(own, compiled)
    launches = (COMPILED if compiled else EAGER)[-1]
    return (
        f"data.batch_size: {rows:,} rows per step are {own:,.0f} per GPU, and a step's launches take {launches} "
        f"however many there are; by an estimate {wanted * candidates:,} per GPU "
        f"(data.batch_size_per_worker: {wanted}) would train {gain:.1f} times as many rows per second, on fewer and "
        "larger steps: see docs/guide/batch.md"
    )
