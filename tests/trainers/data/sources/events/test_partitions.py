"""Days: each one partition, made whole or not at all, the same whether made at once, night by night, or after kills."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.sources.events import prepare as preparation
from livetrain.trainers.data.sources.events.known import Options
from livetrain.trainers.data.sources.events.prepare import VERSION, prepare
from livetrain.trainers.data.sources.events.sources import ADAPTERS
from livetrain.trainers.data.write import layout
from livetrain.trainers.runtime import manifest
from tests.cases import often
from tests.trainers.data.sources.events.logs import HOUR, SOURCES, START, Visit, prepared, write

DAYS = ["2025-05-25", "2025-05-26", "2025-05-27", "2025-05-28"]


def make_log(count=240, days=4, seed=0):
    rng = np.random.default_rng(seed)
    seconds = rng.choice(days * 24 * HOUR // 20, count, replace=False) * 20
    made = [
        Visit(
            *(int(seconds[n]), int(rng.integers(1, 9)), int(rng.integers(1, 5)), bool(rng.random() < 0.6)),
            int(rng.choice([10, 60, 4000])),
            tuple(int(after) for after in rng.integers(0, 4000, rng.integers(0, 3))),
        )
        for n in range(count)
    ]
    return [visit if visit.click else replace(visit, likes=()) for visit in made]


def until(log, days, source):
    """Return what the raw files hold at the end of a day: later visits and likes have not happened."""
    end = days * 24 * HOUR - (2 * HOUR if source == "kuairand" else 0)  # KuaiRand's date runs two hours ahead
    known = [visit for visit in log if visit.time < end]
    if source != "kuailive":  # what came of a play stands in its own row
        return known
    return [replace(visit, likes=tuple(at for at in visit.likes if visit.time + at < end)) for visit in known]


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("date=*/*"))}


@pytest.fixture
def three_buckets(monkeypatch):
    monkeypatch.setattr(preparation, "BUCKET_ROWS", 25)


@pytest.mark.parametrize("source", often({source: source for source in SOURCES}, ("kuailive",)))
def test_night_by_night_equals_all_at_once(tmp_path, source, three_buckets):
    log = make_log()
    prepared(source, tmp_path, log, "once", run=map)
    for days in range(1, 5):
        before = content(tmp_path / "nights") if days > 1 else {}
        raw = write(source, tmp_path / f"raw-{days}", log if days == 4 else until(log, days, source))
        if source == "kuailive-m3" and days < 4:
            cut_plays(raw, days)
        prepare(ADAPTERS[source], raw, tmp_path / "nights", run=map)
        if days == 1:  # the number of buckets is the first logs' affair; take the same for the comparison
            assert layout.finished(tmp_path / "nights")["buckets"] == layout.finished(tmp_path / "once")["buckets"]
        after = content(tmp_path / "nights")
        assert {name: after[name] for name in before} == before  # a night touches no other partition
    assert content(tmp_path / "nights") == content(tmp_path / "once")


def cut_plays(raw: Path, days: int) -> None:
    """Leave out the short videos that are played after the day's end."""
    plays = pq.read_table(raw / "photo_play.parquet")
    end = START + 24 * HOUR * 1000 * days
    pq.write_table(plays.filter(pc.less(plays["enter_timestamp"].cast("int64"), end)), raw / "photo_play.parquet")


KILLED = """
import os, signal, sys
from pathlib import Path
from livetrain.trainers.data.sources.events import prepare as preparation
from livetrain.trainers.data.sources.events.sources import ADAPTERS

preparation.BUCKET_ROWS = 25
raw, out, where, number = sys.argv[1:]
if where == "between days":
    def progress(what, done, days):
        if done == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
else:
    progress, calls, replace = (lambda *_: None), [], os.replace
    def dying(*paths):
        calls.append(paths)
        if str(paths[1]).endswith(where):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)
    preparation.os.replace = dying
preparation.prepare(ADAPTERS["kuailive"], Path(raw), Path(out), progress=progress, run=map)
"""


@pytest.mark.parametrize(
    ("where", "number", "left"),
    [
        pytest.param("between days", 2, DAYS[:2], marks=pytest.mark.slow),
        # Before the state of the second day is there.
        pytest.param("_state/date=2025-05-26", 0, DAYS[:1], marks=pytest.mark.slow),
        ("out/date=2025-05-26", 0, DAYS[:1]),  # between its state and its partition
    ],
)
@pytest.mark.some(1)
def test_a_killed_preparation_goes_on_with_the_first_unfinished_day(tmp_path, where, number, left, three_buckets):
    log = make_log()
    raw = write("kuailive", tmp_path / "raw", log)
    out = tmp_path / "out"
    child = subprocess.run([sys.executable, "-c", KILLED, raw, out, where, str(number)], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert [path.name for path in sorted(out.glob("date=*"))] == [f"date={day}" for day in left]
    made = {path: os.stat(path).st_mtime_ns for path in out.glob("date=*/*")}
    prepare(ADAPTERS["kuailive"], raw, out, run=map)
    assert {path: os.stat(path).st_mtime_ns for path in made} == made  # finished days are not made again
    prepared("kuailive", tmp_path, log, "whole", run=map)
    assert content(out) == content(tmp_path / "whole")
    assert not (out / "_work").exists()


@pytest.mark.slow
def test_buckets_in_processes_give_the_same(tmp_path, three_buckets):
    log = make_log(120, days=2)
    prepared("kuailive", tmp_path, log, "here", run=map)
    prepared("kuailive", tmp_path, log, "processes")
    assert content(tmp_path / "here") == content(tmp_path / "processes")
    assert len(list((tmp_path / "here").glob("date=2025-05-25/*.parquet"))) > 1


def test_a_day_without_rows_is_a_partition_without_rows(tmp_path):
    log = [visit for visit in make_log() if not 24 * HOUR <= visit.time < 48 * HOUR]
    prepared("kuailive", tmp_path, log)
    found = layout.finished(tmp_path / "out")
    assert [found["days"][day]["rows"] > 0 for day in DAYS] == [True, False, True, True]
    assert "date=2025-05-26 has no exposure: its partition is empty" in found["report"]["notes"]
    assert manifest.read(tmp_path / "out/date=2025-05-26")["rows"] == 0


def test_the_manifest_tells_roles_options_and_counts(tmp_path):
    log = make_log()
    table = prepared("kuailive", tmp_path, log, options=Options(live=7))
    found = json.loads((tmp_path / "out/dataset.json").read_text())
    assert found["options"]["live"] == 7
    assert list(found["columns"]) == table.column_names
    roles = found["roles"]
    assert roles["time"] == "timestamp"
    assert roles["group"] == "user"
    named = ["timestamp", *roles["ids"], *roles["dense"], *roles["sequences"], *roles["labels"]]
    assert sorted(named) == sorted(table.column_names)
    assert found["report"]["days"]["exposures read"] == len(log) == sum(day["rows"] for day in found["days"].values())
    assert max(len(row) for row in table["live_streamer"].to_pylist()) == 7


def test_a_folder_is_of_one_source_and_one_set_of_options(tmp_path):
    log = make_log(20)
    prepared("kuailive", tmp_path, log)
    with pytest.raises(BadInput, match="was prepared with options"):
        prepare(ADAPTERS["kuailive"], tmp_path / "out-raw", tmp_path / "out", Options(live=9))
    with pytest.raises(BadInput, match="was prepared with dataset kuailive, not kuairand"):
        prepared("kuairand", tmp_path, log)
    about = tmp_path / "out" / "dataset.json"
    about.write_text(about.read_text().replace(f'"version": {VERSION}', '"version": 3'))
    with pytest.raises(BadInput, match=rf"was prepared with version 3, not {VERSION}; name a new folder"):
        prepared("kuailive", tmp_path, log)


def test_a_changed_past_is_named_and_left_alone(tmp_path):
    log = make_log()
    prepared("kuailive", tmp_path, log)
    before = content(tmp_path / "out")
    prepared("kuailive", tmp_path, [*log, Visit(26 * HOUR + 3, 8, 4, watch=3, likes=(2,))])
    assert content(tmp_path / "out") == before
    notes = layout.finished(tmp_path / "out")["report"]["notes"]
    kept = manifest.read(tmp_path / "out/date=2025-05-26")
    for what, more, note in zip(("exposures", "actions"), (1, 3), notes, strict=True):
        assert note == (
            f"date=2025-05-26 was prepared from {kept[what]} {what} and the log now holds {kept[what] + more}: the "
            "partition stays as it is"
        )


def test_folders_that_are_not_whole_are_named(tmp_path):
    log, out = make_log(), tmp_path / "out"
    prepared("kuailive", tmp_path, log)
    adapter, raw = ADAPTERS["kuailive"], tmp_path / "out-raw"
    before = content(out)
    shutil.rmtree(out / "date=2025-05-28")
    prepare(adapter, raw, out)  # the last day can be made again
    assert content(out) == before
    (out / "date=2025-05-26").rename(tmp_path / "aside")
    with pytest.raises(BadInput, match="date=2025-05-26 is missing among later days"):
        prepare(adapter, raw, out)
    (out / "date=2025-05-26").mkdir()
    with pytest.raises(BadInput, match=r"date=2025-05-26 has no manifest.json, so it is not whole; remove it"):
        prepare(adapter, raw, out)
    with pytest.raises(BadInput, match="takes ' \\* \\? \\[ \\] in a path for a pattern"):
        prepare(adapter, raw, tmp_path / "o'ut")


def test_one_preparation_at_a_time(tmp_path):
    log = make_log(20)
    prepared("kuailive", tmp_path, log)
    with (tmp_path / "out/_lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="another preparation is writing to this folder"):
            prepare(ADAPTERS["kuailive"], tmp_path / "out-raw", tmp_path / "out")
