"""Ids that have rows of their own: a map from ids to rows inside the model, for `hash: table`.

    rows 0 .. 8 b - 1       b buckets of 8 slots; the row of an id is the slot that holds it
    rows 8 b .. rows - 1    shared by all ids that have no slot, by a hash

An id may lie in two buckets, h1(id) mod b and h2(id) mod b, so a lookup compares 16 keys and a table fills up to nine
tenths before ids find no room. h1 is `hashing.mix`, h2 the same of h1 + a constant. All of it is plain operators of
PyTorch: it runs on a GPU, is scripted with the model, and waits for nothing.

Where ids get rows online the buckets are cut into shards of equal size: an id's shard is a third hash of it, and both
of its buckets lie there.

Which ids have slots is settled outside of steps, see modules.tables.admission, or with each of them, see
modules.tables.owner; lookups change nothing.

Source: Azar, Broder, Karlin and Upfal, "Balanced allocations", STOC 1994, for two choices; Dietzfelbinger and Weidling,
"Balanced allocation and dictionaries with tightly packed constant size bins", ICALP 2005, for buckets of several slots.
"""

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Table
from livetrain.modules.tables.hashing import mix
from livetrain.modules.tables.mapped import Room, in_memory

EMPTY = -(2**63)  # the key of a slot that holds no id; that id itself is never admitted


def choices(ids: Tensor, buckets: int, shards: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two buckets of every id, and the hash that chooses its shared row: (N,) int64 each.

    Both buckets lie among the buckets / shards of the id's shard, see `shard_of`.
    """
    first = mix(ids)
    second = mix(first + 0x1E3779B97F4A7C15)  # another stream than h1's; 0 alone would have one bucket twice
    if shards == 1:
        return first.remainder(buckets), second.remainder(buckets), second
    start = shard_of(first, shards) * (buckets // shards)
    return start + first.remainder(buckets // shards), start + second.remainder(buckets // shards), second


def shard_of(mixed: Tensor, shards: int) -> Tensor:
    """Return the shard of ids that were mixed, (N,) int64: of a power of two, by bits that no bucket depends on."""
    return (mixed >> 44).bitwise_and(shards - 1)


def slot_of(equal: Tensor) -> Tensor:
    """Return 1 + the place of the one true entry of each row of (N, 8) bool, int64; 0 where there is none."""
    places = torch.arange(1, 9, dtype=torch.float32, device=equal.device)
    return torch.mv(equal.to(torch.float32), places).to(torch.int64)  # a product is faster than a search


def own_row(ids: Tensor, first: Tensor, second: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Look ids up in the buckets that they may lie in.

    Args:
        ids: (N,) int64.
        first, second: (N,), see `choices`.
        keys: (buckets, 8), contiguous.

    Returns:
        Whether each id has a slot, (N,) bool, and that slot, (N,) int64; of an id without one any number.
    """
    wanted = ids.unsqueeze(1).expand(-1, 8).contiguous()  # written out: compared as it is, it takes longer
    one = slot_of(keys.index_select(0, first) == wanted)
    two = slot_of(keys.index_select(0, second) == wanted)
    there = (one + two > 0).logical_and(ids != -9223372036854775807 - 1)
    return there, torch.where(one > 0, first * 8 + one, second * 8 + two) - 1


class IdMap(nn.Module):
    """Ids -> rows of one table of `hash: table`.

    Args:
        name: the table's, under which its keys are attached where they lie in a file of their own.
        rows: of the table.
        buckets: of 8 rows for admitted ids.
        device: where the keys are.
        shards: of the buckets.

    Attributes:
        keys: (rows,) int64, the id that has each row, `EMPTY` of free and of shared ones. While ids get rows online
            these are a rank's own part, and its owner looks ids up in the place of the map.

    Example:
        >>> import torch
        >>> map = IdMap("room", rows=20, buckets=2)
        >>> map.keys[5] = 77 if int(choices(torch.tensor([77]), 2)[0]) == 0 else 0
        >>> rows = map(torch.tensor([77, 78, 79]))
        >>> bool((rows[1:] >= 16).all()), map.known(rows).tolist()[1:]
        (True, [False, False])
    """

    name: str
    rows: int
    buckets: int
    shards: int
    keys: Tensor

    def __init__(
        self, name: str, rows: int, buckets: int, device: torch.device | str | None = None, shards: int = 1
    ) -> None:
        super().__init__()
        self.name = name
        self.rows = rows
        self.buckets = buckets
        self.shards = shards
        self.register_buffer("keys", torch.full((rows,), EMPTY, dtype=torch.int64, device=device))

    @classmethod
    def of(cls, name: str, table: Table, device: torch.device | str | None = None) -> "IdMap":
        """Return the map of a recipe's table, without ids."""
        return cls(name, table.rows, table.buckets, device, table.shards)

    @torch.jit.unused
    def placed(self, room: Room) -> "IdMap":
        """Return a map of the same ids whose keys lie where `room` gives them place, (rows, 1) under NAME.keys.

        In memory that is this very one.
        """
        if room is in_memory:
            return self
        found = IdMap(self.name, self.rows, self.buckets, "meta", self.shards)
        found.keys = room(f"{self.name}.keys", (self.rows, 1), torch.int64).view(self.rows)
        found.keys.copy_(self.keys)
        return found

    def forward(self, ids: Tensor) -> Tensor:
        """Args: ids (N,) int64 of any value. Returns: rows (N,) int64: an id's own, or the one that it shares."""
        if self.keys.size(0) == 0:
            raise ValueError("tables: '" + self.name + ".keys' lie in a file of their own; attach it before scoring")
        if self.buckets == 0:  # of a table cut small, as a forecast does
            return mix(ids).remainder(self.rows)
        first, second, spread = choices(ids, self.buckets, self.shards)
        there, row = own_row(ids, first, second, self.keys[: 8 * self.buckets].view(self.buckets, 8))
        shared = 8 * self.buckets + spread.remainder(self.rows - 8 * self.buckets)
        return torch.where(there, row, shared)

    def known(self, rows: Tensor) -> Tensor:
        """Args: rows that `forward` returned. Returns: whether each is an id's own, bool."""
        return rows < 8 * self.buckets

    def attach(self, tables: dict[str, Tensor]) -> None:
        """Take the keys from `tables`: (rows, 1) int64 under NAME.keys.

        Raises:
            ValueError: they are missing, or of another table.
        """
        key = self.name + ".keys"
        if key not in tables:
            raise ValueError("tables: '" + key + "' is missing")
        found = tables[key]
        if found.size(0) != self.rows or found.numel() != self.rows or found.dtype != torch.int64:
            raise ValueError("tables: '" + key + "' is another table: " + str(list(found.size())))
        self.keys = found.view(self.rows)
