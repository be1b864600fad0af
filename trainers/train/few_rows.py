"""What more rows per GPU would gain: below a few thousand a GPU mostly waits for its host to launch kernels.

Both figures are estimates and no measurements: they come from counting operators and bytes of din_ml1m's step, see
docs/guide/batch.md. A step of n rows takes about LAUNCHES_S + n / ROWS_PER_S seconds on one H200.
"""

from livetrain.configs.schema import Recipe

FEW = 4096  # rows of one GPU's part of a step
LAUNCHES_S = 0.006  # 5 to 7 ms, however many rows
ROWS_PER_S = 14e6  # the rows' own work, kernel by kernel


def rows_per_s(rows: float) -> float:
    """Return about how many rows per second one GPU trains on, at so many per step.

    Example:
        >>> [round(rows_per_s(rows), -4) for rows in (24, 1536, 4096, 98_304)]
        [0.0, 250000.0, 650000.0, 7550000.0]
    """
    return rows / (LAUNCHES_S + rows / ROWS_PER_S)


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
    gain = rows_per_s(wanted * candidates) / rows_per_s(own)
    return (
        f"data.batch_size: {rows:,} rows per step are {own:,.0f} per GPU, and a step's launches take 5 to 7 ms however "
        f"many there are; by an estimate {wanted * candidates:,} per GPU (data.batch_size_per_worker: {wanted}) would "
        f"train {gain:.1f} times as many rows per second, on fewer and larger steps: see docs/guide/batch.md"
    )
