"""The truth: probabilities that are right, an oracle that nothing beats, and dials that do what they say."""

from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from scipy.integrate import quad

from livetrain.configs.errors import BadInput
from livetrain.modules.metrics import binary
from livetrain.trainers.data.simulator import Settings, chances, count, oracle, simulate, world
from livetrain.trainers.data.simulator.settings import TASKS, TOPICS
from livetrain.trainers.data.simulator.state import State


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("truth") / "world"
    simulate(Settings(3000, 3, seed=11), out)
    return out


@pytest.fixture(scope="module")
def truth(folder):
    names = ["user_id", "live_id", "streamer_id", "timestamp", "expected_watch_time", "watch_time"]
    return oracle.read(folder, [*names, *TASKS, *(f"p_{task}" for task in TASKS)])


@pytest.mark.parametrize("task", TASKS)
def test_labels_come_up_as_often_as_the_truth_says_in_every_decile(truth, task):
    true, label = truth[f"p_{task}"], truth[task]
    order = np.argsort(true)
    for part in np.array_split(order, 10):
        expected, variance = true[part].sum(), (true[part] * (1 - true[part])).sum()
        assert abs(label[part].sum() - expected) < 4.5 * np.sqrt(variance) + 1
    # and by time, as states build up
    for part in np.array_split(np.argsort(truth["timestamp"], kind="stable"), 6):
        variance = (true[part] * (1 - true[part])).sum()
        assert abs(label[part].sum() - true[part].sum()) < 4.5 * np.sqrt(variance) + 1


def test_expected_watch_time_is_the_mean_of_what_was_watched(truth):
    order = np.argsort(truth["expected_watch_time"])
    for part in np.array_split(order, 5):
        seen, expected = truth["watch_time"][part], truth["expected_watch_time"][part]
        assert abs((seen - expected).mean()) < 5 * (seen - expected).std() / np.sqrt(len(part))


@settings(max_examples=30, deadline=None)
@given(strategies.floats(0.01, 0.99), strategies.floats(1, 40_000))
def test_the_mixture_of_watch_times_agrees_with_numerical_integration(stay, left):
    share = np.array([stay])
    # E[min(W, c)] is the integral of P(W > t) from 0 to c, here over log t.
    value, _ = quad(lambda u: np.exp(u) * chances.longer(np.exp(u), share)[0], -12, np.log(left), limit=200)
    assert chances.expected_watch(share, np.array([left]))[0] == pytest.approx(value, rel=1e-4, abs=1e-4)


def test_drawn_watch_times_follow_the_mixture():
    random, stay = np.random.default_rng(0), np.full(40_000, 0.4)
    drawn = chances.watch(random, stay, np.full(40_000, 1e9))
    for seconds in (1, 5, 30, 200, 2000):
        expected = chances.longer(seconds, stay[:1])[0]
        assert abs((drawn > seconds).mean() - expected) < 4.5 * np.sqrt(expected * (1 - expected) / len(drawn))


def test_no_simple_score_comes_near_the_oracle(folder, truth):
    """Earlier rates of users and streamers, which is what popularity and simple statistics know."""
    order = np.argsort(truth["timestamp"], kind="stable")
    label, last = truth["click"][order], np.arange(len(order)) > len(order) // 2
    best = binary.auc(label[last], truth["p_click"][order][last])
    for key in ("user_id", "streamer_id", "live_id"):
        ids = truth[key][order]
        number = np.bincount(ids[~last], minlength=ids.max() + 1)
        clicks = np.bincount(ids[~last], label[~last], minlength=ids.max() + 1)
        score = ((clicks + 0.9) / (number + 3))[ids[last]]
        assert binary.auc(label[last], score) - 0.5 < 0.7 * (best - 0.5)
    found = oracle.measure(folder)
    assert found["click"]["auc"] == binary.auc(truth["click"], truth["p_click"])
    assert all(figures["auc"] > 0.75 and figures["gauc"] > 0.7 for figures in found.values())


def test_the_oracle_takes_days_and_says_what_is_wrong(folder, tmp_path):
    day = oracle.measure(folder, oracle.parse_days("2025-05-26"))
    part = oracle.read(folder, ["click"], (date(2025, 5, 26), date(2025, 5, 26)))
    assert day["click"]["rows"] == len(part["click"])
    assert day["click"]["rate"] == part["click"].mean()
    both = oracle.measure(folder, oracle.parse_days("2025-05-26..2025-05-27"))
    assert both["click"]["rows"] > day["click"]["rows"]
    with pytest.raises(BadInput, match=r"has the days 2025-05-25\.\.2025-05-27"):
        oracle.measure(folder, oracle.parse_days("2025-06-01"))
    for wrong in ("soon", "2025-05-27..2025-05-26", "..2025-05-26"):
        with pytest.raises(BadInput, match="--days"):
            oracle.parse_days(wrong)
    with pytest.raises(BadInput, match="no simulated world"):
        oracle.measure(tmp_path)


@settings(max_examples=12, deadline=None)
@given(strategies.floats(0, 1), strategies.floats(0, 1), strategies.integers(0, 2**32 - 1))
def test_the_dials_set_the_correlations_that_they_document(conflict, transfer, seed):
    chosen = Settings(6000, 1, seed, conflict, transfer)
    users = world._users(chosen, world._streamers(chosen))

    def correlation(one, other):
        return np.corrcoef(one.ravel(), other.ravel())[0, 1]

    assert correlation(users.live_click, users.live_value) == pytest.approx(1 - 2 * conflict, abs=0.05)
    assert correlation(users.video_click, users.video_value) == pytest.approx(1 - 2 * conflict, abs=0.05)
    assert correlation(users.live_click, users.video_click) == pytest.approx(transfer, abs=0.05)
    assert correlation(users.live_value, users.video_value) == pytest.approx(transfer, abs=0.05)
    assert users.live_value.std() == pytest.approx(1, abs=0.08)


def test_the_conflict_dial_turns_interests_and_leaves_rates(tmp_path):
    """With conflict the rooms that a user would click are not those that he would give to."""
    rates, likes = {}, {}
    for conflict in (0.0, 1.0):
        out = tmp_path / str(conflict)
        simulate(Settings(2000, 1, 4, conflict), out)
        true = oracle.read(out, [f"p_{task}" for task in TASKS])
        rates[conflict] = {task: true[f"p_{task}"].mean() for task in TASKS}
        likes[conflict] = np.corrcoef(np.log(true["p_click"]), np.log(true["p_like"] / true["p_effective_view"]))[0, 1]
    assert likes[0.0] > 0.4
    assert likes[1.0] < -0.2
    for task in TASKS:
        assert rates[0.0][task] == pytest.approx(rates[1.0][task], rel=0.3), task


@settings(max_examples=60, deadline=None)
@given(
    strategies.lists(strategies.integers(0, len(TOPICS) - 1), min_size=1, max_size=40),
    strategies.lists(strategies.integers(-1, len(TOPICS) - 1), max_size=20),
    strategies.integers(0, 1000),
)
def test_an_item_is_drawn_from_the_wanted_topic_wherever_there_is_one(topics, wanted, seed):
    topic, wanted = np.sort(topics).astype(np.int8), np.array(wanted, np.int64)
    random = np.random.default_rng(seed)
    drawn = world.draw_within(random, wanted, topic, random.random(len(topic)) ** 8 + 1e-9)
    assert ((drawn >= 0) & (drawn < len(topic))).all()
    there = np.isin(wanted, topic)
    assert (topic[drawn][there] == wanted[there]).all()


def test_items_are_drawn_in_proportion_to_their_weight():
    topic, weight = np.array([0, 0, 1, 1, 1]), np.array([1.0, 3.0, 1.0, 1.0, 2.0])
    drawn = world.draw_within(np.random.default_rng(1), np.full(40_000, 1), topic, weight)
    assert np.bincount(drawn, minlength=5) / 40_000 == pytest.approx([0, 0, 0.25, 0.25, 0.5], abs=0.01)
    drawn = world.draw_within(np.random.default_rng(2), np.full(40_000, -1), topic, weight)
    assert np.bincount(drawn, minlength=5) / 40_000 == pytest.approx(weight / 8, abs=0.01)


def test_excitement_and_heat_raise_the_next_slot_and_fade():
    state = State(world.build(Settings(50, 1, seed=2)))
    state.enter(100)
    state.excite(np.array([3, 3]), 1.0)
    assert state.excitement[3] == 0, "not within the slot"
    state.enter(101)
    assert state.excitement[3] == pytest.approx(2 * np.exp(-10 / 45), rel=1e-5)
    state.warm(np.array([5]), np.array([4]))
    for slot in range(102, 105):
        state.enter(slot)
    assert state.heat[5] == pytest.approx(4 * np.exp(-30 / 20), rel=1e-5)
    assert state.excitement[3] == pytest.approx(2 * np.exp(-40 / 45), rel=1e-5)


@pytest.mark.parametrize("name", ["burst", "heat", "excited", "favourite", "value", "charm"])
def test_what_makes_rare_actions_come_in_bursts_raises_their_chances(name):
    names = ("interest", "value", "quality", "charm", "burst", "heat", "excited", "favourite", "friend")
    inputs = {each: np.zeros(2) for each in names} | {name: np.array([0.0, 1.0])}
    users = {each: np.zeros(2) for each in ("bias", "patience", "warmth", "purse")}
    true = chances.live(inputs, users, np.array([False, False]), np.array([900.0, 900.0]), conflict=0.5)
    for task in ("like", "comment", "gift"):
        low, high = getattr(true, task) / true.effective_view
        assert high > 1.2 * low, task
    assert (true.like < true.effective_view).all()
    assert (true.effective_view < true.click).all()


def test_nobody_follows_twice_and_a_closing_room_has_no_effective_view():
    inputs = dict.fromkeys(
        ("interest", "value", "quality", "charm", "burst", "heat", "excited", "favourite", "friend"), np.zeros(3)
    )
    users = dict.fromkeys(("bias", "patience", "warmth", "purse"), np.zeros(3))
    true = chances.live(inputs, users, np.array([False, True, False]), np.array([900.0, 900.0, 29.0]), conflict=0.5)
    assert (true.follow > 0).tolist() == [True, False, False]
    assert (true.effective_view > 0).tolist() == [True, True, False]
    assert true.watch_time[2] < true.watch_time[0]


def test_popularity_drifts_from_day_to_day_and_new_streamers_rise():
    chosen = Settings(20_000, 8, seed=3)
    streamers = world._streamers(chosen)
    days = np.array(list(world.popularity(chosen, streamers))) / streamers.weight
    old = np.log(days[:, streamers.born == 0])
    assert old.std(axis=1) == pytest.approx(np.full(8, world.DRIFT_STD), rel=0.1)
    for lag in (1, 3, 6):
        assert np.corrcoef(old[0], old[lag])[0, 1] == pytest.approx(world.DRIFT_DAY**lag, abs=0.05)
    new = streamers.born == 3
    assert new.sum() > 20
    assert (days[:3, new] == 0).all()
    assert np.median(days[3, new]) < 0.6 * np.median(days[7, new])


def test_follows_are_remembered_once_each():
    drawn = world.build(Settings(50, 1, seed=2))
    state, favourite = State(drawn), drawn.users.favourites[7, 0]
    other = next(s for s in range(len(drawn.streamers)) if s not in drawn.users.favourites[7])
    pair = np.array([7, 7]), np.array([favourite, other])
    assert state.follows(*pair).tolist() == [True, False]
    state.follow(np.array([7, 7]), np.array([other, other]))
    state.follow(np.array([1]), np.array([other]))
    assert state.follows(*pair).tolist() == [True, True]
    assert state.follows(np.array([8]), np.array([other])).tolist() == [other in drawn.users.favourites[8]]


@pytest.mark.parametrize(("text", "number"), [("500", 500), ("20k", 20_000), ("1.5m", 1_500_000), ("2K", 2000)])
def test_numbers_of_users_are_read_as_people_write_them(text, number):
    assert count(text) == number


@pytest.mark.parametrize("text", ["", "many", "1.0005k", "k", "nan", "inf"])
def test_other_words_are_refused(text):
    with pytest.raises(BadInput, match="--users"):
        count(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"users": 3}, "20 users"), ({"days": 0}, "days"), ({"seed": -1}, "seed"), ({"conflict": 1.2}, "--conflict 1.2")]
    + [({"transfer": -0.1}, "--transfer"), ({"transfer": float("nan")}, "--transfer")],
)
def test_settings_out_of_range_are_refused(change, words):
    with pytest.raises(BadInput, match=words):
        Settings(**({"users": 100, "days": 1, "seed": 1} | change))
