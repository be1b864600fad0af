"""A world that is replayed: every message arrives, in order, whatever kills the replay."""

import datetime
import json
import subprocess
import sys
import time
from collections import Counter

import duckdb
import pytest
import yaml

from livetrain.configs.errors import BadInput
from livetrain.configs.event_spec import EventSpec
from livetrain.configs.spec import load_spec
from livetrain.configs.stream_spec import load_stream
from livetrain.trainers.data.simulator import Settings, simulate
from livetrain.trainers.data.simulator.replay import LATE_MS, MINUTE_MS, Replay, messages, replay
from livetrain.trainers.data.simulator.replay_specs import stream


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "w"
    simulate(Settings(300, 2, seed=5), out)
    return out


def key(row):
    return row["user_id"], row["live_id"], row["timestamp"]


def test_every_event_arrives_once_and_the_asked_share_twice(world):
    found = {}
    for arrived in messages(world, Replay(twice=0.2, late=0.0, delay=0.0)):
        for topic, lines in arrived.messages.items():
            found.setdefault(topic, []).extend((arrived.start, json.loads(line)) for line in lines)
    log = duckdb.connect()
    for name in ("click", "negative", "like", "comment", "gift"):
        log.execute(f"CREATE VIEW \"{name}\" AS FROM read_csv('{world}/kuailive/{name}.csv')")
    names = {name: f'SELECT user_id, live_id, timestamp FROM "{name}"' for name in ("click", "like", "comment", "gift")}
    names["watch"] = names["click"]
    names["long"] = f"{names['click']} WHERE watch_live_time >= 30000"
    names["exposure"] = f"{names['click']} UNION ALL SELECT user_id, live_id, timestamp FROM negative"
    assert found.keys() == names.keys()
    for topic, query in names.items():
        came, wanted = Counter(key(row) for _, row in found[topic]), Counter(log.sql(query).fetchall())
        assert came.keys() == wanted.keys()
        assert all(wanted[each] <= count <= 2 * wanted[each] for each, count in came.items())
    for start, row in found["watch"]:
        assert start <= row["timestamp"] + row["watch_live_time"] < start + MINUTE_MS
    many = sum(log.sql(f"SELECT count(*) FROM ({query})").fetchall()[0][0] for query in names.values())
    assert sum(map(len, found.values())) / many == pytest.approx(1.2, abs=0.02)
    gift = found["gift"][0][1]
    assert (
        log.sql(f"SELECT gift_price FROM gift WHERE timestamp = {gift['timestamp']}").fetchall()[0][0]
        == gift["gift_price"]
    )


def test_delays_and_late_events_are_as_asked(world):
    waits = [
        arrived.start - json.loads(line)["timestamp"]
        for arrived in messages(world, Replay(delay=120.0, late=0.1, twice=0.0))
        for line in arrived.messages.get("exposure", ())
    ]
    mean = sum(waits) / len(waits) + MINUTE_MS / 2  # as the start of the minute says half a minute less
    assert mean == pytest.approx(120_000 + 0.1 * LATE_MS / 2, rel=0.1)
    assert sum(wait > 1_200_000 for wait in waits) / len(waits) == pytest.approx(0.1 * 2 / 3, rel=0.3)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in (folder / "topics").rglob("*.jsonl")}


DAY = (datetime.date(2025, 5, 25),) * 2


def test_a_replay_that_is_killed_goes_on_and_speed_changes_no_byte(world, tmp_path):
    come = replay(world, tmp_path / "whole", Replay(), 0, DAY)
    wanted = files(tmp_path / "whole")
    assert 1300 < come < 1600
    assert len(wanted) > 1000
    command = [sys.executable, "-m", "livetrain", "data", "replay", str(world), "--out", str(tmp_path / "killed")]
    started = subprocess.Popen([*command, "--days", "2025-05-25", "--speed", "60"], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("topics/*/*.jsonl"))) < 5 and time.monotonic() < end:
        time.sleep(0.05)
    started.kill()
    started.wait()
    assert 5 <= len(files(tmp_path / "killed")) < len(wanted)
    assert replay(world, tmp_path / "killed", Replay(), 0, DAY) == come
    assert files(tmp_path / "killed") == wanted
    with pytest.raises(BadInput, match="is of another replay"):
        replay(world, tmp_path / "killed", Replay(seed=8), 0, DAY)
    assert load_spec(tmp_path / "whole/events.yaml", EventSpec).spec.window_s == 120
    assert set(yaml.safe_load(stream(0))["topics"]) == {path.name for path in (tmp_path / "whole/topics").iterdir()}
    assert load_stream(tmp_path / "whole/stream.yaml").spec.idle_s == 60
    assert load_stream(tmp_path / "killed/stream.yaml").spec.idle_s == 5  # begun at 60 times the world's speed


def test_what_cannot_be_replayed_is_named(world, tmp_path):
    with pytest.raises(BadInput, match="no world that `livetrain data simulate` has written"):
        replay(tmp_path, tmp_path / "out", Replay(), 0)
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(BadInput, match="is not empty"):
        replay(world, tmp_path / "full", Replay(), 0)
    with pytest.raises(BadInput, match="--speed -1"):
        replay(world, tmp_path / "out", Replay(), -1)
    for wrong in ({"delay": -1}, {"twice": 2}, {"late": -0.1}, {"seed": -1}):
        with pytest.raises(BadInput, match=f"--{next(iter(wrong))}"):
            Replay(**wrong)
