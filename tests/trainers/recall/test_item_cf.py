"""Item CF against loops over users, against a library, and day by day against all days at once."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.recall.fitted import Lists, Rows, Table
from livetrain.trainers.recall import pairs
from livetrain.trainers.recall.item_cf import ItemCF

FEATURES = {
    "item": {"type": "id"},
    "past": {"type": "sequence", "max_length": 50},
    "when": {"type": "sequence", "max_length": 50},
    "now": {"type": "id"},
    "same": {"type": "sequence", "column": "item", "max_length": 50},
}


def model(**changes) -> ItemCF:
    section = {"kind": "item_cf", "key": "item", "history": "past", **changes}
    made = fitted(
        load_recipe(
            {
                "data": {"path": "nowhere"},
                "features": FEATURES,
                "model": section,
                "tasks": {"click": {"label": "label", "kind": "retrieval"}},
                "cluster": {"workers": 0},
            }
        )
    )
    assert isinstance(made, ItemCF)
    return made


def lists(rows: list[list[int]]) -> Lists:
    return Lists(np.array([x for row in rows for x in row], np.int64), np.array([len(row) for row in rows], np.int64))


def of_users(users: list[list[int]], first: int = 0) -> Rows:
    """Return a row per user: the last item is the row's own, the others are its history."""
    ids = {"item": lists([user[-1:] for user in users]), "past": lists([user[:-1] for user in users])}
    ids["when"] = lists([[*range(len(user) - 1)] for user in users])
    return Rows(first, np.ones(len(users), bool), ids, {})


def events(rows: list[tuple[int, int, float, list[int]]], first: int = 0, label: bool = True) -> Rows:
    """Return a row per event: user, item, time and the history before it."""
    ids = {"item": lists([[item] for _, item, _, _ in rows]), "past": lists([past for *_, past in rows])}
    columns = {"user": np.array([row[0] for row in rows], np.int64), "time": np.array([row[2] for row in rows], float)}
    return Rows(first, np.full(len(rows), label), ids, columns)


def scores(found: Table) -> dict[tuple[int, int], float]:
    keys = np.repeat(found.keys, np.diff(found.offsets))
    return dict(zip(zip(keys.tolist(), found.items[found.places].tolist(), strict=True), found.scores, strict=True))


def once(user: list[int]) -> list[int]:
    """Return a user's items, each where it came last."""
    return [item for place, item in enumerate(user) if item not in user[place + 1 :]]


def cosine(users: list[list[int]], step: float, weigh: bool, least: int = 1) -> dict[tuple[int, int], float]:
    sums: dict[tuple[int, int], float] = {}
    number: dict[tuple[int, int], int] = {}
    had: dict[int, int] = {}
    for user in map(once, users):
        weight = 1 / math.log(1 + len(user)) if weigh else 1.0
        for item in user:
            had[item] = had.get(item, 0) + 1
        for (i, one), (j, other) in combinations(enumerate(user), 2):
            for pair in ((one, other), (other, one)):
                sums[pair] = sums.get(pair, 0.0) + weight * step ** (j - i - 1)
                number[pair] = number.get(pair, 0) + 1
    return {(i, j): c / math.sqrt(had[i] * had[j]) for (i, j), c in sums.items() if number[i, j] >= least}


def swing(users: list[list[int]], alpha: float, weigh: bool, least: int = 1) -> dict[tuple[int, int], float]:
    sums: dict[tuple[int, int], float] = {}
    sets = [set(user) for user in users]
    weights = [1 / math.sqrt(len(user)) if weigh else 1.0 for user in sets]
    for one, other in combinations(range(len(sets)), 2):
        common = sets[one] & sets[other]
        for i in common:
            for j in common - {i}:
                sums[i, j] = sums.get((i, j), 0.0) + weights[one] * weights[other] / (alpha + len(common))
    number = {pair: sum(set(pair) <= user for user in sets) for pair in sums}
    return {pair: score for pair, score in sums.items() if number[pair] >= least}


some_users = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=50)


@settings(max_examples=30, deadline=None)
@given(some_users, st.sampled_from([1.0, 0.5]), st.booleans(), st.integers(1, 2), st.integers(1, 60))
def test_cosine_is_what_loops_over_users_give(users, step, weigh, least, block):
    own = model(pair_step=step, weigh_users=weigh, common_users=least)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_PAIRS", block)
        state = own.fit(iter([of_users(users[:3]), of_users(users[3:], 3)]))
    assert scores(own.table(state)) == pytest.approx(cosine(users, step, weigh, least), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(0, 9), st.booleans(), min_size=1, max_size=7), min_size=1, max_size=30),
    st.sampled_from(["alike", "binary fractions", "any"]),
    st.integers(1, 60),
    st.integers(0, 99),
)
def test_products_count_what_pairs_laid_out_do(users, weights, block, seed):
    """Where all pairs of a user count the same no pair is laid out; a half life of ages gives the same the long way."""
    drawn = np.random.default_rng(seed)
    kinds = {"alike": np.ones(len(users)), "binary fractions": 0.5 ** drawn.integers(0, 9, len(users))}
    found = pairs.Sequences(
        np.repeat(np.arange(len(users)), [len(user) for user in users]),
        np.array([item for user in users for item in user], np.int32),
        np.array([fresh for user in users for fresh in user.values()]),
        np.zeros(sum(map(len, users))),
        kinds.get(weights, drawn.random(len(users)) + 0.1).astype(np.float32),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_PAIRS", block)
        ways = [list(pairs.cosine_counts(found, 10, 1.0, half_life, True)) for half_life in (None, 1e300)]
    for (own, short), (other, long) in zip(*ways, strict=True):
        assert own == other
        for part, twin in zip(short, long, strict=True):
            part.sort_indices()
            twin.sort_indices()
            np.testing.assert_array_equal(part.indices, twin.indices)  # the very pairs, in both
            np.testing.assert_array_equal(part.indptr, twin.indptr)
            exactly = weights != "any"
            np.testing.assert_allclose(part.data, twin.data, rtol=0 if exactly else 1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=9), min_size=1, max_size=6), st.integers(1, 5), st.integers(0, 99))
def test_the_best_are_the_largest_and_of_equal_ones_the_first(rows, most, seed):
    drawn = np.random.default_rng(seed)
    columns = [drawn.permutation(9)[: len(row)] for row in rows]
    ends = np.cumsum([0, *map(len, rows)])
    values = np.array([x for row in rows for x in row], np.float32)
    kept = pairs.best(sparse.csr_array((values, np.concatenate(columns), ends), shape=(len(rows), 9)), values, most)
    for row, own, first in zip(rows, columns, ends, strict=False):
        wanted = sorted(range(len(row)), key=lambda at, row=row, own=own: (-row[at], own[at]))[:most]
        assert np.flatnonzero(kept[first : first + len(row)]).tolist() == sorted(wanted)


@settings(max_examples=30, deadline=None)
@given(some_users, st.sampled_from([0.0, 1.0]), st.booleans(), st.integers(1, 2), st.integers(1, 60))
def test_swing_is_what_loops_over_pairs_of_users_give(users, alpha, weigh, least, block):
    own = model(similarity="swing", alpha=alpha, weigh_users=weigh, common_users=least)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_PAIRS", block)
        state = own.fit(iter([of_users(users)]))
    assert scores(own.table(state)) == pytest.approx(swing(users, alpha, weigh, least), rel=1e-5)


def test_neighbours_are_a_librarys():
    nearest = pytest.importorskip("implicit.nearest_neighbours", reason="implicit is an oracle of this test alone")
    drawn = np.random.default_rng(0)
    users = [drawn.choice(40, drawn.integers(2, 12), replace=False).tolist() for _ in range(200)]
    own = model(weigh_users=False, neighbours=7)
    mine = scores(own.table(own.fit(iter([of_users(users)]))))
    row = np.repeat(np.arange(len(users)), [len(user) for user in users])
    matrix = sparse.csr_matrix((np.ones(len(row)), (row, np.concatenate(users))), shape=(len(users), 40))
    theirs = nearest.CosineRecommender(K=8)  # itself is one of them
    theirs.fit(matrix, show_progress=False)
    found = theirs.similarity.tocoo()
    for item in range(40):
        wanted = sorted(
            (v for i, j, v in zip(found.row, found.col, found.data, strict=True) if i == item != j), reverse=True
        )
        assert sorted((v for (i, _), v in mine.items() if i == item), reverse=True) == pytest.approx(wanted, rel=1e-5)


DAY = 86_400.0


def drawn_days(seed: int, days: int) -> list[Rows]:
    """Return a chunk of events per day, in which histories hold what users had before the day."""
    drawn, past, parts = np.random.default_rng(seed), {user: [] for user in range(12)}, []
    for day in range(days):
        rows, now = [], {user: list(had) for user, had in past.items()}
        for second in range(60):
            user, item = int(drawn.integers(12)), int(drawn.integers(15))
            rows.append((user, item, day * DAY + second, past[user][-20:]))
            now[user].append(item)
            past = past if second < 59 else now
        parts.append(events(rows, first=60 * day))
    return parts


@pytest.mark.parametrize("changes", [{}, {"day_decay": 0.5, "pair_step": 0.7, "common_users": 2, "neighbours": 2}])
def test_a_day_more_is_the_fit_of_all_days(changes):
    own, parts = model(user="user", time="time", **changes), drawn_days(1, 4)
    before = own.fit(iter(parts[:2]))
    later, whole = own.fit(iter(parts), before), own.fit(iter(parts))  # days that it has are passed over
    assert set(later) == set(whole)
    for name in whole:
        np.testing.assert_array_equal(later[name], whole[name])
    assert not np.array_equal(own.table(before).scores, own.table(whole).scores)


def test_nights_forget_what_has_faded():
    """Items come for three days each and never again: what a night keeps does not grow, and it is a fit of all days."""
    own, whole = model(user="user", time="time", day_decay=0.5, weigh_users=False), []
    state, sizes = None, []
    for day in range(24):
        rows = [(user, day + place, day * DAY + place, []) for user in range(8) for place in range(3)]
        whole.append(events(rows, first=100 * day))
        state = own.fit(iter([whole[-1]]), state)
        sizes.append((len(state["items"]), len(state["counts"])))
        assert own.notes == []
    assert sizes[-1] == sizes[-8] < (16, 60)
    assert state["items"].min() > 10
    for name, value in own.fit(iter(whole)).items():
        np.testing.assert_array_equal(state[name], value)
    endless = model(user="user", time="time", weigh_users=False)
    found = endless.fit(iter(whole[1:]), endless.fit(iter(whole[:1])))
    assert len(found["items"]) == 26
    assert endless.notes == ["begins with 3 items, and never forgets one; let days fade, as by model.day_decay: 0.95"]


@pytest.mark.parametrize("hours", [-8, 0, 8])
def test_days_are_those_of_the_partitions_whatever_their_zone(hours):
    """A fit of local days is that of the same days in UTC, and so is one that goes on from the first of them."""
    own, days = model(user="user", time="time", day_decay=0.5), drawn_days(1, 4)
    whole = scores(own.table(own.fit(iter(days))))
    parts = []
    for number, part in enumerate(days):  # rows over all of the day
        time = number * DAY + (part.columns["time"] % DAY) * 1440 - 3600 * hours
        parts.append(part._replace(columns=part.columns | {"time": time}, day=number))
    local, later = own.fit(iter(parts)), own.fit(iter(parts), own.fit(iter(parts[:2])))
    assert scores(own.table(local)) == whole
    for name in local:
        np.testing.assert_array_equal(later[name], local[name])


def test_without_partitions_the_rest_of_a_day_is_not_lost():
    own = model(user="user", time="time", weigh_users=False)
    first, rest = events([(1, 10, 5.0, []), (1, 11, 6.0, [])]), events([(1, 12, 7.0, [10, 11])], first=2)
    found = own.fit(iter([first, rest]), own.fit(iter([first])))
    assert set(scores(own.table(found))) == {(i, j) for i in (10, 11, 12) for j in (10, 11, 12) if i != j}
    again = own.fit(iter([first, rest]), found)
    np.testing.assert_array_equal(again["counts"], found["counts"])


def test_rows_without_a_time_are_of_no_day_and_are_counted():
    own = model(user="user", time="time")
    timed = [(1, 10, DAY, []), (1, 11, DAY + 1, [])]
    found = own.fit(iter([events([*timed, (2, 12, math.nan, []), (2, 13, math.nan, [])])]))
    assert own.notes == ["2 positive rows without a time in column 'time' are left out"]
    assert found["items"].tolist() == [10, 11]
    own.fit(iter([events(timed)]))
    assert own.notes == []


def test_days_of_events_count_what_users_had_before_them():
    """Two days of one user each: pairs within a day, of a day with what was before, and no pair of old ones."""
    own = model(user="user", time="time", weigh_users=False, day_decay=0.5)
    days = [events([(1, 10, 5.0, []), (1, 11, 6.0, [])]), events([(1, 12, DAY + 1, [10, 11])], first=2)]
    found = scores(own.table(own.fit(iter(days))))
    # c and n: day one 10-11 once, halved on day two; there 12 with both. n: 10 and 11 .5 + 1, 12 once.
    wanted = {(10, 11): 0.5 / 1.5, (10, 12): 1 / math.sqrt(1.5), (11, 12): 1 / math.sqrt(1.5)}
    assert found == pytest.approx(wanted | {(j, i): score for (i, j), score in wanted.items()}, rel=1e-6)


def test_events_of_a_user_are_put_in_order_of_time_and_others_do_not_teach():
    own = model(user="user", time="time", pair_step=0.5, pair_half_life=1.0, weigh_users=False)
    rows = events([(1, 12, 7200.0, []), (1, 10, 0.0, []), (1, 11, 3600.0, [])])
    negative = events([(1, 13, 1.0, [])], first=3, label=False)
    found = scores(own.table(own.fit(iter([rows, negative]))))
    wanted = {(10, 11): 0.5, (11, 12): 0.5, (10, 12): 0.5 * 0.25}
    assert found == pytest.approx(wanted | {(j, i): score for (i, j), score in wanted.items()}, rel=1e-6)


def test_pairs_are_of_a_users_newest_items_and_of_some_users_by_seed():
    users = [[9, 1, 2], *([[1, 2]] * 8)]
    newest = scores((own := model(user_items=2, weigh_users=False)).table(own.fit(iter([of_users(users)]))))
    assert set(newest) == {(1, 2), (2, 1)}
    few = (own := model(item_users=3, weigh_users=False)).fit(iter([of_users(users)]))
    assert few["users"].max() == 3
    again = own.fit(iter([of_users(users)]))
    np.testing.assert_array_equal(few["counts"], again["counts"])


def test_rows_without_a_positive_leave_an_empty_table():
    own = model(user="user", time="time")
    found = own.table(own.fit(iter([events([(1, 2, 0.0, [])], label=False)])))
    assert (len(found.keys), len(found.items), found.offsets.tolist()) == (0, 0, [0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"history": "item"}, "model.history: there is no sequence feature 'item'"),
        ({"history_half_life": 3.0}, "model.history_half_life: needs the times of a history and of the request"),
        ({"pair_half_life": 3.0}, "model.pair_half_life: needs the times of events; name them in model.times"),
        ({"user": "user", "pair_half_life": 3.0}, "name them in model.time"),
        ({"day_decay": 0.9}, "model.day_decay: needs model.user and model.time"),
        ({"similarity": "swing", "pair_step": 0.7}, "model.pair_step: swing counts no distances between events"),
        (
            {"similarity": "swing", "times": "when", "pair_half_life": 2.0},
            "model.pair_half_life: swing counts no",
        ),
        ({"alpha": 0.5}, "model.alpha: is of swing alone; leave it out"),
        ({"times": "when"}, "model.times: count by history_half_life and pair_half_life alone"),
        ({"now": "now", "times": "when", "pair_half_life": 2.0}, "model.now: counts by history_half_life alone"),
        ({"now": "item"}, "model.now: 'item' reads the column 'item', which tells which item is wanted, and a request"),
        ({"history": "same"}, "model.history: 'same' reads the column 'item', which tells which item is wanted"),
    ],
)
def test_keys_that_need_others_say_so(changes, said):
    with pytest.raises(BadInput, match=said):
        model(**changes)
