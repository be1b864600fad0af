"""A stream adds to a store what happens, over kills and a store that goes away, as the samples have it."""

import numpy as np
import pytest

from livetrain.configs.event_spec import EventSpec
from livetrain.configs.spec import load_spec
from livetrain.trainers.data.sources.table.events import adapter
from livetrain.trainers.data.store.fill import read_meta
from livetrain.trainers.data.store.kv import open_store
from livetrain.trainers.data.store.layout import NOW, NULL
from livetrain.trainers.data.store.minutes import Minutes
from livetrain.trainers.data.stream import join, lane
from livetrain.trainers.online.features import Features
from tests.trainers.data.stream import logs
from tests.trainers.data.stream.test_stream import landed
from tests.trainers.online import worlds
from tests.trainers.online.test_features import compare
from tests.trainers.online.test_store import content, redis_server  # noqa: F401


@pytest.fixture(scope="module")
def two_days(tmp_path_factory):
    return logs.drawn_and_prepared(tmp_path_factory.mktemp("two-days"), 30, 250, seed=5)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def many_small_steps(monkeypatch):
    monkeypatch.setattr(join, "SPAN_ROWS", 25)
    monkeypatch.setattr(join, "_SMALL", 3)
    monkeypatch.setattr(lane, "_SHARE", 0)
    monkeypatch.setattr(lane, "PENDING", 40)


JOBS = {"read": {"every_s": 0.01, "messages": 50}, "join": {"every_s": 0.01}}


def newest(days, raw):
    """Return the samples of the second day, and their event log."""
    second = days.filter(days_of(days) == max(days_of(days)))
    return second, adapter(load_spec(raw / "events.yaml", EventSpec).spec)


def days_of(days):
    return (days["timestamp"].to_numpy() + 8 * logs.HOUR) // (24 * logs.HOUR)


@pytest.mark.parametrize("kills", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_requests_of_a_day_that_a_stream_has_told_get_what_its_samples_have(two_days, tmp_path, request, kills):
    raw, told, days = two_days
    if kills:
        request.getfixturevalue("many_small_steps")
    path = landed(raw, told, tmp_path, store="store", jobs=JOBS if kills else {"join": {"every_s": 0.01}})
    state = sorted((raw.parent / "days").glob("date=*"))[0]
    store = open_store(str(tmp_path / "store"), create=True)
    worlds.filled(store, state)
    needless = f"{NOW}/events/{10**15}"
    store.put([(needless, np.array([0, 5, 6, 1000, 0, 0, NULL, NULL]).tobytes())])
    store.close()
    logs.drained_with_kills(path, tmp_path / "out", kills)
    assert logs.samples(tmp_path / "out").equals(days)
    store = open_store(str(tmp_path / "store"))
    assert needless not in list(store.keys(f"{NOW}/"))
    samples, log = newest(days, raw)
    assert compare(Features(store), samples, log) > 100 * 20
    # The same night, of the stream's own state: it knows the same.
    worlds.filled(store, tmp_path / "out")
    assert read_meta(store)["source"].endswith("lane=0/state/date=2025-05-25")
    assert compare(Features(store), samples, log) > 100 * 20


@pytest.mark.slow
@pytest.mark.usefixtures("many_small_steps")
def test_lanes_add_each_their_users(two_days, tmp_path):
    raw, told, days = two_days
    path = landed(raw, told, tmp_path, store="store", lanes=2)
    for number in range(2):
        logs.drain(path, tmp_path / "out", number)
    store = open_store(str(tmp_path / "store"))
    worlds.filled(store, tmp_path / "out")
    assert compare(Features(store), *newest(days, raw)) > 100 * 20


@pytest.mark.slow
@pytest.mark.usefixtures("many_small_steps")
def test_a_store_that_is_away_gets_it_later(two_days, tmp_path, redis_server, monkeypatch):  # noqa: F811
    raw, told, days = two_days
    start, kill = redis_server
    path = landed(raw, told, tmp_path, store=start(), jobs=JOBS)
    calls, add = [0], Minutes.add

    def added(self, *arguments):
        calls[0] += 1
        if calls[0] == 5:
            kill()
        return add(self, *arguments)

    monkeypatch.setattr(Minutes, "add", added)
    said, closed = [], []

    def tell(words):
        said.append(words)
        closed.append(words.startswith("closed"))
        if "feature store does not answer" in words:
            start()

    (tmp_path / "out").mkdir()
    lane.run_lane(lane.load_stream(path), tmp_path / "out", 0, True, tell)
    assert sum("the feature store does not answer" in words for words in said) == 1
    assert "the feature store answers again" in said
    assert logs.samples(tmp_path / "out").equals(days)
    # A Redis that keeps nothing has lost what it was told before; the stream tells it again when it is started again.
    lane.run_lane(lane.load_stream(path), tmp_path / "out", 0, True, tell)
    store = open_store(lane.load_stream(path).store)
    worlds.filled(store, tmp_path / "out")
    assert compare(Features(store), *newest(days, raw)) > 100 * 20
