"""An event log as messages: what happened, in the form in which its topics tell it, and a day's preparation of it."""

import csv
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from livetrain.configs.event_spec import EventSpec
from livetrain.configs.spec import load_spec
from livetrain.configs.stream_spec import load_stream
from livetrain.trainers.data.read import minutes
from livetrain.trainers.data.sources.table.events import prepare_events
from livetrain.trainers.data.stream.lane import run_lane

GUIDE = Path(__file__).parents[4] / "docs" / "guide" / "own-data.md"
EVENTS = GUIDE.read_text(encoding="utf-8").partition("<!-- event log -->\n```yaml\n")[2].partition("```")[0]
FEEDS = {"clicks": "click", "shows": "negative", "gifts": "gift"}
"""Table of the event log that is fed by a topic -> the file of a day's preparation with the same rows."""
ORDER = [("timestamp", "ascending"), ("user", "ascending"), ("room", "ascending")]
Message = tuple[int, dict]
BEGIN = 1_748_102_400_000  # 2025-05-25 00:00 in UTC+8
HOUR = 3_600_000


class Killed(BaseException):
    """Stands for SIGKILL."""


def messages(raw: Path) -> dict[str, list[Message]]:
    """Return table -> (ms, row) of every row of a log, in the order of time."""
    found = {}
    for table, name in FEEDS.items():
        with (raw / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows = [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]
        found[table] = sorted(((row["timestamp"], row) for row in rows), key=lambda each: each[0])
    return found


def _value(text: str) -> int | float | None:
    return None if text == "" else float(text) if "." in text else int(text)


def write_logs(raw: Path, told: dict[str, list[Message]]) -> None:
    """Write messages as the files that a day's preparation reads, and a user and a room file."""
    raw.mkdir(parents=True, exist_ok=True)
    for table, name in FEEDS.items():
        columns = ["user_id", "live_id", "streamer_id", "timestamp"] + ["gift_price"] * (table == "gifts")
        with (raw / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for _, row in told[table])
    (raw / "user.csv").write_text("user_id,gender\n" + "".join(f"{n},{'fm'[n % 2]}\n" for n in range(1, 40)))
    (raw / "room.csv").write_text(
        "live_id,live_content_category\n" + "".join(f"{n},{'abc'[n % 3]}+{'de'[n % 2]}\n" for n in range(1, 60, 2))
    )


def drawn(begin: int, hours: float, count: int, seed: int) -> dict[str, list[Message]]:
    """Return messages of some users and rooms, with repeated visits, gifts late and early, and times that meet."""
    draw = random.Random(seed)
    told: dict[str, list[Message]] = {table: [] for table in FEEDS}
    for _ in range(count):
        time = begin + draw.randrange(int(hours * 3600)) * 1000
        row = {"user_id": draw.randrange(1, 12), "live_id": draw.randrange(1, 20), "timestamp": time}
        row["streamer_id"] = 100 + row["live_id"] % 5
        told[draw.choice(["clicks", "shows"])].append((time, row))
        for _ in range(draw.choice([0, 0, 1, 3])):
            at = time + draw.choice([0, 1, 30, 70, 3599, 3600, 3601, 5000]) * 1000
            told["gifts"].append((at, {**row, "timestamp": at, "gift_price": draw.choice([1.5, 20.25, None])}))
    return {table: sorted(rows, key=lambda each: each[0]) for table, rows in told.items()}


def prepared(raw: Path, out: Path, events: str = EVENTS) -> pa.Table:
    """Return what a day's preparation makes of the files in `raw`."""
    (raw / "events.yaml").write_text(events)
    prepare_events(load_spec(raw / "events.yaml", EventSpec), out, lambda what, done, days: None)
    return pa.concat_tables(
        pq.read_table(path, partitioning=None) for path in sorted(out.glob("date=*/*.parquet"))
    ).sort_by(ORDER)


def drawn_and_prepared(folder: Path, hours: float, count: int, seed: int) -> tuple[Path, dict, pa.Table]:
    """Return (folder, messages, samples) of some hours from ten o'clock on."""
    told = drawn(BEGIN + 10 * HOUR, hours, count, seed)
    write_logs(folder / "raw", told)
    return folder / "raw", told, prepared(folder / "raw", folder / "days")


def spec(path: Path, events: Path, source: dict, **more) -> Path:
    """Write the spec of a stream whose topics are named after their tables."""
    topics = {table: {"source": "bus", "topic": table, "time": "timestamp"} for table in FEEDS}
    jobs = {"read": {"every_s": 0.01}, "join": {"every_s": 0.01}}
    tree = {"events": str(events), "sources": {"bus": source}, "topics": topics, "ahead_s": 10**9, "jobs": jobs, **more}
    path.write_text(yaml.safe_dump(tree))
    return path


def land(folder: Path, table: str, rows: list[Message], every: int, disorder: int, seed: int = 1) -> None:
    """Write messages to a table's folder as they would land: delayed by up to `disorder` ms, in two partitions."""
    draw = random.Random(f"{table} {seed}")
    files: dict[Path, list[str]] = {}
    for time, row in rows:
        at = time + (draw.randrange(disorder) if disorder else 0)
        path = folder / table / f"partition={draw.randrange(2)}" / f"{at // every:012d}.jsonl"
        files.setdefault(path, []).append(json.dumps(row))
    for path, lines in files.items():
        draw.shuffle(lines)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def drain(path: Path, out: Path, lane: int = 0) -> list[str]:
    """Make a lane of a stream as far as its messages reach, and return what it said."""
    said: list[str] = []
    out.mkdir(exist_ok=True)
    run_lane(load_stream(path), out, lane, True, said.append)
    return said


def drained_with_kills(path: Path, out: Path, kills: int) -> None:
    """Kill a stream each time that it has closed some minutes, so many times, and then let it go on to the end."""
    out.mkdir()

    def tell(words: str) -> None:
        if words.startswith("closed"):
            raise Killed

    for _ in range(kills):
        with pytest.raises(Killed):
            run_lane(load_stream(path), out, 0, True, tell)
    run_lane(load_stream(path), out, 0, True, lambda words: None)


def samples(out: Path) -> pa.Table:
    """Return all samples of a stream, in the order of its minutes."""
    closed = minutes.closed(str(out))
    assert [each.end for each in closed[:-1]] == [each.start for each in closed[1:]]  # without a gap
    return pa.concat_tables(pq.read_table(path, partitioning=None) for each in closed for path in each.files)


def parts(out: Path) -> dict[str, bytes]:
    """Return the bytes of every part of a stream."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("date=*/time=*/lane=*/*.parquet")}


def counts(out: Path) -> dict[str, int]:
    """Return a stream's counts over all minutes."""
    total: dict[str, int] = {}
    for each in minutes.closed(str(out)):
        for words, count in each.counts.items():
            total[words] = total.get(words, 0) + count
    return total
