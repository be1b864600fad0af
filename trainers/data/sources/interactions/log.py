"""Who took which item, and when: the one form that files of interactions are read into, whatever theirs is.

Users and items are numbered from 0 in the order of their ids, integers by their size and strings by their letters, so
that the numbers depend on which ids there are and not on the order of the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livetrain.configs.errors import BadInput


@dataclass(frozen=True)
class Events:
    """N events as a file has them, in its order.

    Args:
        name: of the file, for messages.
        user, item: (N,) ids, integers or strings, without nulls.
        time: (N,) int64 microseconds, None where the file has none.
        value: (N,) numbers, such as ratings, None where the file has none.
    """

    name: str
    user: pa.Array
    item: pa.Array
    time: np.ndarray | None = None
    value: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Listed:
    """The items among which a test item is ranked: of each of U users some, C in all.

    Args:
        name: of the file, for messages.
        user, item: (U,) whose test event it is.
        offsets: (U + 1,) where each user's negatives lie in `negatives`.
        negatives: (C,) ids of items.
    """

    name: str
    user: pa.Array
    item: pa.Array
    offsets: np.ndarray
    negatives: pa.Array


@dataclass(frozen=True)
class Names:
    """The ids of M users or items, by their numbers.

    Args:
        ids: (M,) as the file has them, rising.
        columns: of M rows: what else is known of each.
    """

    ids: pa.Array
    columns: pa.Table = field(default_factory=lambda: pa.table({}))

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, values: pa.Array) -> np.ndarray:
        """Return the numbers of ids, -1 of those that are none."""
        found = pc.index_in(_like(values, self.ids.type), self.ids)
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    def beside(self, table: pa.Table, key: str, file: str) -> "Names":
        """Return the names with the columns of a table, nulls for ids that it lacks.

        Args:
            table: a row per id.
            key: its column of ids.
            file: its name, for messages.

        Raises:
            BadInput: an id stands twice, or the table knows none of them.
        """
        ids = table[key].combine_chunks()
        twice = pc.value_counts(ids)
        again = pc.greater(twice.field("counts"), 1)
        if pc.any(again).as_py():
            one = twice.field("values").filter(again)[0].as_py()
            raise BadInput(f"{file}: '{one}' stands twice in column '{key}'; keep one row of each")
        places = pc.index_in(self.ids, _like(ids, self.ids.type))
        if places.null_count == len(self.ids):
            raise BadInput(f"{file}: none of its '{key}' is in the interactions; name the column that holds their ids")
        return Names(self.ids, table.drop_columns([key]).take(places).combine_chunks())


def _like(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return ids with the type that others have; null where one has none."""
    if pa.types.is_integer(kind) and not pa.types.is_integer(values.type):
        digits = pc.match_substring_regex(values, r"^-?[0-9]{1,18}$")
        return pc.if_else(digits, values, None).cast(pa.int64())
    return values.cast(kind)


def named(parts: Sequence[pa.Array]) -> Names:
    """Return the names of all ids of some columns: as integers where each of them is one, written as integers are.

    >>> named([pa.array(["10", "9"]), pa.array(["9"])]).ids.to_pylist()
    [9, 10]
    >>> named([pa.array(["10", "09"])]).ids.to_pylist()
    ['09', '10']
    """
    whole = all(pa.types.is_integer(part.type) for part in parts)
    seen = [pc.unique(part.cast(pa.int64() if whole else pa.string())) for part in parts]
    ids = pc.unique(pa.chunked_array(seen))
    if not whole and pc.all(pc.match_substring_regex(ids, r"^(0|-?[1-9][0-9]{0,17})$")).as_py():
        ids = ids.cast(pa.int64())
    return Names(ids.take(pc.sort_indices(ids)))


def listed_of(listed: Listed, users: Names, items: Names, tested: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the negatives of each user, by their numbers.

    Args:
        listed: as the file has them.
        users, items: all of them.
        tested: (M,) number of each user's test item, -1 without one.

    Returns:
        (M + 1,) offsets and (C,) numbers of items.

    Raises:
        BadInput: a user stands twice, has no test event or another one, or is missing.
    """
    user, item = users.find(listed.user), items.find(listed.item)
    for row in np.flatnonzero((user < 0) | (tested[user] != item))[:1]:
        raise BadInput(
            f"{listed.name}, row {row + 1}: ({listed.user[row]},{listed.item[row]}) is not that user's test event; "
            "name the files of one data set"
        )
    counts = np.bincount(user, minlength=len(users))
    for one in np.flatnonzero(counts > 1)[:1]:
        raise BadInput(f"{listed.name}: user {users.ids[one]} stands twice; keep one row of each")
    for one in np.flatnonzero((counts == 0) & (tested >= 0))[:1]:
        raise BadInput(
            f"{listed.name}: user {users.ids[one]} has a test event and no row; add it, or name another file"
        )
    order = np.argsort(user, kind="stable")
    lengths = np.zeros(len(users), np.int64)
    lengths[user] = np.diff(listed.offsets)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    taken = np.arange(offsets[-1]) + np.repeat(listed.offsets[:-1][order] - offsets[user[order]], lengths[user[order]])
    return offsets, items.find(listed.negatives)[taken]
