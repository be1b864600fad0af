"""Items of a catalogue that all rows of a training step are compared with: rows of an item and nothing else.

They stand behind the rows of a batch, in `Batch.ids` and `Batch.dense` alone, so that nothing counts them as rows.
Which they are depends on (train.seed, epoch, step, number of the draw): they are the same on any number of ranks.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.mixing import mix, uniform
from livetrain.trainers.data.read.decode import Decoder
from livetrain.trainers.data.read.negatives import Negatives, item_feature
from livetrain.trainers.data.read.records import Block, Slice
from livetrain.trainers.data.read.source import Source

_SALT = 0x5EED  # so that no row's own draws are these


class Shared:
    """A rank's part of the items that the rows of a step share: every `world`-th of them, filled up with rows of none.

    Args:
        recipe: the run; its `data.negatives` says `shared`.
        negatives: the catalogue.
        source: the training split.
        decoder: of its rows.
        rank: of this worker.
        world: number of workers.
    """

    def __init__(
        self, recipe: Recipe, negatives: Negatives, source: Source, decoder: Decoder, rank: int, world: int
    ) -> None:
        section = recipe.data.negatives
        assert section is not None  # the caller asks
        assert section.shared is not None
        self._key, self._negatives, self._decoder = item_feature(recipe), negatives, decoder
        self._schema, self._seed = source.schema, recipe.train.seed
        self._all = section.shared == "all"
        self._count = len(negatives) if section.shared == "all" else section.shared
        self._own = np.arange(rank, self._count, world)  # numbers of this rank's
        self._rows = -(-self._count // world)
        chances = negatives.chances
        share = np.full(len(negatives), 1 / len(negatives)) if chances is None else chances.of / chances.of.sum()
        self._often = (np.ones(len(negatives)) if self._all else self._count * share).astype(np.float32)
        self._whole: Block | None = None

    def block(self, epoch: int, step: int) -> Block:
        """Return the rows of one step, behind those of the split."""
        if not self._all:
            return self._decoded(self._draw(epoch, step), step)
        if self._whole is None:
            self._whole = self._decoded(self._own, step)
        return replace(self._whole, first=step)

    def _draw(self, epoch: int, step: int) -> np.ndarray:
        bits = mix(np.array([self._seed ^ _SALT], np.uint64))
        for number in (epoch, step):
            bits = mix(bits ^ np.uint64(number))
        share, items = uniform(mix(bits ^ self._own.astype(np.uint64))), len(self._negatives)
        if self._negatives.chances is None:
            return np.minimum((share * items).astype(np.int64), items - 1)
        none, whole = np.zeros(len(share), np.int64), np.full(len(share), items)
        return self._negatives.chances.within(none, whole, share)

    def _decoded(self, items: np.ndarray, step: int) -> Block:
        missing = self._rows - len(items)
        chosen = pa.array(np.append(items, np.zeros(missing, np.int64)), mask=np.arange(self._rows) >= len(items))
        columns = [
            self._negatives.items[name].take(chosen)
            if name in self._negatives.items
            else pa.nulls(self._rows, self._schema.field(name).type)
            for name in self._decoder.columns
        ]
        table = pa.table(columns, names=self._decoder.columns)
        rows = Slice(self._decoder.decode(table, 0, "data.negatives.catalogue"), 0, self._rows)
        return self._decoder.block(step, [rows], None, np.array([0, self._rows]))

    def behind(self, batch: Batch) -> Batch:
        """Return a batch whose last rows are `block`'s as one that has them as items alone."""
        rows = len(batch.rows) - self._rows
        part = batch.ids[self._key]
        ids, lengths = part.values().numpy(), part.lengths().numpy()
        found = self._negatives.find(ids)
        often = np.zeros(len(lengths), np.float32)
        often[lengths > 0] = np.where(found >= 0, self._often[found], 0)

        def own(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x[:rows]

        return replace(
            batch,
            labels=batch.labels[:rows],
            weights=batch.weights[:rows],
            rows=batch.rows[:rows],
            sample_weights=own(batch.sample_weights),
            task_groups=own(batch.task_groups),
            often=torch.from_numpy(often),
        )
