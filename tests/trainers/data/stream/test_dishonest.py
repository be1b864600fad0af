"""Late, wrong, doubled, skewed and changing messages: counted, kept aside, and never in the samples."""

import contextlib
import itertools
import json
import os
import threading
import time
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.configs.stream_spec import load_stream
from livetrain.trainers.data.read.minutes import STREAM
from livetrain.trainers.data.stream import lane
from livetrain.trainers.data.stream.clock import Clock, Partition
from livetrain.trainers.data.stream.intake import Intake, Taken, connected
from livetrain.trainers.data.stream.lane import run_lane
from livetrain.trainers.data.stream.sources.base import Messages
from livetrain.trainers.data.stream.sources.folder import Folder
from tests.trainers.data.stream import logs

BEGIN = 1_748_102_400_000
FOLDER = {"kind": "folder", "path": "land"}


def row(second: int, user: int = 1, room: int = 2, **more) -> dict:
    return {"user_id": user, "live_id": room, "streamer_id": 7, "timestamp": BEGIN + 1000 * second, **more}


def written(tmp_path: Path, **more) -> Path:
    """Write the spec of a stream with nothing in its folder, and return it."""
    logs.write_logs(tmp_path / "raw", dict.fromkeys(logs.FEEDS, []))
    (tmp_path / "raw" / "events.yaml").write_text(more.pop("events", logs.EVENTS))
    return logs.spec(tmp_path / "stream.yaml", tmp_path / "raw" / "events.yaml", FOLDER, **more)


@pytest.fixture(scope="module")
def intake(tmp_path_factory):
    """Return what takes messages, and its database."""
    tmp_path = tmp_path_factory.mktemp("intake")
    loaded = load_stream(written(tmp_path, lateness_s=10, ahead_s=300))
    with connected(loaded, tmp_path) as connection:
        yield Intake(loaded, connection), connection


def given_(values: list, table: str = "clicks", stamp: int = 1 << 62, at_once: bool = False) -> Messages:
    told = [value if isinstance(value, bytes | None) else json.dumps(value).encode() for value in values]
    names = [f"offset {n}" for n in range(len(told))]
    turns = [0] * len(told) if at_once else range(len(told))
    return Messages((table, "0"), told, names, [stamp] * len(told), turns, len(told))


def took(intake, values: list, newest: int | None = None, closed: int | None = None, **more):
    """Return (counts, reasons, times of exposures, newest time) of messages."""
    takes, connection = intake
    taken = Taken()
    found = takes.take(given_(values, **more), Partition(newest=newest), taken)
    takes.settle(closed, taken)
    times = [
        (t - BEGIN) // 1000 for (t,) in connection.execute("SELECT time FROM new_exposures ORDER BY time").fetchall()
    ]
    for what in ("exposures", "actions"):
        connection.execute(f"DELETE FROM new_{what}")
    return taken.counts, [json.loads(line)["why"] for line in taken.poison], times, found


def test_what_is_no_row_is_kept_aside_with_the_reason(intake):
    wrong = [
        b"{broken",
        b"[1]",
        b"3",
        b"null",
        None,
        b"\xff\xfe",
        row(0, user="somebody"),
        {**row(0), "timestamp": None},
    ]
    wrong += [{"user_id": 1}, {**row(0), "timestamp": 12}, row(0, user=2**70)]
    counts, why, times, newest = took(intake, [row(1), *wrong, row(2, user="12"), row(3, extra=5)])
    assert counts["messages"] == 14
    assert counts["poison"] == len(why) == len(wrong)
    assert times == [1, 2, 3]  # "12" is a number as text, as a file of CSV has it; a new column is not read
    assert newest == BEGIN + 3000
    assert why.count("it is no JSON object") == 6
    assert why.count("user_id is not BIGINT") == 2
    assert why.count("its time is no milliseconds since 1970") == 3


def test_a_message_is_late_by_those_before_it_in_its_partition(intake):
    counts, _, times, newest = took(intake, [row(100), row(90), row(89), row(120), row(110), row(109), row(121)])
    assert (counts["late"], times) == (2, [90, 100, 110, 120, 121])
    assert newest == BEGIN + 121_000
    counts, _, times, _ = took(intake, [row(95), row(94)], newest=BEGIN + 105_000)
    assert (counts["late"], times) == (1, [95])
    counts, _, times, _ = took(intake, [row(300), row(1)], at_once=True)  # of one file
    assert (counts["late"], times) == (0, [1, 300])
    counts, _, times, _ = took(intake, [row(20), row(10)], closed=BEGIN + 15_000)
    assert (counts["behind"], times) == (2, [20])  # a click is an exposure and an action


def test_small_files_are_one_piece_of_work_and_each_is_late_by_those_before_it(intake, tmp_path):
    takes, connection = intake
    seconds = [[100, 91], [80, 105, 1, 101], [], [92, 95, 120], [94]]
    (tmp_path / "t").mkdir()
    for number, rows in enumerate(seconds):
        text = "".join(json.dumps(row(second)) + "\n" for second in rows)
        (tmp_path / "t" / f"{number}.jsonl").write_text(text)
    found = []
    for most, turns in ((100, [[0, 0, 1, 1, 1, 1, 3, 3, 3, 4]]), (9, [[0, 0, 1, 1, 1, 1, 3, 3, 3], [0]]), (1, None)):
        source, taken, partition, polled = Folder(str(tmp_path), tmp_path), Taken(), Partition(), []
        source.open(("clicks", "0"), "t", None)
        while not source.ended(("clicks", "0")):
            for messages in source.poll({("clicks", "0")}, most):
                polled.append(list(messages.turns))
                partition.took(takes.take(messages, partition, taken), messages.next)
        takes.settle(None, taken)
        for what in ("exposures", "actions"):
            connection.execute(f"DELETE FROM new_{what}")
        assert turns is None or polled == turns
        assert taken.counts["messages"] == 10
        assert partition.next == "4.jsonl"
        found.append((taken.counts["late"], taken.counts["exposures"], partition.newest))
    assert found == [(4, 6, BEGIN + 120_000)] * 3  # 80, 1, 92 and 94: those of one file do not count for each other


def test_a_clock_that_is_ahead_makes_nothing_late(intake):
    counts, why, times, newest = took(intake, [row(10), row(5000), row(11)], stamp=BEGIN + 20_000)
    assert why == ["its time is ahead of the clock"]
    assert (counts["late"], times, newest) == (0, [10, 11], BEGIN + 11_000)
    now = int(time.time()) - BEGIN // 1000
    _, why, _, _ = took(intake, [row(now + 10_000)])  # the source knows no time: this machine's clock counts
    assert why == ["its time is ahead of the clock"]


@settings(max_examples=12)
@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=30), st.integers(0, 30))
def test_whether_a_message_is_late_does_not_depend_on_how_partitions_are_read(intake, told, cut):
    """Read in one turn or in several, from the start or from a later offset, the same messages are taken."""
    rows = [row(second) if fine else {**row(second), "user_id": "x"} for second, fine in told]
    whole = took(intake, rows)
    first = took(intake, rows[:cut])
    second = took(intake, rows[cut:], newest=first[3])
    assert (first[0] + second[0]) == whole[0]
    assert sorted(first[2] + second[2]) == whole[2]


def test_columns_that_come_and_go_are_told_once(intake):
    takes, _ = intake
    takes.changed.clear()
    lacks = {key: value for key, value in row(1).items() if key != "streamer_id"}
    for _ in range(2):
        took(intake, [lacks | {"device": "x"}])
    assert sorted(takes.changed) == [
        "clicks: column 'device' of its messages is new and not read",
        "clicks: column 'streamer_id' of its messages is missing, and null",
    ]


def test_the_watermark_waits_for_the_slowest_that_is_not_silent():
    clock = Clock(lateness=10, hold=100)
    a, b = Partition(), Partition()
    clock.partitions = {("t", "a"): a, ("t", "b"): b}
    assert clock.watermark() is None
    a.took(500, 1)
    assert clock.watermark() is None  # b has not spoken
    b.took(300, 1)
    assert clock.watermark() == 290
    assert clock.readable() == {("t", "b")}  # a is 200 ahead, and held
    a.asked(5.0, sure=False)
    b.asked(5.0, sure=True)
    assert clock.idle(10.0) == []
    a.took(600, 2)
    b.asked(15.5, sure=True)  # its source answers, and it has nothing to say
    assert clock.idle(10.0) == [("t", "b")]
    assert clock.idle(10.0) == []  # told once
    assert clock.watermark() == 590
    b.took(310, 2)
    assert clock.watermark() == 590  # it never goes back
    a.ended = b.ended = True
    assert clock.watermark() > 10**15


def test_only_who_was_asked_all_the_time_and_had_nothing_is_silent():
    clock, each = Clock(lateness=0, hold=100), Partition(newest=5)
    clock.partitions = {("t", "a"): each}
    assert clock.idle(0.5) == []
    for moment, sure in ((0.0, True), (100.0, False), (200.0, True), (200.4, True)):  # an outage, or held back
        each.asked(moment, sure)
        assert clock.idle(0.5) == []
    each.took(6, 1)
    each.asked(300.0, sure=True)  # after a long piece of work
    assert clock.idle(0.5) == []
    each.asked(300.6, sure=True)
    assert clock.idle(0.5) == [("t", "a")]


def test_a_burst_is_held_at_its_source_and_goes_to_disk(tmp_path, monkeypatch):
    """One topic is far ahead of another: what is read has a bound, and so has what is in memory of it."""
    monkeypatch.setattr(lane, "PENDING", 100)
    jobs = {"read": {"every_s": 0.01, "messages": 50}}
    path = written(tmp_path, every_s=60, wait_s=0, lateness_s=0, idle_s=3600, jobs=jobs)
    land = tmp_path / "land"

    def write(table: str, number: int, seconds) -> None:
        (land / table).mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row(second, user=1 + second % 40)) for second in seconds]
        (land / table / f"{number:06d}.jsonl").write_text("\n".join(lines) + "\n")

    write("shows", 0, [0])
    for begin in range(0, 3000, 50):
        write("clicks", begin, range(begin, begin + 50))
    home = tmp_path / "out" / "_lanes" / "lane=0"
    (home / "work").mkdir(parents=True)
    with connected(load_stream(path), home / "work") as connection:
        made = lane._Lane(load_stream(path), tmp_path / "out", home, 0, connection, lambda words: None)
        made._discover()
        wrote: list[int] = []
        flush = made._joiner.flush
        monkeypatch.setattr(made._joiner, "flush", lambda: (wrote.append(made._joiner.pending()), flush()))

        def read() -> int:
            turns = [made._read(False)]
            while turns[-1]:
                assert made._joiner.pending() <= 100
                turns.append(made._read(False))
            assert max(turns) <= 51
            return sum(turns)

        assert read() == 1 + 650  # ten minutes ahead of the shows, and the turn that led there
        write("shows", 1, [1200])
        assert read() == 1 + 1200
        write("shows", 2, [2950])
        assert read() == 1 + 1150
        assert max(wrote) <= 100 + 2 * 51  # a click is an exposure and an action
        segments = made._joiner.past.segments
        assert sum(each["e"][0] for each in segments) == 3003 - (made._joiner.pending() + 1) // 2


def topics(table: str, source: str) -> dict:
    """Return the keys of a spec with one topic."""
    return {"topics": {table: {"source": source, "topic": "t", "time": "timestamp"}}}


def rooms_from_a_topic() -> dict:
    """Return the keys of a spec whose rooms are announced."""
    told = {table: {"source": "bus", "topic": table, "time": "timestamp"} for table in logs.FEEDS}
    return {"topics": told | {"rooms": {"source": "bus", "topic": "rooms", "time": "live_id"}}}


def log(old: str, new: str) -> dict:
    """Return the keys of a spec whose event log has something else for a part of its text."""
    assert old in logs.EVENTS
    return {"events": logs.EVENTS.replace(old, new)}


SHOWS = "SELECT user_id, live_id, streamer_id, timestamp FROM shows\n"
JOINED = "SELECT s.user_id, s.live_id, s.streamer_id, s.timestamp FROM shows s JOIN gifts USING (live_id)\n"


def taking(path: Path) -> Intake:
    """Return what would take messages by a spec."""
    loaded = load_stream(path)
    with connected(loaded, path.parent) as connection:
        return Intake(loaded, connection)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"every_s": 7 * 60}, "every_s: a day is no multiple of 420 s"),
        (topics("clicks", "buss"), "no source is called 'buss' .did you mean 'bus'"),
        (topics("click", "bus"), "topics.click: the event log has no such table .did you mean 'clicks'"),
        (topics("users", "bus"), "topics: none of them feeds the exposures"),
        ({"sources": {"bus": {"kind": "kafk"}}}, "sources.bus.kind got 'kafk', wanted one of folder, kafka, nats"),
        (log("AS time FROM clicks\n", "AS time FROM clicks GROUP BY ALL\n"), "no GROUP BY, DISTINCT"),
        (log(SHOWS, JOINED), "it joins tables that topics feed"),
        (rooms_from_a_topic(), "attributes.room: topic rooms feeds it, so that what it says of an id may change"),
        (
            log(SHOWS, f"{SHOWS}  UNION ALL SELECT user_id, 1, 1, 9 FROM users\n"),
            "of its rows come from tables that no topic feeds",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, change, words):
    path = written(tmp_path, **change)
    with pytest.raises(BadInput, match=words) as raised:
        taking(path)
    assert len(str(raised.value)) < 300


def test_a_changed_spec_is_taken_or_refused_while_it_runs(tmp_path):
    path = written(tmp_path)
    home = tmp_path / "out" / "_lanes" / "lane=0"
    (home / "work").mkdir(parents=True)
    said: list[str] = []

    def changed(number: int, **change) -> str:
        written(tmp_path, **change)
        os.utime(path, (number, number))
        made._reread()
        return said[-1]

    with connected(load_stream(path), home / "work") as connection:
        made = lane._Lane(load_stream(path), tmp_path / "out", home, 0, connection, said.append)
        assert changed(1, idle_s=7) == "the spec's jobs have changed, and are taken"
        assert "not taken: every_s is fixed; only jobs and idle_s may change" in changed(2, every_s=30)
        assert "not taken" in changed(3, lateness=30)
        assert (made._loaded.spec.idle_s, made._loaded.spec.every_s) == (7, 60)
    loaded = load_stream(written(tmp_path, wait_s=5))
    with connected(loaded, tmp_path) as connection, pytest.raises(BadInput, match="wait_s: .* was begun with another"):
        lane._Lane(loaded, tmp_path / "out", home, 0, connection, said.append)
    described = tmp_path / "out" / STREAM
    described.write_text(described.read_text().replace('"version"', '"older"'))
    (tmp_path / "later").mkdir()
    with connected(loaded, tmp_path / "later") as connection, pytest.raises(BadInput, match="begun by another version"):
        lane._Lane(loaded, tmp_path / "out", home, 0, connection, said.append)


@contextlib.contextmanager
def at_work(path: Path, out: Path) -> Iterator[list[str]]:
    """Run a lane beside the test, from when it has begun; yield what it says."""
    said, ended = [], threading.Event()

    def tell(words: str) -> None:
        said.append(words)
        assert not ended.is_set()  # ends the lane

    with unittest.mock.patch("threading.excepthook"):
        thread = threading.Thread(target=run_lane, args=(load_stream(path), out, 0, False, tell), daemon=True)
        thread.start()
        try:
            wait(lambda: (out / STREAM).exists() and list(out.glob("_lanes/lane=0/work/*")) or not thread.is_alive())
            yield said
        finally:
            ended.set()
            content = path.read_text()
            path.write_text("none: of a stream")  # which it says
            thread.join()
            path.write_text(content)


def wait(found) -> None:
    for _ in range(3000):  # a minute, far more than it needs
        if found():
            return
        time.sleep(0.02)
    raise AssertionError("it does not come")


def land(folder: Path, table: str, name: str, lines: list[str]) -> None:
    (folder / table).mkdir(parents=True, exist_ok=True)
    (folder / table / f"_{name}").write_text("".join(f"{line}\n" for line in lines))
    (folder / table / f"_{name}").rename(folder / table / f"{name}.jsonl")


def closed(out: Path) -> list[str]:
    return [path.parents[1].name for path in sorted(out.glob("date=*/time=*/lane=0/manifest.json"))]


def test_what_a_job_is_given_holds_from_the_moment_on_at_which_it_is_changed(tmp_path, monkeypatch):
    """Intervals of hours are over at once, and DuckDB has the new memory and threads."""
    slow = {"read": {"every_s": 3600}, "join": {"every_s": 3600}, "tables": {"every_s": 3600}}
    quick = {"read": {"every_s": 0.05, "messages": 7}, "join": {"every_s": 0.05, "memory_mb": 321, "threads": 3}}
    times = {"wait_s": 0, "lateness_s": 0}
    path, out, seen = written(tmp_path, **times, jobs=slow), tmp_path / "out", []

    def tuned(self) -> None:
        tune(self)
        ask = "SELECT current_setting('memory_limit'), current_setting('threads')"
        seen.append(self._connection.execute(ask).fetchall()[0])

    tune = lane._Lane._tune
    monkeypatch.setattr(lane._Lane, "_tune", tuned)
    with at_work(path, out) as said:
        time.sleep(0.5)  # it has looked once, and found nothing
        for table in logs.FEEDS:
            land(tmp_path / "land", table, "0", [json.dumps(row(second)) for second in (0, 30, 90, 150)])
        time.sleep(1.0)
        assert not closed(out)
        written(tmp_path, **times, jobs=quick)
        wait(lambda: len(closed(out)) == 2)
        assert said.count("the spec's jobs have changed, and are taken") == 1
    assert [threads for _, threads in seen] == [1, 3]
    assert seen[0][0] != seen[1][0] == "306.1 MiB"


def test_a_topic_of_poison_alone_is_told_and_waited_for_no_longer(tmp_path, monkeypatch):
    """As where its schema has changed: minutes are closed without it, and each message is kept aside once."""
    monkeypatch.setattr(lane, "_ASIDE", 3)
    jobs = {"read": {"every_s": 0.02}, "join": {"every_s": 0.05}}
    path = written(tmp_path, wait_s=0, lateness_s=0, idle_s=0.5, jobs=jobs)
    out, folder = tmp_path / "out", tmp_path / "land"
    land(folder, "clicks", "0", [json.dumps(row(0))])
    land(folder, "shows", "0", [json.dumps(row(second)) for second in (1, 61, 121)])
    number = itertools.count()
    with at_work(path, out) as said:

        def poison() -> None:
            each = next(number)
            land(folder, "clicks", f"1{each:04d}", [json.dumps(row(200) | {"user_id": f"user {each}"})])

        def alarmed() -> bool:
            poison()
            return any("ALARM: clicks/0 has no message that counts" in words for words in said)

        wait(alarmed)
        wait(lambda: poison() or len(closed(out)) == 2)
        land(folder, "clicks", "2", [json.dumps(row(150))])
        wait(lambda: "clicks/0 speaks again" in said)
        land(folder, "shows", "1", [json.dumps(row(400))])
    with at_work(path, out):
        time.sleep(0.5)
    kept = [json.loads(line) for file in (out / "poison").iterdir() for line in file.read_text().splitlines()]
    users = [json.loads(each["message"])["user_id"] for each in kept]
    assert len(users) == len({*users})
    assert "user 0" in users
    assert len(list((out / "poison").iterdir())) > 1


def test_a_wait_that_is_too_short_for_a_label_is_told(tmp_path):
    told = load_stream(written(tmp_path, wait_s=60)).remarks()
    assert len(told) == 1
    assert "wait_s: labels of delay: false (click) stay 0" in told[0]
    assert len(told[0]) < 300
    assert load_stream(written(tmp_path, wait_s=3600)).remarks() == []
    assert load_stream(written(tmp_path, **log("click, delay: false", "click, delay: true"))).remarks() == []
