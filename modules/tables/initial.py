"""Initial rows of embedding tables, whatever the sharding plan."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import xxhash

from livetrain.modules.tables.hashing import mix

_BLOCK = 4096


@dataclass(frozen=True)
class Initial:
    """The initial values of one table, N(0, std^2), as a pure function of (seed, table, row) and the kind of device.

    A shard's rows do not depend on how the table is cut: two shards never repeat each other's rows, a run on any plan
    starts from the same table, and what training has moved can be told at any time. They are drawn where the shard
    lies, 4,096 rows at a time, by that device's generator.

    Args:
        seed: train.seed.
        table: the table's name.
        dim: columns of the whole table.
        std: deviation.
    """

    seed: int
    table: str
    dim: int
    std: float

    def blocks(
        self, rows: range, columns: range, device: torch.device | None = None
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (slice within `rows`, float32 values (len(slice), len(columns))) for a part of the table."""
        device = device or torch.device("cpu")
        for index in range(rows.start // _BLOCK, -(-rows.stop // _BLOCK)):
            first = index * _BLOCK
            start, stop = max(rows.start, first), min(rows.stop, first + _BLOCK)
            key = xxhash.xxh64_intdigest(f"{self.table}/{index}".encode(), seed=self.seed)
            generator = torch.Generator(device).manual_seed(key >> 1)
            block = torch.randn(_BLOCK, self.dim, generator=generator, device=device) * self.std
            yield (
                slice(start - rows.start, stop - rows.start),
                block[start - first : stop - first, columns.start : columns.stop],
            )

    def of_ids(self, ids: torch.Tensor, columns: range) -> torch.Tensor:
        """Return the values that rows of ids begin with, where an id has a row of its own: of (seed, table, id).

        Two numbers that `mix` makes of each (id, column) become a normal one (Box and Muller, 1958).

        Args:
            ids: (n,) int64.
            columns: of the table.

        Returns:
            (n, len(columns)) float32, the same on every device but for rounding.
        """
        key = xxhash.xxh64_intdigest(self.table.encode(), seed=self.seed) >> 1
        cell = mix(ids ^ key).unsqueeze(1) + torch.arange(columns.start, columns.stop, device=ids.device)
        first, second = (mix(mix(cell) + salt) for salt in (1, 2))
        radius = torch.sqrt(-2 * torch.log(((first >> 10).double() + 0.5) * 2.0**-53))
        return (radius * torch.cos(2 * math.pi * 2.0**-53 * (second >> 10).double())).float() * self.std

    def fill(self, shard: torch.Tensor, row: int = 0, column: int = 0) -> None:
        """Write the initial values into a shard (rows, columns) whose first cell is (row, column) of the table."""
        rows, columns = range(row, row + shard.shape[0]), range(column, column + shard.shape[1])
        for where, values in self.blocks(rows, columns, shard.device):
            shard[where].copy_(values)

    def moved(self, shard: torch.Tensor, row: int = 0, column: int = 0) -> int:
        """Return how many rows of a shard differ from their initial values, which are drawn again for it.

        Rows of zeros do not count: fitted kinds leave them for ids without events.
        """
        rows, columns = range(row, row + shard.shape[0]), range(column, column + shard.shape[1])
        parts = self.blocks(rows, columns, shard.device)
        return sum(
            int(((shard[where] != values.to(shard.dtype)).any(dim=1) & shard[where].any(dim=1)).sum())
            for where, values in parts
        )
