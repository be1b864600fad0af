"""A store is read whole or as it was: half-filled nights, kills, two fills, a Redis that goes away."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest

from benchmarks.redis_server import free_port
from benchmarks.redis_server import start as started_redis
from livetrain.cli import main as cli
from livetrain.configs.errors import BadInput, NotNow
from livetrain.trainers.data.sources.events import plan
from livetrain.trainers.data.store import kv, layout, minutes
from livetrain.trainers.data.store.fill import read_meta
from livetrain.trainers.data.store.kv import Store, open_store
from livetrain.trainers.online.features import Features
from tests.trainers.data.sources.events.logs import HOUR
from tests.trainers.online import worlds
from tests.trainers.online.test_features import compare

pytest.importorskip("lmdb")


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_killed_reader_does_not_make_the_file_grow(tmp_path):
    store = open_store(str(tmp_path), create=True)
    store.put([("a", b"0")])
    reads = f"import lmdb, time; held = lmdb.open({str(tmp_path)!r}, readonly=True).begin(); print(1, flush=True); "
    with subprocess.Popen([sys.executable, "-c", reads + "time.sleep(99)"], stdout=subprocess.PIPE) as reader:
        assert reader.stdout.readline() == b"1\n"
        reader.kill()
    for number in range(100):
        store.put([("a", bytes([number]) * 100_000)])
    assert store.get(["a"]) == [bytes([99]) * 100_000]
    store.close()
    assert (tmp_path / "data.mdb").stat().st_size < 2_000_000


@pytest.fixture(scope="module")
def days(tmp_path_factory) -> list[Path]:
    return worlds.prepared(tmp_path_factory.mktemp("days"), 7)


def content(store: Store) -> dict[str, bytes]:
    """Return what requests can see, by key without the generation."""
    meta = read_meta(store)
    names = {meta["generation"]: "G", layout.NOW: layout.NOW}
    keys = [key for key in store.keys("") if key.partition("/")[0] in names]
    return {names[key.partition("/")[0]] + "/" + key.partition("/")[2]: store.get([key])[0] for key in keys}


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"), create=True)


def test_a_night_that_is_half_filled_is_never_read(days, store, monkeypatch):
    worlds.filled(store, days[1])
    before, generation = content(store), read_meta(store)["generation"]
    put = type(store).put

    def some(self, pairs):
        pairs = iter(pairs)
        put(self, [next(pairs) for _ in range(20)])
        raise Killed

    monkeypatch.setattr(type(store), "put", some)
    with pytest.raises(Killed):
        worlds.filled(store, days[2])
    assert read_meta(store)["generation"] == generation
    assert content(store) == before
    monkeypatch.undo()
    worlds.filled(store, days[2])
    meta = read_meta(store)
    assert meta["horizon"] > meta["before"]["horizon"]
    kept = {key.partition("/")[0] for key in store.keys("") if "/" in key}
    assert kept == {meta["generation"], generation}  # what was killed left nothing
    worlds.filled(store, days[2])
    kept = {key.partition("/")[0] for key in store.keys("") if "/" in key}
    assert kept == {meta["generation"], read_meta(store)["generation"]}
    assert content(store) != before


def test_an_earlier_night_and_another_log_are_refused(days, store, monkeypatch):
    worlds.filled(store, days[2])
    with pytest.raises(NotNow, match="a later day is in it already"):
        worlds.filled(store, days[1])
    told = plan.read
    monkeypatch.setattr(plan, "read", lambda state: told(state) | {"name": "another"})
    with pytest.raises(BadInput, match="it is of kuailive-.*, and this day of another; name a store of its own"):
        worlds.filled(store, days[2])


def test_two_fills_do_not_meet(days, store):
    with store.alone(), pytest.raises(NotNow, match="another fill is at work"):
        worlds.filled(store, days[1])


def test_users_of_whom_nothing_was_seen_for_long_are_left_out(days, store):
    assert worlds.filled(store, days[1]).gone == 0
    whole, horizon = content(store), read_meta(store)["horizon"]
    everybody = {key.rpartition("/")[2] for key in whole if key.startswith("G/pairs.")}
    late = {
        user
        for user in everybody
        if (layout.words(whole.get(f"G/events/{user}"), len(layout.EVENT))[:, 3] >= horizon).any()
    }
    gone = worlds.filled(store, days[1], keep_days=0).gone
    kept = {key.rpartition("/")[2] for key in content(store) if key.startswith("G/pairs.")}
    assert kept == late
    assert gone == len(everybody - late) > 0


def test_what_has_no_state_is_named(days, store, tmp_path):
    with pytest.raises(BadInput, match="has no state of a day, from which a store is filled; name an event log's"):
        worlds.filled(store, tmp_path)
    out = tmp_path / "out"
    shutil.copytree(days[0].parent, out)
    (out / "_state" / days[0].name / plan.PLAN).unlink(missing_ok=True)
    shutil.rmtree(out / "_state" / days[0].name, ignore_errors=True)
    with pytest.raises(BadInput, match="its state is kept no longer; .* has those of date="):
        worlds.filled(store, out / days[0].name)
    (out / "_state" / days[1].name / plan.PLAN).unlink()
    with pytest.raises(BadInput, match=r"has no plan.json, .*prepare the log again, in a new folder"):
        worlds.filled(store, out / days[1].name)


def test_the_command_fills_and_shows(days, tmp_path, capsys):
    place = str(tmp_path / "store")
    assert not cli.app(["store", "fill", str(days[0].parent), "--store", place], standalone_mode=False)
    assert "is in use" in capsys.readouterr().out
    assert not cli.app(["store", "get", "user", "1", "--store", place], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["sequence.live"]["author"]
    assert found["pairs.user_streamer"]["id"] == sorted(found["pairs.user_streamer"]["id"])
    assert "user_age" in found["attributes.user"]
    assert not cli.app(["store", "get", "room", "1", "--store", place], standalone_mode=False)
    assert "live_type" in json.loads(capsys.readouterr().out)["attributes.room"]
    assert not cli.app(["store", "get", "streamer", "101", "--store", place], standalone_mode=False)
    topics = json.loads(capsys.readouterr().out)["topics"]
    assert len(topics["topic"]) == len(topics["shown"]) == 2
    assert min(topics["shown"]) > 0
    with pytest.raises(BadInput, match="video: the store has none; it has user, room, streamer"):
        cli.app(["store", "get", "video", "1", "--store", place], standalone_mode=False)
    with pytest.raises(BadInput, match="there is no feature store"):
        cli.app(["store", "get", "user", "1", "--store", str(tmp_path / "none")], standalone_mode=False)


# What streams add


def test_an_event_told_twice_counts_once_and_the_newest_are_kept(monkeypatch):
    row = [0, 5, 6, 1000, 0, 0, layout.NULL, layout.NULL]
    merged = minutes._of_user(500)
    none = np.zeros(0, np.int64)
    once = merged(none, np.array(row))
    assert merged(layout.words(once)[:, 0], np.array(row)) == once
    known = [*row[:7], 77]  # its topic is known by now
    assert layout.words(merged(layout.words(once)[:, 0], np.array(known)), 8).tolist() == [known]
    old = [*row[:3], 499, *row[4:]]
    assert merged(none, np.array(old)) == b""
    monkeypatch.setattr(minutes, "USER_EVENTS", 3)
    many = np.array([[0, n, 6, 1000 + n, 0, 0, layout.NULL, layout.NULL] for n in range(9)])
    assert layout.words(merged(none, many.ravel()), 8)[:, 1].tolist() == [6, 7, 8]


def test_sums_of_a_room_say_what_its_events_said(monkeypatch):
    """Told minute by minute, with what was told before told again."""
    drawn = np.random.default_rng(1)
    times = np.sort(drawn.integers(0, 7_200_000, 3000))
    kinds = drawn.choice([1, 1, 128, 4], 3000)
    rows = np.stack([np.arange(3000), np.full(3000, 9), times, kinds, np.zeros(3000, int), np.zeros(3000, int)], 1)
    monkeypatch.setattr(minutes, "ROOM_EVENTS", 50)
    merged, value = minutes._of_room(0), np.zeros(0, np.int64)
    for begin in range(0, 3000, 40):
        value = layout.words(merged(value, rows[max(0, begin - 100) : begin + 40].ravel()))[:, 0]
    summed, sums, events = layout.room_of(value)
    assert summed > 5_000_000
    assert len(events) < 1000
    assert len(value) < 10_000
    changes = (kinds == 1).astype(int) - (kinds == 128)
    assert sums[:, 1].sum() == changes[times < summed].sum()
    assert events[:, 2].tolist() == times[times >= summed].tolist()


def test_a_night_makes_needless_what_was_told_before_the_night_before_it(days, store, tmp_path):
    raw, last = days[0].parents[1] / "raw", worlds.samples(days[2])["timestamp"].to_numpy().max()
    worlds.filled(store, days[1])
    worlds.told(store, worlds.EVERYTHING, raw, days[2], tmp_path / "work")
    worlds.filled(store, days[2])
    features = Features(store)
    asked = {"room": [1, 2, 3, 4, 5], "streamer": [101, 102, 103, 104, 105]}
    before = {user: features.columns(user, asked, int(last) + HOUR)[0] for user in range(1, 5)}
    told = [key for key in store.keys(f"{layout.NOW}/")]
    old = [[0, 5, 6, 1000, 0, 0, layout.NULL, layout.NULL]]
    for user in (10, 11):
        store.put([(f"{layout.NOW}/events/{user}", np.array(old).tobytes())])
    for prefix in ("room", "user"):
        store.put([(f"{layout.NOW}/attributes.{prefix}/77", np.array([1000]).tobytes())])
    store.put([(f"{layout.NOW}/room/77", np.array([1000, 0]).tobytes())])
    lanes = [
        minutes.Minutes(store, worlds.EVERYTHING, duckdb.connect(), f"(user % 2 + 2) % 2 = {lane}", rooms=lane == 0)
        for lane in range(2)
    ]
    assert lanes[1].sweep() == 1
    assert f"{layout.NOW}/events/10" in store.keys("")
    assert lanes[0].sweep() == 4
    assert [key for key in store.keys(f"{layout.NOW}/")] == told
    store.put([(f"{layout.NOW}/room/77", np.array([1000, 0]).tobytes())])
    assert lanes[0].sweep() == 0  # once a night
    worlds.filled(store, days[2])
    assert sum(each.sweep() for each in lanes) > 1
    assert {user: features.columns(user, asked, int(last) + HOUR)[0] for user in before} == before


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(kv, "_MAP", 1 << 16)
    store = open_store(str(tmp_path / "store"), create=True)
    with pytest.raises(NotNow, match="the feature store does not answer"):
        store.put([(f"{n}", bytes(4000)) for n in range(99)])
    assert list(store.keys("")) == []


# Redis


@pytest.fixture
def redis_server(tmp_path):
    """Starts and kills a Redis that keeps nothing."""
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    started: list[subprocess.Popen] = []

    def start() -> str:
        started.append(started_redis(port, tmp_path))
        return f"redis://127.0.0.1:{port}/0"

    def kill() -> None:
        started[-1].kill()
        started[-1].wait()

    yield start, kill
    kill()


def test_a_redis_holds_the_same_is_missed_in_one_sentence_and_filled_again(days, store, redis_server, tmp_path):
    start, kill = redis_server
    shared = open_store(start())
    for each, name in ((store, "one"), (shared, "two")):
        worlds.filled(each, days[1])
        worlds.told(each, worlds.EVERYTHING, days[0].parents[1] / "raw", days[2], tmp_path / name)
    assert content(shared) == content(store)
    features, samples = Features(shared), worlds.samples(days[2]).slice(0, 10)
    assert compare(features, samples, worlds.EVERYTHING) > 500
    kill()
    with pytest.raises(NotNow, match=r"redis://127.0.0.1:\d+/0: the feature store does not answer"):
        compare(features, samples, worlds.EVERYTHING)
    start()
    with pytest.raises(NotNow, match="it was never filled"):
        compare(features, samples, worlds.EVERYTHING)
    worlds.filled(shared, days[1])
    worlds.told(shared, worlds.EVERYTHING, days[0].parents[1] / "raw", days[2], tmp_path / "three")
    assert compare(features, samples, worlds.EVERYTHING) > 500
