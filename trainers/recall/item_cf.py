"""Item CF: the items that users had together with those of a request's history, by cosine or by Swing."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import nn

from livetrain.configs.clock import DAY, HOUR, PER_SECOND, Hours
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import FittedConfig, Recipe
from livetrain.configs.values import Count, FeatureName, PositiveOrZero, Share, Text
from livetrain.modules.fitted import State
from livetrain.modules.recall.fitted import NO_ID, Fitted, Rows, Table, register_fitted, table
from livetrain.modules.recall.keys import HistoryKeys
from livetrain.modules.tables.hashing import mix
from livetrain.trainers.recall.pairs import Sequences, best, cosine_counts, swing_counts, taken

_SPARE = 4  # pairs of an item that are kept for the days to come, in neighbours
_SWING_USERS = 200
_FADED = 0.01  # users of an item, after their decay, below which it is forgotten


class ItemCFConfig(FittedConfig):
    """Items that the same users had."""

    kind: Literal["item_cf"] = "item_cf"
    history: FeatureName = Field(description="sequence feature with the items that a request is answered by")
    similarity: Literal["cosine", "swing"] = "cosine"
    user: Text | None = Field(
        None,
        description="column with the user of a row, whose events are the items of the user's positive rows; by default "
        "each row is a user, with the items of its history and then its own",
    )
    time: Text | None = Field(None, description="column with the time of a row")
    times: FeatureName | None = Field(None, description="sequence feature with the time of each item of `history`")
    now: FeatureName | None = Field(None, description="id feature with the time of a request")
    pair_step: Share = Field(1.0, description="what a pair counts for each further step between its two events")
    pair_half_life: Hours | None = Field(None, description="hours between two events at which their pair counts half")
    history_step: Share = Field(1.0, description="what an item of a history weighs for each newer one")
    history_half_life: Hours | None = Field(None, description="hours of age at which an item of a history weighs half")
    day_decay: Share = Field(1.0, description="what the pairs of a day count a day later; needs `user` and `time`")
    weigh_users: bool = Field(True, description="a pair of a user with many items counts less")
    alpha: PositiveOrZero = Field(1.0, description="of swing: by how much two users with few common items count less")
    user_items: Count = Field(200, description="newest items of a user that make pairs")
    item_users: Count | None = Field(
        None, description="users of an item that make pairs, drawn by train.seed; by default all, of swing 200"
    )
    common_users: Count = Field(1, description="users that a pair needs")
    neighbours: Count = Field(100, description="items that an item leads to, at most")

    def also_reads(self) -> list[tuple[str, str, str]]:
        asked = ((self.user, "group", "model.user"), (self.time, "unix time", "model.time"))
        return [(column, kind, key) for column, kind, key in asked if column is not None]


class _Events(NamedTuple):
    """Events as they come: (n,) int64 day, user and item, float64 time, int64 order, and whether they are fresh."""

    day: np.ndarray
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    order: np.ndarray
    fresh: np.ndarray


@register_fitted("item_cf", ItemCFConfig)
class ItemCF(Fitted):
    """score(j) = sum over the items i of a request's history of s_ij step^d 2^(-age_i / half_life)

    With cosine, s_ij = c_ij / sqrt(n_i n_j): c_ij sums, over the users who had both, w_u times what the pair counts by
    the steps and the time between its two events, w_u = 1 / log(1 + |I_u|) or 1; n_i is how many users had i. With
    Swing, s_ij sums over pairs of users, w_u = 1 / sqrt(|I_u|) or 1 (see `swing_counts`). A user counts an item once,
    the last time that she had it. Each item keeps the `neighbours` items with the largest s_ij: s is not symmetric.

    With `user` and `time`, cosine goes day by day: by the partitions of data.days, whatever the zone whose days they
    are, and else by days in UTC. A day's users are those with a positive row on it; their items are those of these rows
    and, as far as known, of the history that the first of them has. Of these pairs those count in which an item is of
    the day, and c, n and the numbers of common users of the days before are first multiplied by `day_decay`. Between
    days an item keeps four times its neighbours. So a fit that goes on from what one had learned by a day is the fit of
    all days, to the last bit, and a night has only its new days to count. Of the very day that it had come to it takes
    the later rows, as if they were of a day of their own. Rows without a time are left out, and their number is told.
    An item whose n_i has fallen below .01 is forgotten: nights with a `day_decay` below 1 keep what is of late, as much
    of it as there is, and others keep every item that was ever had, which a note tells.

    Memory: 50 bytes per positive row and per item of a history that is used, and what the pairs of a block take, about
    1 GB, whatever their number.

    Args:
        config: see `ItemCFConfig`.
        recipe: the run.

    Raises:
        BadInput: keys that need one another are not all there, or a feature is none.
    """

    def __init__(self, config: ItemCFConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        self.config = config
        self._untimed = 0
        self.incremental = config.user is not None and config.time is not None and config.similarity == "cosine"
        asked = (
            (config.history, "history", "sequence"),
            (config.times, "times", "sequence"),
            (config.now, "now", "id"),
        )
        self.features = [self.feature(key, name, form) for name, key, form in asked if name is not None]
        if config.history_half_life is not None and (config.times is None or config.now is None):
            raise BadInput(
                "model.history_half_life: needs the times of a history and of the request; name the features that hold "
                "them in model.times and model.now"
            )
        known = config.time if config.user is not None else config.times
        if config.pair_half_life is not None and known is None:
            key = "model.time" if config.user is not None else "model.times"
            raise BadInput(f"model.pair_half_life: needs the times of events; name them in {key}")
        self._refuse_unread()
        if config.day_decay != 1 and not self.incremental:
            raise BadInput(
                "model.day_decay: needs model.user and model.time, and similarity: cosine; leave it out, or name these"
            )

    def _refuse_unread(self) -> None:
        """Raise BadInput for a key that the others make count for nothing."""
        config, swing = self.config, self.config.similarity == "swing"
        for key in ("pair_step", "pair_half_life"):
            if swing and getattr(config, key) != type(config).model_fields[key].default:
                raise BadInput(f"model.{key}: swing counts no distances between events; leave it out, or take cosine")
        if not swing and config.alpha != 1:
            raise BadInput("model.alpha: is of swing alone; leave it out, or say similarity: swing")
        if config.now is not None and config.history_half_life is None:
            raise BadInput("model.now: counts by history_half_life alone; say that too, or leave it out")
        if config.times is not None and config.history_half_life is None and config.pair_half_life is None:
            raise BadInput(
                "model.times: count by history_half_life and pair_half_life alone; say one of them, or leave it out"
            )

    def request(self) -> nn.Module:
        config = self.config
        half_life = config.history_half_life
        if half_life is not None:
            half_life *= HOUR * PER_SECOND[config.unit]
        return HistoryKeys(self.recipe, config.history, config.history_step, half_life, config.times, config.now)

    def table(self, state: State) -> Table:
        counts = self._common([_matrix(state, name) for name in self._matrices])[0]
        scores = self._scores(counts, state["users"])
        kept = best(counts, scores, self.config.neighbours)
        row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))[kept]
        items = state["items"]
        return table(items[row], items[counts.indices[kept]], scores[kept])

    def fit(self, rows: Iterator[Rows], before: State | None = None) -> State:
        state, self._untimed = before if before is not None else self._nothing(), 0
        begun = len(state["items"])
        until = int(state["day"][0]), float(state["time"][0])
        parts = [self._of_rows(part) if self.config.user is None else self._of_users(part, *until) for part in rows]
        self.notes = []
        if self._untimed:
            text = f"{self._untimed:,} positive rows without a time in column '{self.config.time}' are left out"
            self.notes.append(text)
        if begun and self.config.day_decay == 1:
            self.notes.append(
                f"begins with {begun:,} items, and never forgets one; let days fade, as by model.day_decay: 0.95"
            )
        events = _Events(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        del parts
        for day in np.unique(events.day):
            own = events.day == day
            of_day = events if own.all() else _Events(*(column[own] for column in events))
            state = self._day(state, of_day, int(day))
        return state

    def _of_rows(self, rows: Rows) -> _Events:
        """Return the events of rows that are users: those of the history, and then the row's own."""
        kept = rows.label & (rows.ids[self.key].lengths > 0)
        history, own = rows.ids[self.config.history], rows.ids[self.key]
        past, times = self._history(rows)
        row = history.rows
        of_kept = kept[row]
        numbers = np.flatnonzero(kept)
        now = np.full(len(kept), np.nan)
        if self.config.time is not None:
            now = rows.columns[self.config.time]
        user = rows.first + np.concatenate([row[of_kept], numbers])
        place = np.arange(len(past))[of_kept]
        return _Events(
            np.zeros(len(user), np.int64),
            user,
            np.concatenate([past[of_kept], own.values[kept[own.rows]]]),
            np.concatenate([times[of_kept], now[numbers]]),
            np.concatenate([place, np.full(len(numbers), 2**62)]),
            np.ones(len(user), bool),
        )

    def _of_users(self, rows: Rows, last: int, newest: float) -> _Events:
        """Return the events of positive rows, and of each user and day the history that the first row has of it.

        Args:
            rows: some rows.
            last: the day that an earlier fit has come to, whose rows are passed over as those of the days before are.
            newest: time up to which that fit has this day.
        """
        config = self.config
        own, user = rows.ids[self.key], rows.columns[config.user or ""]
        kept = rows.label & (own.lengths > 0) & (user != NO_ID)
        time = rows.columns[config.time] if config.time is not None else np.full(len(kept), np.nan)
        day = np.zeros(len(kept), np.int64)
        if self.incremental:
            known = ~np.isnan(time)
            self._untimed += int((kept & ~known).sum())
            day[known] = time[known] // DAY if rows.day is None else rows.day
            kept = kept & known & ((day > last) | ((day == last) & (time > newest)))
        numbers = np.flatnonzero(kept)
        items, times = self._history(rows)
        firsts = _first(day[numbers], user[numbers])
        chosen = np.zeros(len(kept), bool)
        chosen[numbers[firsts]] = config.similarity == "cosine"
        row = rows.ids[config.history].rows
        of_kept = chosen[row]
        past = row[of_kept]
        order = rows.first + np.concatenate([past, numbers])
        return _Events(
            day[np.concatenate([past, numbers])],
            user[np.concatenate([past, numbers])],
            np.concatenate([items[of_kept], own.values[kept[own.rows]]]),
            np.concatenate([times[of_kept], time[numbers]]),
            order,
            np.concatenate([np.zeros(len(past), bool), np.ones(len(numbers), bool)]),
        )

    def _history(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Return the items of the rows' histories, one row after the other, and their times, nan if not known."""
        history = rows.ids[self.config.history]
        if self.config.times is None:
            return history.values, np.full(len(history.values), np.nan)
        times = rows.ids[self.config.times]
        if not np.array_equal(times.lengths, history.lengths):
            row = rows.first + int(np.flatnonzero(times.lengths != history.lengths)[0])
            raise BadInput(
                f"model.times: row {row} of train has not one time for each item of its history; mend the data"
            )
        return history.values, times.values / PER_SECOND[self.config.unit]

    def _sequences(self, events: _Events) -> tuple[Sequences, np.ndarray]:
        """Return a day's events as `Sequences`, and the ids of the items whose places these hold."""
        config, seed = self.config, self.recipe.train.seed
        if config.user is not None:  # a history is of a user's first row on the day, which chunks cannot tell
            user, place = np.unique(events.user, return_inverse=True)
            first = np.full(len(user), 2**62)
            np.minimum.at(first, place, events.order)
            kept = events.fresh | (events.order == first[place])
            events = _Events(*(column[kept] for column in events))
        when = np.nan_to_num(events.time) if config.user is not None else np.zeros(len(events.user))
        sort = np.lexsort((events.order, np.where(events.fresh, when, 0), events.fresh, events.user))
        events = _Events(*(column[sort] for column in events))
        last = _last(events.user, events.item)
        events = _Events(*(column[last] for column in events))
        user, place, sizes = np.unique(events.user, return_inverse=True, return_counts=True)
        newer = np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(len(place))
        kept = newer < config.user_items
        most = config.item_users or (_SWING_USERS if config.similarity == "swing" else None)
        if most is not None:
            draw = mix(torch.from_numpy(mix(torch.from_numpy(events.user + seed)).numpy() ^ events.item)).numpy()
            kept &= _ranks(events.item, np.where(kept, draw, np.iinfo(np.int64).max)) < most
        weight = np.ones(len(user))
        if config.weigh_users:
            weight = 1 / np.sqrt(sizes) if config.similarity == "swing" else 1 / np.log1p(sizes)
        left, number = np.unique(place[kept], return_inverse=True)
        names, item = np.unique(events.item[kept], return_inverse=True)
        return (
            Sequences(number, item, events.fresh[kept], events.time[kept], weight[left].astype(np.float32)),
            names,
        )

    def _day(self, state: State, events: _Events, day: int) -> State:
        """Return the state after one more day: its own counts, and those of the days before by their decay."""
        config = self.config
        found, names = self._sequences(events)
        decay = config.day_decay ** (day - int(state["day"][0])) if len(state["items"]) else 1.0
        state = self._remembered(state, decay * state["users"] >= _FADED)
        items = np.union1d(state["items"], names)
        found = found._replace(item=np.searchsorted(items, names).astype(np.int32)[found.item])
        users = np.zeros(len(items))
        users[np.searchsorted(items, state["items"])] = decay * state["users"]
        users += np.bincount(found.item, minlength=len(items))
        old = [_moved(_matrix(state, name), state["items"], items) for name in self._matrices]
        common = len(old) > 1
        if config.similarity == "swing":
            blocks = swing_counts(found, len(items), float(config.alpha), common)
        else:
            half_life = None if config.pair_half_life is None else config.pair_half_life * HOUR
            blocks = cosine_counts(found, len(items), config.pair_step, half_life, common)
        parts = []
        for block, counted in blocks:
            both = [added + decay * before[block] for added, before in zip(counted, old, strict=True)]
            parts.append(self._kept(both, users, block.start))
        matrices = [sparse.vstack(part, format="csr") for part in zip(*parts, strict=True)]
        newest = np.fmax.reduce(events.time[events.fresh], initial=state["time"][0])
        made = {"items": items, "users": users, "day": np.array([day]), "time": np.array([newest])}
        for name, matrix in zip(self._matrices, matrices, strict=True):
            made |= _arrays(name, matrix)
        return made

    def _remembered(self, state: State, kept: np.ndarray) -> State:
        """Return a state with some of its items alone, and the pairs of these."""
        if kept.all():
            return state
        made = state | {"items": state["items"][kept], "users": state["users"][kept]}
        for name in self._matrices:
            made |= _arrays(name, _matrix(state, name)[kept][:, kept].tocsr())
        return made

    def _nothing(self) -> State:
        """Return the state before the first day."""
        none = {"items": np.zeros(0, np.int64), "users": np.zeros(0)}
        none |= {"day": np.array([-(2**62)]), "time": np.array([-np.inf])}
        for name in self._matrices:
            none |= {
                f"{name}_ends": np.zeros(1, np.int64),
                f"{name}_items": np.zeros(0, np.int32),
                name: np.zeros(0, np.float32),
            }
        return none

    @property
    def _matrices(self) -> list[str]:
        return ["counts", "common"] if self.config.common_users > 1 else ["counts"]

    def _kept(self, counted: list[sparse.csr_array], users: np.ndarray, first: int) -> list[sparse.csr_array]:
        """Return what is kept of some rows of c and of the numbers of users: the best pairs of each item."""
        if not self.incremental:  # days to come may bring users that are lacking
            counted = self._common(counted)
        counted[0].sort_indices()
        most = self.config.neighbours * (_SPARE if self.incremental else 1)
        kept = best(counted[0], self._scores(counted[0], users, first), most)
        return [taken(matrix, kept) for matrix in _alike(counted)]

    def _common(self, counted: list[sparse.csr_array]) -> list[sparse.csr_array]:
        """Return rows of c and of the numbers of users without pairs that too few users have."""
        if len(counted) == 1:
            return counted
        counted = _alike(counted)
        enough = counted[1].data >= self.config.common_users
        return [taken(matrix, enough) for matrix in counted]

    def _scores(self, counts: sparse.csr_array, users: np.ndarray, first: int = 0) -> np.ndarray:
        """Return s of the entries of some rows of c, from the first one given on."""
        if self.config.similarity == "swing":
            return counts.data
        root = np.sqrt(users)
        row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr)) + first
        return (counts.data / (root[row] * root[counts.indices])).astype(np.float32)


def _matrix(state: State, name: str) -> sparse.csr_array:
    """Return a matrix of items by items that a state holds."""
    parts = (state[name], state[f"{name}_items"], state[f"{name}_ends"])
    return sparse.csr_array(parts, shape=(len(state["items"]), len(state["items"])))


def _arrays(name: str, matrix: sparse.csr_array) -> State:
    """Return how a state holds a matrix."""
    return {f"{name}_ends": matrix.indptr, f"{name}_items": matrix.indices, name: matrix.data}


def _alike(matrices: list[sparse.csr_array]) -> list[sparse.csr_array]:
    """Return matrices with the entries that the first one has alone, in one order."""
    first, *others = matrices
    first.sort_indices()
    there = sparse.csr_array((np.ones(first.nnz, np.float32), first.indices, first.indptr), shape=first.shape)
    found = [first, *(other.multiply(there).tocsr() for other in others)]
    for matrix in found:
        matrix.sort_indices()
    return found


def _moved(matrix: sparse.csr_array, before: np.ndarray, items: np.ndarray) -> sparse.csr_array:
    """Return a matrix of items by items with a row and a column for each of further items, among which theirs are."""
    place = np.searchsorted(items, before)
    lengths = np.zeros(len(items), np.int64)
    lengths[place] = np.diff(matrix.indptr)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    columns = place[matrix.indices].astype(np.int32)
    return sparse.csr_array((matrix.data, columns, ends), shape=(len(items), len(items)))


def _first(day: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Return the places of each user's first row on each day."""
    order = np.lexsort((user, day))
    begins = np.ones(len(order), bool)
    begins[1:] = (np.diff(day[order]) != 0) | (np.diff(user[order]) != 0)
    return order[begins]


def _last(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Return which events are the last ones with their item of their user, (n,) bool."""
    order = np.lexsort((item, user))
    ends = np.ones(len(order), bool)
    ends[:-1] = (np.diff(user[order]) != 0) | (np.diff(item[order]) != 0)
    last = np.zeros(len(order), bool)
    last[order[ends]] = True
    return last


def _ranks(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the rank, from 0, of each value among those of its group."""
    order = np.lexsort((values, group))
    begins = np.flatnonzero(np.diff(group[order], prepend=group[order[:1]] - 1))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    return ranks
