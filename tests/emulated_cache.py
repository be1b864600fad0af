"""A GPU cache in front of tables in host memory, emulated on a CPU, where fbgemm has none.

Planner, sharding, pipeline and state dicts are the real ones, and so are fbgemm's lookup and fused update on the CPU.
What is emulated is where rows are: fbgemm's CPU operators work on `weights_host`, which stands for the GPU's
cache here, while what is saved and loaded is the memory behind it. A row is right in one of the two alone, and not a
number where it is in neither. As in fbgemm's `_prefetch`, `flush`, `reset_cache_states` and backward hooks, a batch's
rows are fetched ahead and locked until its backward pass, the least recently used unlocked line makes room, and a row
that finds no room is read and updated behind the cache.
"""

import contextlib
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar
from unittest import mock

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torchrec.distributed import batched_embedding_kernel
from torchrec.distributed.types import CacheParams

from livetrain.trainers.train import planning

Key = tuple[int, int]  # table, row


class EmulatedCache(SplitTableBatchedEmbeddingBagsCodegen):
    """fbgemm's group of tables, behind a cache if it is one of `cached`, which must not be empty for a whole group."""

    cached: ClassVar[set[str]] = set()
    part: ClassVar[float] = 1.0

    def __init__(self, *args, table_names: list[str], **kwargs) -> None:
        self._behind = None
        super().__init__(*args, table_names=table_names, **kwargs)
        if not self.cached & set(table_names):
            return
        self._lines = [table.data for table in super().split_embedding_weights()]  # autograd sees no move of rows
        self._behind = [table.clone() for table in self._lines]
        for table in self._lines:
            table.fill_(float("nan"))
        self.room = max(round(self.part * sum(map(len, self._lines))), 1)
        self.lxu_cache_weights = torch.zeros(self.room)
        self.lines: dict[Key, None] = {}  # the least recently used first
        self.locks: Counter[Key] = Counter()
        self.hits = self.misses = 0
        self._fetched: deque[tuple[set[Key], set[Key]]] = deque()  # of batches not yet looked up: rows, and those held
        self._looked_up: tuple[set[Key], set[Key]] = set(), set()
        self._through: set[Key] = set()  # rows that an update reaches behind the cache
        self.register_full_backward_pre_hook(self._update_cache_counter_and_locations)

    def split_embedding_weights(self) -> list[torch.Tensor]:
        return super().split_embedding_weights() if self._behind is None else self._behind

    def prefetch(self, indices, offsets, forward_stream=None, batch_size_per_feature_per_rank=None) -> None:
        self._prefetch(indices, offsets)

    def _prefetch(self, indices, offsets, *args, **kwargs) -> None:
        if self._behind is None:
            return super()._prefetch(indices, offsets, *args, **kwargs)
        self._settle()
        self.timesteps_prefetched.append(0)
        rows, held = self._rows(indices, offsets), set()
        for key in sorted(rows):
            if key in self.lines or self._has_room():
                if key not in self.lines:
                    self._lines[key[0]][key[1]] = self._behind[key[0]][key[1]]
                self.lines.pop(key, None)
                self.lines[key] = None
                self.locks[key] += 1
                held.add(key)
        self.hits, self.misses = self.hits + len(held), self.misses + len(rows) - len(held)
        return self._fetched.append((rows, held))

    def _rows(self, indices, offsets) -> set[Key]:
        features = len(self.feature_table_map)
        bounds = offsets[:: (len(offsets) - 1) // features].tolist() if len(offsets) > 1 else [0] * (features + 1)
        return {
            (table, row)
            for table, start, end in zip(self.feature_table_map, bounds, bounds[1:], strict=False)
            for row in indices[start:end].tolist()
        }

    def _has_room(self) -> bool:
        if len(self.lines) < self.room:
            return True
        oldest = next((key for key in self.lines if not self.locks[key]), None)
        if oldest is None:
            return False
        self._write_back(oldest)
        self._lose(oldest)
        return True

    def _write_back(self, key: Key) -> None:
        self._behind[key[0]][key[1]] = self._lines[key[0]][key[1]]

    def _lose(self, key: Key) -> None:
        self.lines.pop(key, None)
        self._lines[key[0]][key[1]] = float("nan")

    def _settle(self) -> None:
        """Do what the last update did behind the cache."""
        for key in self._through:
            if key not in self.lines:
                self._write_back(key)
                self._lose(key)
        self._through = set()

    def forward(self, indices, offsets=None, *args, **kwargs):
        if self._behind is not None:
            self._settle()
            if not self._fetched:
                self._prefetch(indices, offsets)
            self._looked_up = self._fetched.popleft()
            assert self._looked_up[0] == self._rows(indices, offsets)  # what was fetched for this batch
            for table, row in self._looked_up[0] - self.lines.keys():
                self._lines[table][row] = self._behind[table][row]
        return super().forward(indices, offsets, *args, **kwargs)

    def _update_cache_counter_and_locations(self, module, grad_input) -> None:
        rows, held = self._looked_up
        for key in held:
            self.locks[key] -= 1
            assert self.locks[key] >= 0
        self._looked_up, self._through = (set(), set()), rows - self.lines.keys()

    def _sync_stream_post_backward(self, grad) -> None:
        pass

    def flush(self) -> None:
        if self._behind is not None:
            self._settle()
            for key in self.lines:
                self._write_back(key)

    def reset_cache_states(self) -> None:
        if self._behind is not None:
            assert not self._fetched  # or a batch under way would read what is no longer there
            self._settle()
            for key in list(self.lines):
                self._lose(key)

    def locked(self) -> int:
        """Return how many lines can make no room."""
        return sum(count > 0 for count in self.locks.values())


@contextlib.contextmanager
def cache(*tables: str, part: float = 0.5) -> Iterator[None]:
    """Put tables of models that are sharded within behind a cache.

    Args:
        tables: their names, of which at least one is sharded.
        part: of a group of tables' rows that the cache holds.
    """
    agree, for_torchrec = planning.agree, planning.for_torchrec

    def agreed(*given):
        plan = agree(*given)
        behind = {n: replace(at, kernel=planning.CACHED) if n in tables else at for n, at in plan.tables.items()}
        return replace(plan, tables=behind)

    def prepared(*given):
        plan = for_torchrec(*given)
        for collection in plan.plan.values():
            for how in collection.values():
                how.cache_params = CacheParams(load_factor=part, prefetch_pipeline=True)
        return plan

    with (
        mock.patch.object(planning, "agree", agreed),
        mock.patch.object(planning, "for_torchrec", prepared),
        mock.patch.object(EmulatedCache, "cached", set(tables)),
        mock.patch.object(EmulatedCache, "part", part),
        mock.patch.object(batched_embedding_kernel, "SplitTableBatchedEmbeddingBagsCodegen", EmulatedCache),
    ):
        yield
