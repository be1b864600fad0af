"""Steps of a run in this process, on batches that are in memory, for benchmarks that time them."""

from collections.abc import Callable
from itertools import cycle, islice

import torch

from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.train import compiled_layers
from livetrain.trainers.train.loss import Output
from livetrain.trainers.train.sharding import shard


def steps(recipe: Recipe, batches: int) -> Callable[[], Output]:
    """Return what takes a training step on the next of a run's first batches, again and again, on a CPU.

    With the compiled passes that a run has, in a group of ranks such as `ranks.alone`.
    """
    sharded = shard(recipe, torch.device("cpu"))
    compiled_layers.enable(sharded.model, torch.device("cpu"))
    sharded.module.train()
    sharded.set_rates(0.1)
    reader = Reader(Source.open(recipe, "train"), recipe, rank=0, world=1, shuffle=True)
    feed = cycle(list(islice(reader.batches(0), batches)))
    return lambda: sharded.pipeline.progress(feed)
