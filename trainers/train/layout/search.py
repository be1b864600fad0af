"""Which way every table is laid over the ranks, and on which: such that all have room, and the busiest has least to do.

A way is made of pieces, each of them shards that lie together: on one rank, on all ranks of one node, or on all ranks.
Tables are laid one by one, the heaviest first, each piece where the ranks that it comes to are least busy (longest
processing time first: Graham, Bounds on multiprocessing timing anomalies, 1969). A table that is laid whole cannot be
lighter on its rank than it is, and one that is split takes part in everybody's exchange, so how many of the heaviest
are split is tried out: from none, where all lie whole that can, to all. Nothing is drawn, and ties go by rank and by
name, so that the same tables are laid the same way by every process.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_EVEN = 0.05  # part of the busiest rank's work that an exchange less, or evener memory, is worth
_EACH = 16  # heaviest tables after which fewer numbers of split tables are tried
_GROWTH = 1.3


@dataclass(frozen=True, eq=False)
class Piece:
    """Shards of a table that lie together.

    Args:
        load: (n,) seconds of each shard per step; n is 1, the number of a node's ranks, or that of all.
        taken: (n, 2) bytes of each in GPU and in host memory.
    """

    load: np.ndarray
    taken: np.ndarray


@dataclass(frozen=True, eq=False)
class Way:
    """One way to lay a table.

    Args:
        sharding: its name.
        pieces: at least one.
        exchange: ways of the same exchange share their collectives.
    """

    sharding: str
    pieces: list[Piece]
    exchange: str


@dataclass(frozen=True, eq=False)
class Laid:
    """Where a table lies.

    Args:
        way: how.
        ranks: of each shard, piece by piece.
    """

    way: Way
    ranks: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where all tables lie.

    Args:
        tables: by name.
        load: (world,) seconds of each rank per step.
    """

    tables: dict[str, Laid]
    load: np.ndarray


def lay(tables: Mapping[str, Sequence[Way]], room: np.ndarray) -> Layout | None:
    """Lay tables over ranks; see above.

    Args:
        tables: each one's ways, the one that takes the fewest ranks first.
        room: (world, 2) bytes that each rank has in GPU and in host memory.

    Returns:
        None where no layout was found in which everything has room.

    Example:
        >>> ten = np.array([10.0])
        >>> whole = Way("table_wise", [Piece(ten, np.ones((1, 2)))], "whole")
        >>> split = Way("row_wise", [Piece(np.repeat(ten / 2, 2), np.ones((2, 2)))], "rows")
        >>> found = lay({"a": [whole, split], "b": [whole, split], "c": [whole, split]}, np.full((2, 2), 9.0))
        >>> [(laid.way.sharding, laid.ranks) for laid in found.tables.values()]
        [('row_wise', (0, 1)), ('row_wise', (0, 1)), ('row_wise', (0, 1))]
    """
    found: list[tuple[float, int, Layout]] = []
    near = np.inf
    for order in _orders(tables, room):
        for split in (*_numbers(len(order)), None):
            layout = _laid(tables, order, split, room, near)
            if layout is not None:
                busiest = float(layout.load.max())
                near = min(near, busiest * (1 + _EVEN))
                found.append((busiest, len({laid.way.exchange for laid in layout.tables.values()}), layout))
    good = [one for one in found if one[0] <= near]
    return min(good, key=lambda one: (one[1], one[0]))[2] if good else None


def _orders(tables: Mapping[str, Sequence[Way]], room: np.ndarray) -> Iterator[list[str]]:
    """Yield the names by what is heaviest of each, work or memory, as a part of all; and by memory alone."""
    loads = {name: sum(float(piece.load.sum()) for piece in ways[0].pieces) for name, ways in tables.items()}
    sizes = {name: sum(piece.taken.sum(axis=0) for piece in ways[0].pieces) for name, ways in tables.items()}
    work, memory = sum(loads.values()) or 1.0, np.maximum(room.sum(axis=0), 1.0)
    filled = {name: float((size / memory).max()) for name, size in sizes.items()}
    yield sorted(tables, key=lambda name: (-loads[name] / work, -filled[name], name))
    yield sorted(tables, key=lambda name: (-filled[name], -loads[name], name))


def _numbers(tables: int) -> list[int]:
    """Return how many of the heaviest tables to split: every number of a few, and then fewer of many."""
    found, number = [*range(min(tables, _EACH) + 1)], float(_EACH)
    while (number := number * _GROWTH) < tables:
        found.append(int(number))
    return [*dict.fromkeys([*found, tables])]


def _laid(
    tables: Mapping[str, Sequence[Way]], order: list[str], split: int | None, room: np.ndarray, most: float
) -> Layout | None:
    """Lay tables in an order, the first `split` of them in any way but their first one, if they have another.

    Where `split` is None each is laid in the way that is best for it, given those before it. None comes of it where
    something finds no room, or a rank would have more than `most` to do.
    """
    load, out = np.zeros(len(room)), dict[str, Laid]()
    for place, name in enumerate(order):
        ways = list(tables[name])
        tried = [ways] if split is None else [ways[1:] or ways] if place < split else [ways[:1], ways[1:]]
        laid = _least(tried, load, room)
        if laid is None or laid[1].max() > most:
            return None
        out[name], load, room = laid
    return Layout({name: out[name] for name in tables}, load)


def _least(
    tried: Sequence[Sequence[Way]], load: np.ndarray, room: np.ndarray
) -> tuple[Laid, np.ndarray, np.ndarray] | None:
    """Lay a table in the way after which the busiest rank has least to do, of the first ways of which one has room."""
    for ways in tried:
        placed = [one for way in ways if (one := _placed(way, load, room)) is not None]
        if placed:
            return min(placed, key=lambda one: float(one[1].max()))
    return None


def _placed(way: Way, load: np.ndarray, room: np.ndarray) -> tuple[Laid, np.ndarray, np.ndarray] | None:
    load, room, ranks = load.copy(), room.copy(), list[int]()
    for piece in way.pieces:
        n = len(piece.load)
        busy, free = load.reshape(-1, n) + piece.load, room.reshape(-1, n, 2) - piece.taken
        fits = (free >= 0).all(axis=(1, 2))
        if not fits.any():
            return None
        most = np.where(fits, busy.max(axis=1), np.inf)
        near = most <= most.min() * (1 + _EVEN)
        first = n * int(np.where(near, free.min(axis=1).sum(axis=1), -np.inf).argmax())  # with most memory left
        load[first : first + n], room[first : first + n] = busy[first // n], free[first // n]
        ranks += range(first, first + n)
    return Laid(way, tuple(ranks)), load, room
