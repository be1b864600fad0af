"""How fast a stream joins, beside the preparation of the same days, and how soon a minute is out.

    livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulation
    python benchmarks/stream.py --raw data/simulation/kuailive --days 5 --live 240

Both make the same samples of the same events, in a process of their own with one thread: the preparation from CSV, and
the stream from JSON lines that landed every `--land`, which it catches up with. Events are the messages. Rates are per
second of CPU time, which means something where other programs run too. `--live` then lets messages land for so many
seconds, each with the time at which it is written, and measures how long after it the minute that holds it is closed.
"""

import argparse
import csv
import datetime
import json
import multiprocessing
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from livetrain.configs.event_spec import EventSpec
from livetrain.configs.spec import load_spec
from livetrain.configs.stream_spec import load_stream
from livetrain.trainers.data.read import minutes
from livetrain.trainers.data.sources.events import stage
from livetrain.trainers.data.sources.table.events import prepare_events
from livetrain.trainers.data.stream.lane import run_lane

GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "own-data.md"
FEEDS = {"clicks": "click", "shows": "negative", "gifts": "gift"}
HOUR = 3_600_000


def cut(raw: Path, to: Path, days: int) -> dict[str, list[tuple[int, dict]]]:
    """Copy the first days of a log, and return table -> (ms, row) of what topics would tell."""
    to.mkdir()
    for name in ("user.csv", "room.csv"):
        shutil.copy(raw / name, to / name)
    text = GUIDE.read_text(encoding="utf-8").partition("<!-- event log -->\n```yaml\n")[2].partition("```")[0]
    (to / "events.yaml").write_text(text)
    told: dict[str, list[tuple[int, dict]]] = {}
    with (raw / "negative.csv").open() as file:
        begin = min(int(row["timestamp"]) for row in csv.DictReader(file))
    end = (begin + 8 * HOUR) // (24 * HOUR) * 24 * HOUR - 8 * HOUR + days * 24 * HOUR
    for table, name in FEEDS.items():
        with (raw / f"{name}.csv").open() as file, (to / f"{name}.csv").open("w", newline="") as kept:
            reader = csv.DictReader(file)
            writer = csv.DictWriter(kept, reader.fieldnames)
            writer.writeheader()
            told[table] = []
            for row in reader:
                if int(row["timestamp"]) < end:
                    writer.writerow(row)
                    message = {k: float(v) if "." in v else int(v) for k, v in row.items() if v}
                    told[table].append((message["timestamp"], message))
        told[table].sort(key=lambda each: each[0])
    return told


def land(folder: Path, told: dict[str, list[tuple[int, dict]]], seconds: int) -> None:
    """Write messages as they would land every so many seconds."""
    for table, rows in told.items():
        files: dict[int, list[str]] = {}
        for at, row in rows:
            files.setdefault(at // (1000 * seconds), []).append(json.dumps(row))
        (folder / table).mkdir(parents=True)
        for hour, lines in files.items():
            (folder / table / f"{hour:09d}.jsonl").write_text("\n".join(lines) + "\n")


def spec(path: Path, land: Path, **more) -> Path:
    topics = {table: {"source": "bus", "topic": table, "time": "timestamp"} for table in FEEDS}
    tree = {
        "events": "events.yaml",
        "sources": {"bus": {"kind": "folder", "path": str(land)}},
        "topics": topics,
        **more,
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def apart(work, *arguments) -> float:
    """Do something in a process of its own with one thread, and return its CPU seconds."""
    box = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=_measured, args=(box, work, arguments))
    process.start()
    seconds = box.get()
    process.join()
    return seconds


def _measured(box, work, arguments) -> None:
    os.cpu_count = lambda: 1  # what DuckDB and the processes of a preparation go by
    before = resource.getrusage(resource.RUSAGE_SELF)
    work(*arguments)
    after = resource.getrusage(resource.RUSAGE_SELF)
    box.put(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def batch(events: Path, out: Path) -> None:
    assert stage.os.cpu_count() == 1
    prepare_events(load_spec(events, EventSpec), out, lambda *_: None)


def stream(path: Path, out: Path) -> None:
    out.mkdir()
    run_lane(load_stream(path), out, 0, True, lambda words: None)


def samples(paths) -> pa.Table:
    table = pa.concat_tables(pq.read_table(path, partitioning=None) for path in paths)
    return table.sort_by([(name, "ascending") for name in ("timestamp", "user", "room")])


def live(folder: Path, seconds: int, rate: int) -> tuple[list[float], int]:
    """Let messages land while a stream runs; return the seconds from each exposure to its minute's manifest."""
    landing, out = folder / "live", folder / "live-out"
    for table in FEEDS:
        (landing / table).mkdir(parents=True)
    out.mkdir()
    path = spec(folder / "live.yaml", landing, every_s=60, lateness_s=5, wait_s=30, idle_s=20)
    process = multiprocessing.get_context("spawn").Process(target=_forever, args=(path, out), daemon=True)
    process.start()
    stop = time.time() + seconds
    number = 0
    while time.time() < stop:
        for table in FEEDS:
            now = int(time.time() * 1000)
            lines = []
            for _ in range(rate if table != "gifts" else 1):
                number += 1
                user, room = number * 7919 % 20_000 + 1, number * 104_729 % 3000 + 1
                row = {"user_id": user, "live_id": room, "streamer_id": room % 900, "timestamp": now}
                lines.append(json.dumps(row))
            draft = landing / table / f"_{now}"
            draft.write_text("\n".join(lines) + "\n")
            draft.rename(landing / table / f"{now}.jsonl")
        time.sleep(1)
    time.sleep(100)
    process.kill()
    delays: list[float] = []
    for manifest in out.glob("date=*/time=*/lane=0/manifest.json"):
        part = manifest.with_name("part-0.parquet")
        if part.exists():
            closed = manifest.stat().st_mtime
            delays += [closed - at / 1000 for at in pq.read_table(part, partitioning=None)["timestamp"].to_pylist()]
    return sorted(delays), number


def _forever(path: Path, out: Path) -> None:
    run_lane(load_stream(path), out, 0, False, lambda words: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--days", type=int, default=5)
    parser.add_argument("--every", type=int, nargs="+", default=[3600, 300])
    parser.add_argument("--land", type=int, default=21_600, help="seconds of messages in a file")
    parser.add_argument("--live", type=int, default=0, help="seconds")
    parser.add_argument("--rate", type=int, default=200, help="messages per second and topic")
    given = parser.parse_args()
    shape = f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    print(f"{shape}; duckdb {version('duckdb')}, pyarrow {version('pyarrow')}; {datetime.date.today()}")
    with tempfile.TemporaryDirectory(prefix="stream-") as temporary:
        folder = Path(temporary)
        told = cut(given.raw.resolve(), folder / "raw", given.days)
        land(folder / "land", told, given.land)
        count = sum(map(len, told.values()))
        seconds = apart(batch, folder / "raw" / "events.yaml", folder / "days")
        wanted = samples(sorted((folder / "days").glob("date=*/*.parquet")))
        base = count / seconds
        print(f"{count:,} events, {len(wanted):,} samples of {given.days} days")
        print(f"preparation of days: {seconds:.1f} s of CPU, {base:,.0f} events/s")
        for every in given.every:
            path = spec(folder / "raw" / f"{every}.yaml", folder / "land", every_s=every, wait_s=3600)
            seconds = apart(stream, path, folder / f"out-{every}")
            closed = minutes.closed(str(folder / f"out-{every}"))
            same = samples(file for each in closed for file in each.files).equals(wanted)
            rate = count / seconds
            print(f"stream, every {every} s ({len(closed):,} minutes): {seconds:.1f} s of CPU, {rate:,.0f} events/s, "
                  f"{rate / base:.2f} of the preparation's rate; samples equal: {same}", flush=True)  # fmt: skip
        if given.live:
            shutil.copy(folder / "raw" / "events.yaml", folder / "events.yaml")
            for name in ("user.csv", "room.csv"):
                shutil.copy(folder / "raw" / name, folder / name)
            delays, sent = live(folder, given.live, given.rate)
            middle, most = delays[len(delays) // 2], delays[-1]
            print(f"live, every 60 s, lateness 5 s, wait 30 s: {sent:,} messages, {len(delays):,} samples")
            print(f"from an exposure to its closed minute {middle:.0f} s in the middle, {most:.0f} s at most")


if __name__ == "__main__":
    sys.exit(main())
