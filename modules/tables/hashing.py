"""Ids of any int64 value become table rows, inside the model, so that training and serving cannot disagree."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def mix(ids: Tensor) -> Tensor:
    """Spread ids evenly over [0, 2**63): splitmix64's finaliser with its sign bit cleared.

    z = (z ^ (z >>> 30)) * 0xBF58476D1CE4E5B9;  z = (z ^ (z >>> 27)) * 0x94D049BB133111EB;  z = z ^ (z >>> 31)

    All arithmetic wraps at 64 bits. `>>>` is the logical shift; torch's is arithmetic, so the copies of the sign bit
    are masked away. 0 maps to 0.

    Args:
        ids: any shape, int64.

    Returns:
        The mixed ids, same shape, int64, non-negative; the same on every device.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (variant 13 of Stafford).
    """
    z = (ids >> 30).bitwise_and_(0x3FFFFFFFF).bitwise_xor_(ids).mul_(-0x40A7B892E31B1A47)
    z = (z >> 27).bitwise_and_(0x1FFFFFFFFF).bitwise_xor_(z).mul_(-0x6B2FB644ECCEEE15)
    return (z >> 31).bitwise_and_(0x1FFFFFFFF).bitwise_xor_(z).bitwise_and_(0x7FFFFFFFFFFFFFFF)


def row(ids: Tensor, rows: int, modulo: bool) -> Tensor:
    """Return the table row of every id: `ids mod rows`, or `mix(ids) mod rows`.

    row(id, k * rows) mod rows = row(id, rows): a table that grows by an integer factor k splits its rows, and every
    new row can start as a copy of the one its ids come from.

    Args:
        ids: any shape, int64.
        rows: rows of the table.
        modulo: take the plain remainder (ids that already are 0..rows-1 keep their places).

    Returns:
        Rows in [0, rows), same shape, int64; negative ids included.
    """
    return (ids if modulo else mix(ids)).remainder(rows)


class IdHash(nn.Module):
    """Replace the ids of every feature by rows of its table; a module without parameters, called once a batch.

    Args:
        keys: the features, in the order of the KeyedJaggedTensor.
        rows: rows of each feature's table.
        modulo: whether each feature takes the plain remainder instead of the mixing hash (see `row`).
        maps: of the features whose ids are looked up in a map instead: its name, and the map, ids (N,) -> rows (N,);
            features may share one. See modules.tables.ids.

    Attributes:
        owners: what finds the rows of ids that other ranks look after, where ids get rows online: ids (N,) by table ->
            rows (N,) by table. See trainers.train.online.
        afar: of which features.
    """

    keys: list[str]
    rows: list[int]
    modulo: list[bool]
    mapped: list[str]
    afar: list[bool]

    def __init__(
        self,
        keys: list[str],
        rows: list[int],
        modulo: list[bool],
        maps: Mapping[str, tuple[str, nn.Module]] | None = None,
    ) -> None:
        super().__init__()
        if not len(keys) == len(rows) == len(modulo):
            raise ValueError(
                f"{len(keys)} keys, {len(rows)} row counts and {len(modulo)} flags: each needs one per feature"
            )
        self.keys = list(keys)
        self.rows = list(rows)
        self.modulo = list(modulo)
        self.mapped = [f"of_{maps[key][0]}" if maps and key in maps else "" for key in keys]
        self.afar = [False for _ in keys]
        self.owners: Any = None  # a script has none
        self.maps = nn.ModuleDict({f"of_{name}": each for name, each in (maps or {}).values()})

    @torch.jit.unused
    def send_to(self, owners: Callable[[dict[str, Tensor]], dict[str, Tensor]], tables: Collection[str]) -> None:
        """Let others find the rows of some tables' ids from now on."""
        self.owners = owners
        self.afar = [mapped.removeprefix("of_") in tables for mapped in self.mapped]

    @torch.jit.unused
    def _ask(self, ids: Tensor, ends: list[int], hashed: Tensor) -> None:
        """Write the rows of ids that others look after, all of a batch in one exchange."""
        if self.owners is None:
            return
        places: dict[str, list[slice]] = {}
        for i, mapped in enumerate(self.mapped):
            if self.afar[i]:
                places.setdefault(mapped.removeprefix("of_"), []).append(slice(ends[i], ends[i + 1]))
        found = self.owners({name: torch.cat([ids[each] for each in of]) for name, of in places.items()})
        for name, of in places.items():
            for place, rows in zip(of, found[name].split([each.stop - each.start for each in of]), strict=True):
                hashed[place] = rows

    def forward(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Hash one batch.

        Args:
            features: raw ids; its keys are the constructor's, in that order.

        Returns:
            The same lengths with rows as values; weights are not hashed, and stay behind.

        Raises:
            ValueError: the keys are others.
        """
        if features.keys() != self.keys:
            raise ValueError(f"the hash was built for the features {self.keys}, this batch has {features.keys()}")
        ids = features.values()
        hashed = mix(ids)
        # On CUDA this waits for the lengths once; the all-to-all needs the same numbers, so they are handed on.
        ends = features.offset_per_key()
        for i, rows in enumerate(self.rows):
            place = slice(ends[i], ends[i + 1])
            if self.mapped[i] == "":
                torch.remainder((ids if self.modulo[i] else hashed)[place], rows, out=hashed[place])
            for name, each in self.maps.items():
                if name == self.mapped[i] and not self.afar[i]:
                    hashed[place] = each(ids[place])
        if not torch.jit.is_scripting():
            self._ask(ids, ends, hashed)
        return KeyedJaggedTensor(
            keys=features.keys(),
            values=hashed,
            lengths=features.lengths_or_none(),
            offsets=features.offsets_or_none(),
            stride=features.stride(),
            length_per_key=features.length_per_key(),
            offset_per_key=ends,
        )
