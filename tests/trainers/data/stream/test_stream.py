"""A stream's samples are those of the days: read by minutes, out of order, twice, by lanes, and killed anywhere."""

import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.simulator import Settings, simulate
from livetrain.trainers.data.sources.events import stage
from livetrain.trainers.data.stream import join, lane
from livetrain.trainers.data.stream.lane_folder import newest
from livetrain.trainers.data.write.ids import string_ids
from livetrain.trainers.runtime import manifest
from tests.trainers.data.stream import logs


@pytest.fixture(scope="module")
def two_days(tmp_path_factory):
    """30 hours, over a midnight."""
    return logs.drawn_and_prepared(tmp_path_factory.mktemp("two-days"), 30, 250, seed=5)


def landed(raw: Path, told: dict, tmp_path: Path, **more) -> Path:
    for table, rows in told.items():
        logs.land(tmp_path / "land", table, rows, every=logs.HOUR, disorder=600_000)
    given = {"every_s": 1800, "wait_s": 3600, "lateness_s": 4200, **more}
    return logs.spec(tmp_path / "stream.yaml", raw / "events.yaml", {"kind": "folder", "path": "land"}, **given)


def test_a_simulated_week_by_minutes_is_the_week_by_days(tmp_path):
    simulate(Settings(40, 7, 3), tmp_path / "simulated", lambda done, total: None)
    raw = tmp_path / "simulated" / "kuailive"
    days = logs.prepared(raw, tmp_path / "days")
    told = logs.messages(raw)
    twice = {table: [*rows, *rows[::20]] for table, rows in told.items()}
    path = landed(raw, twice, tmp_path, every_s=3600)
    logs.drain(path, tmp_path / "out")
    found = logs.samples(tmp_path / "out")
    assert found.num_rows > 500
    assert found.schema == days.schema
    assert found.equals(days)
    counted = logs.counts(tmp_path / "out")
    assert counted["messages"] == sum(map(len, twice.values()))
    assert counted["late"] == counted["poison"] == counted["behind"] == 0
    assert counted["duplicates"] >= sum(len(rows[::20]) for rows in (told["clicks"], told["shows"]))
    assert counted["null gift"] == days["gift"].null_count


@pytest.mark.parametrize(("lanes", "buckets"), [(2, 1), (1, 3)])
def test_lanes_and_buckets_share_the_users(two_days, tmp_path, lanes, buckets):
    raw, told, days = two_days
    path = landed(raw, told, tmp_path, lanes=lanes, buckets=buckets)
    for number in range(lanes):
        logs.drain(path, tmp_path / "out", number)
    found = logs.samples(tmp_path / "out")
    assert found.sort_by(logs.ORDER).equals(days)
    own = [
        set(path.parent.name for path in (tmp_path / "out").glob(f"date=*/time=*/lane={n}/*.parquet"))
        for n in range(lanes)
    ]
    assert all(own)
    assert logs.counts(tmp_path / "out")["messages"] == sum(map(len, told.values()))  # told once


def test_labels_that_are_not_known_yet_are_null_and_others_are_the_days(two_days, tmp_path):
    raw, told, days = two_days
    logs.drain(landed(raw, told, tmp_path, wait_s=60), tmp_path / "out")
    found = logs.samples(tmp_path / "out")
    assert found["gift"].null_count == len(found)  # an hour is not over a minute after
    assert logs.counts(tmp_path / "out")["null gift"] == len(found)
    same = [name for name in days.column_names if name not in ("gift", "gift_value")]
    assert found.select(same).equals(days.select(same))


def test_the_spans_that_minutes_are_made_in_change_no_byte(two_days, tmp_path, monkeypatch):
    raw, told, _ = two_days
    path = landed(raw, told, tmp_path)
    logs.drain(path, tmp_path / "one")
    monkeypatch.setattr(join, "SPAN_ROWS", 25)
    monkeypatch.setattr(join, "_SMALL", 2)
    monkeypatch.setattr(lane, "PENDING", 40)
    logs.drain(path, tmp_path / "many")
    assert logs.parts(tmp_path / "one") == logs.parts(tmp_path / "many")
    assert logs.counts(tmp_path / "one") == logs.counts(tmp_path / "many")


CHANGING = (
    ("live_content_category: VARCHAR}", "live_content_category: VARCHAR, told_at: BIGINT}"),
    ("'+') AS tags\n", "'+') AS tags, told_at\n"),
    ("    bags: [tags]\n", "    bags: [tags]\n    since: told_at\n"),
)


def test_what_is_said_of_a_room_counts_from_then_on_until_something_else_is(two_days, tmp_path, monkeypatch):
    """By minutes, over kills and merges of segments, as by days, and as a search by hand has it."""
    _, told, _ = two_days
    draw, events = random.Random(2), logs.EVENTS
    for old, new in CHANGING:
        assert events.count(old) == 1
        events = events.replace(old, new)
    times = [(room, logs.BEGIN + draw.randrange(40 * 3600) * 1000) for room in range(1, 18) for _ in range(4)]
    times += [(row["live_id"], at) for at, row in told["shows"][50:60]]  # at the very moment of an exposure
    rows = [{"live_id": room, "live_content_category": draw.choice("abcdef"), "told_at": at} for room, at in times]
    said = sorted(((row["told_at"], row) for row in rows), key=lambda each: each[0])
    raw = tmp_path / "raw"
    logs.write_logs(raw, told)
    lines = [f"{row['live_id']},{row['live_content_category']},{at}\n" for at, row in said]
    (raw / "room.csv").write_text("live_id,live_content_category,told_at\n" + "".join(lines))
    days = logs.prepared(raw, tmp_path / "days", events)
    for row in days.to_pylist():
        before = [each for at, each in said if each["live_id"] == row["room"] and at < row["timestamp"]]
        wanted = string_ids(pa.array([before[-1]["live_content_category"]]))[0].as_py() if before else None
        assert row["category"] == wanted
    of_room = days.group_by("room").aggregate([("category", "count_distinct")])
    assert max(of_room["category_count_distinct"].to_pylist()) > 2
    (raw / "room.csv").unlink()
    topics = {table: {"source": "bus", "topic": table, "time": "timestamp"} for table in told}
    jobs = {"read": {"every_s": 0.01, "messages": 1}, "join": {"every_s": 0.01}}
    topics["rooms"] = {"source": "bus", "topic": "rooms", "time": "told_at"}
    path = landed(raw, told | {"rooms": said}, tmp_path, topics=topics, jobs=jobs)
    monkeypatch.setattr(join, "SPAN_ROWS", 25)
    monkeypatch.setattr(join, "_SMALL", 3)
    monkeypatch.setattr(lane, "_SHARE", 0)
    monkeypatch.setattr(lane, "PENDING", 40)
    load, loaded = stage.load_attributes, []
    monkeypatch.setattr(stage, "load_attributes", lambda *told: (loaded.append(set(told[3])), load(*told)))
    logs.drained_with_kills(path, tmp_path / "out", 4)
    assert {"room"} in loaded
    assert loaded.count({"user", "room"}) == 6  # at each start, and for stream.json
    assert logs.samples(tmp_path / "out").equals(days)
    past = newest(tmp_path / "out", 0)[1]["resume"]["past"]
    assert len(past["tables"]["rooms"]) < 3
    assert len(list((tmp_path / "out/_lanes/lane=0/segments").glob("t-*"))) == len(past["tables"]["rooms"])


def test_a_damaged_newest_manifest_is_named(two_days, tmp_path):
    """To go on from the one before would need what was deleted since."""
    raw, told, _ = two_days
    path = landed(raw, {table: rows[:40] for table, rows in told.items()}, tmp_path)
    logs.drain(path, tmp_path / "out")
    damaged = max((tmp_path / "out").glob("date=*/time=*/lane=0/manifest.json"))
    for text in ("{", '{"files": {}}'):
        damaged.write_text(text)
        with pytest.raises(BadInput, match=re.escape(f"{damaged}, the newest of the lane, is no manifest")):
            logs.drain(path, tmp_path / "out")


def test_a_kill_before_any_write_loses_and_doubles_nothing(two_days, tmp_path, monkeypatch):
    raw, told, _ = two_days
    path = landed(raw, {table: rows[:40] for table, rows in told.items()}, tmp_path)
    logs.drain(path, tmp_path / "whole")
    wanted, counted = logs.parts(tmp_path / "whole"), logs.counts(tmp_path / "whole")
    monkeypatch.setattr(join, "SPAN_ROWS", 25)
    real = {"sync": manifest.sync, "write_json": manifest.write_json}
    draw, left = random.Random(3), [0]

    def before(name):
        def call(*arguments):
            left[0] -= 1
            if left[0] == 0:
                raise logs.Killed
            return real[name](*arguments)

        return call

    for name in real:
        monkeypatch.setattr(manifest, name, before(name))
    kills = 0
    while True:
        left[0] = draw.randrange(1, 30)
        try:
            logs.drain(path, tmp_path / "killed")
            break
        except logs.Killed:
            kills += 1
    assert kills >= 3
    assert logs.parts(tmp_path / "killed") == wanted
    assert logs.counts(tmp_path / "killed") == counted
    lane_folder = tmp_path / "killed" / "_lanes" / "lane=0"
    last = newest(tmp_path / "killed", 0)[1]["resume"]["past"]
    assert len(list((lane_folder / "segments").iterdir())) == sum(bool(s[k]) for s in last["segments"] for k in "ea")


def test_a_kill_as_a_day_ends_loses_and_doubles_nothing(two_days, tmp_path, monkeypatch):
    """The state of the day before is then the first thing that the next start makes."""
    raw, told, _ = two_days
    path = landed(raw, told, tmp_path)
    monkeypatch.setattr(join, "SPAN_ROWS", 25)
    logs.drain(path, tmp_path / "whole")
    with monkeypatch.context() as once:
        once.setattr(join.Joiner, "_keep", lambda *_: (_ for _ in ()).throw(logs.Killed))
        with pytest.raises(logs.Killed):
            logs.drain(path, tmp_path / "killed")
    logs.drain(path, tmp_path / "killed")
    assert logs.parts(tmp_path / "killed") == logs.parts(tmp_path / "whole")
    assert logs.counts(tmp_path / "killed") == logs.counts(tmp_path / "whole")


def _small_spans(path: Path, out: Path) -> None:
    join.SPAN_ROWS = 15
    logs.drain(path, out)


@pytest.mark.slow
def test_a_hundred_kills_at_any_moment_lose_and_double_nothing(two_days, tmp_path):
    raw, told, _ = two_days
    path = landed(raw, told, tmp_path)
    logs.drain(path, tmp_path / "whole")
    wanted, counted = logs.parts(tmp_path / "whole"), logs.counts(tmp_path / "whole")
    start = multiprocessing.get_context("forkserver")  # whose children have imported everything
    start.set_forkserver_preload([__name__])
    draw, kills, streams = random.Random(11), 0, 0
    while kills < 100:
        out = tmp_path / f"killed-{streams}"
        streams += 1
        while True:
            process = start.Process(target=_small_spans, args=(path, out))
            process.start()
            process.join(draw.uniform(0.1, 4))
            if process.exitcode is not None:
                assert process.exitcode == 0
                break
            process.kill()
            process.join()
            kills += 1
        assert logs.parts(out) == wanted
        assert logs.counts(out) == counted


@pytest.mark.slow
def test_flink_joins_as_a_stream_does(two_days, tmp_path):
    """The SQL of the guide is run by PyFlink in an environment of its own, as both need other releases of packages:

    python -m venv FLINK && FLINK/bin/pip install 'apache-flink>=2'
    LIVETRAIN_FLINK=FLINK/bin/python python -m pytest -m slow tests/trainers/data/stream/test_stream.py -k flink
    """
    python = os.environ.get("LIVETRAIN_FLINK")
    if python is None:
        pytest.skip("LIVETRAIN_FLINK names no Python that has apache-flink")
    if shutil.which("java") is None:
        pytest.skip("PyFlink needs Java")
    _, told, days = two_days
    tables = {"shows": [*told["shows"], *told["clicks"]], "gifts": told["gifts"]}
    for table, rows in tables.items():
        told_once = {json.dumps(row): at for at, row in rows}
        lines = [
            json.dumps({**json.loads(row), "ts": at, "price": json.loads(row).get("gift_price")})
            for row, at in sorted(told_once.items(), key=lambda each: each[1])
        ]
        (tmp_path / table).mkdir()
        (tmp_path / table / "0.json").write_text("\n".join(lines) + "\n")
    sql = logs.GUIDE.with_name("streams.md").read_text().partition("<!-- flink -->\n```sql\n")[2].partition("```")[0]
    sql = sql.format(**{name: f"file://{tmp_path / name}" for name in ("shows", "gifts", "samples")})
    program = f"""
from pyflink.table import EnvironmentSettings, TableEnvironment
flink = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
for key, value in {{"parallelism.default": "1", "execution.checkpointing.interval": "5 s"}}.items():
    flink.get_config().set(key, value)
for statement in {sql!r}.split(";"):
    if statement.strip():
        made = flink.execute_sql(statement)
made.wait()
"""
    (tmp_path / "job.py").write_text(program)
    subprocess.run([python, tmp_path / "job.py"], check=True)
    found = {}
    for file in (tmp_path / "samples").rglob("part-*"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found[row["user_id"], row["live_id"], row["ts"]] = (row["gift"], row["gift_value"])
    assert len(found) == len(days)
    known = [row for row in days.to_pylist() if row["gift_value"] is not None]
    assert any(row["gift"] for row in known)
    for row in known:  # the others' hour is not over when their day ends, or a price is not told
        assert found[row["user"], row["room"], row["timestamp"]] == (row["gift"], pytest.approx(row["gift_value"]))
