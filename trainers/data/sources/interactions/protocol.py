"""Which events teach, which choose and which test: each user's in order, with a stage.

Leave-one-out (He et al., WWW 2017; Kang and McAuley, ICDM 2018): of each user's events in the order of time the last
one tests, the last but one chooses, and the others teach. Events of one time keep the order of the file.
"""

from dataclasses import dataclass

import numpy as np

from livetrain.configs.errors import BadInput
from livetrain.modules.mixing import mix
from livetrain.trainers.data.sources.interactions.log import Events, Listed, Names, listed_of

TRAIN, VALID, TEST = range(3)
LEAST = 3  # events of a user whom the protocol measures
NEGATIVES_SEED = 99  # of those that are drawn for validation


@dataclass(frozen=True)
class Staged:
    """N events, sorted by user, then time, then the files' order; a user's stages rise.

    Args:
        users, items: their names.
        user, item: (N,) numbers.
        stage: (N,) of `TRAIN`, `VALID`, `TEST`.
        time: (N,) microseconds, None where the files have none.
        value: (N,) numbers, likewise.
        listed: VALID, TEST -> (M + 1,) offsets and (C,) items: among which each user's is ranked. Empty without.
    """

    users: Names
    items: Names
    user: np.ndarray
    item: np.ndarray
    stage: np.ndarray
    time: np.ndarray | None
    value: np.ndarray | None
    listed: dict[int, tuple[np.ndarray, np.ndarray]]


def leave_one_out(events: Events, users: Names, items: Names) -> Staged:
    """Return events with the stages of the leave-one-out protocol.

    Those of a user who has fewer than `LEAST` all teach.

    Args:
        events: of one file.
        users, items: the names of theirs.

    Raises:
        BadInput: nobody has as many events as the protocol takes.
    """
    user, item = users.find(events.user), items.find(events.item)
    order = _in_time(user, events.time)
    user = user[order]
    count = np.bincount(user, minlength=len(users))
    left = (np.cumsum(count) - 1)[user] - np.arange(len(user))  # events of this user after each
    stage = np.where(count[user] < LEAST, TRAIN, np.maximum(TEST - left, TRAIN))
    if not (stage == TEST).any():
        raise BadInput(f"{events.name}: no user has {LEAST} events, which leave-one-out takes; name a file of more")
    time, value = (None if part is None else part[order] for part in (events.time, events.value))
    return Staged(users, items, user, item[order], stage, time, value, {})


def given_test(train: Events, test: Events, users: Names, items: Names, listed: Listed | None = None) -> Staged:
    """Return the events of two files, of which one tests.

    Of each user with two or more events in the first file the last one in time chooses; without times, one that a hash
    of the user's number picks. With lists of negatives as many are drawn for that one, among items that the user has in
    neither file: as a function of the user's number alone.

    Args:
        train: events that teach, and those that choose.
        test: an event per user.
        users, items: the names of theirs, and of the listed ones.
        listed: the test events' negatives.

    Raises:
        BadInput: the files do not fit together.
    """
    user, item = users.find(train.user), items.find(train.item)
    timed = train.time is not None and test.time is not None
    order = _in_time(user, train.time)
    user, item = user[order], item[order]
    stage = np.zeros(len(user), np.int64)
    stage[_chosen(user, len(users), train.time is not None)] = VALID
    last = np.lexsort((np.arange(len(user)), stage, user))  # which chooses, stands behind those that teach
    order, user, item, stage = order[last], user[last], item[last], stage[last]
    tested, target = users.find(test.user), items.find(test.item)
    for row in np.flatnonzero(np.bincount(tested, minlength=len(users)) > 1)[:1]:
        raise BadInput(f"{test.name}: user {users.ids[row]} has two test events; keep one")
    if train.time is not None and test.time is not None:
        newest = np.full(len(users), np.iinfo(np.int64).min)
        np.maximum.at(newest, user, train.time[order])
        for row in np.flatnonzero(test.time < newest[tested])[:1]:
            raise BadInput(
                f"{test.name}, row {row + 1}: user {users.ids[tested[row]]} has later events in {train.name}, of which "
                "the test's history must know nothing; leave those out"
            )
    whole = np.lexsort((np.arange(len(user) + len(tested)), np.concatenate([user, tested])))
    stages = np.concatenate([stage, np.full(len(tested), TEST)])[whole]
    user, item = np.concatenate([user, tested])[whole], np.concatenate([item, target])[whole]
    time = np.concatenate([train.time[order], test.time])[whole] if timed else None  # type: ignore[index]
    value = None
    if train.value is not None and test.value is not None:
        value = np.concatenate([train.value[order], test.value])[whole]
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    if listed is not None:
        wanted = np.full(len(users), -1)
        wanted[tested] = target
        found[TEST] = listed_of(listed, users, items, wanted)
        found[VALID] = _drawn(user, item, stages, np.diff(found[TEST][0]), len(items))
    return Staged(users, items, user, item, stages, time, value, found)


def _in_time(user: np.ndarray, time: np.ndarray | None) -> np.ndarray:
    """Return the order by user, then time, then place."""
    return np.argsort(user, kind="stable") if time is None else np.lexsort((time, user))  # lexsort is stable


def _chosen(user: np.ndarray, users: int, timed: bool) -> np.ndarray:
    """Return the places of the events that choose: one of each user with two or more."""
    count = np.bincount(user, minlength=users)
    begin = np.cumsum(count) - count
    own = np.flatnonzero(count >= LEAST - 1)
    if timed:
        return begin[own] + count[own] - 1
    return begin[own] + (mix(own.astype(np.uint64)) % count[own].astype(np.uint64)).astype(np.int64)


def _drawn(
    user: np.ndarray, item: np.ndarray, stage: np.ndarray, counts: np.ndarray, items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw as many negatives for each user's event that chooses as her test event has; fewer where items run out."""
    begin = np.searchsorted(user, np.arange(len(counts) + 1))
    drawn: list[np.ndarray] = []
    free = np.ones(items, bool)
    chooses = np.zeros(len(counts), bool)
    chooses[user[stage == VALID]] = True
    for one, wanted in enumerate(counts):
        free[own := item[begin[one] : begin[one + 1]]] = False
        others = np.flatnonzero(free)
        free[own] = True
        taken = min(int(wanted), len(others)) if chooses[one] else 0
        drawn.append(np.random.default_rng([NEGATIVES_SEED, one]).choice(others, taken, replace=False))
    return np.cumsum([0, *map(len, drawn)]), np.concatenate([*drawn, np.zeros(0, np.int64)]).astype(np.int64)
