"""From an event to the row that it taught, in a server's reach: topics, stream, follower and metrics, by the clock.

    livetrain data simulate --users 20k --days 14 --out data/simulation
    livetrain data kuailive --raw data/simulation/kuailive --out data/simulated
    python benchmarks/live.py --minutes 6

The evenings of all days of a simulated world happen now, all at once: each message lands in its topic a second after
what it tells has happened. `livetrain stream` makes minutes of them (lateness 5 s, actions waited for 30 s),
`livetrain follow --every 1m` learns and publishes each, and `livetrain watch` measures it; each is a process of its
own. An event at the beginning of a minute waits the longest, one at its end the shortest.
"""

import argparse
import calendar
import contextlib
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
from follow import EACH, begun, look
from quality import made, rule

from livetrain.trainers.data.read import minutes
from livetrain.trainers.data.simulator.replay import PROFILES, Replay, messages
from livetrain.trainers.data.simulator.replay_specs import EVENTS
from livetrain.trainers.data.simulator.replay_specs import stream as spec
from livetrain.trainers.runtime.versions import versions

DAY_MS, EVENING_MS = 86_400_000, 43_200_000  # from noon UTC, eight in the evening of the world
SENT = {"long": lambda row: row["timestamp"] + 30_000, "watch": lambda row: row["timestamp"] + row["watch_live_time"]}
LANDS_S = 1.0
WAITS = {"wait_s: 120": "wait_s: 30\nlateness_s: 5", "idle_s: 180": "idle_s: 5"}
LEAD_S = 600  # that the processes may take to begin, the first base included; what comes after it counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("configs/recipes/din_simulated_follow.yaml"))
    parser.add_argument("--world", type=Path, default=Path("data/simulation"))
    parser.add_argument("--minutes", type=int, default=6)
    parser.add_argument("--work", type=Path, default=Path("runs/live"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/live.md"))
    parser.set_defaults(workers=0)
    given = parser.parse_args()
    work = given.work.resolve()
    _, follow = begun(given, work)
    told = evenings(given.world, 1000 * (LEAD_S + EACH * given.minutes))
    start = (int(time.time()) // EACH + 1) * EACH
    topics = prepared(given.world, work / "topics", 1000 * start)
    command = [sys.executable, "-m", "livetrain"]
    measures = [
        "--label",
        "click",
        "--label",
        "watch_time",
        "--by",
        "live_content_category",
        "--by",
        "young=room_age < 600",
    ]
    commands = [
        [*command, "stream", str(topics / "stream.yaml"), "--out", str(work / "live")],
        follow,
        [*command, "watch", str(work / "live"), *measures, "--port", "0"],
    ]
    with contextlib.ExitStack() as stack:
        for each in commands:
            stack.callback(
                stack.enter_context(subprocess.Popen(each, env=os.environ | {"OMP_NUM_THREADS": "1"})).terminate
            )
            while each is commands[0] and not (work / "live" / minutes.STREAM).exists():
                time.sleep(0.1)
        published = happen(told, topics, start, given.minutes, work)
        while not metrics_of(work, max(map(ended, published)) - EACH).exists():  # measured by then, too
            time.sleep(0.1)
    given.out.write_text(page(given, work, published))
    print(given.out.read_text())


def evenings(world: Path, ms: int) -> list[tuple[int, int, str, str]]:
    """Return what is sent in the first `ms` of all evenings: ms since the evening began, the day, topic and message."""
    found = []
    for arrived in messages(world, Replay(delay=0, twice=0, late=0)):
        since = (arrived.start - EVENING_MS) % DAY_MS
        if since < ms:
            day = (arrived.start - EVENING_MS) // DAY_MS
            for topic, lines in arrived.messages.items():
                for line in lines:
                    at = SENT.get(topic, lambda row: row["timestamp"])(json.loads(line))
                    found.append((at - EVENING_MS - day * DAY_MS, day, topic, line))
    return sorted(found)


def moved(line: str, day: int, start: int) -> str:
    """Return a message of a day's evening as if it were of now; `start` in ms."""
    row = json.loads(line)
    return json.dumps(row | {"timestamp": row["timestamp"] - EVENING_MS - day * DAY_MS + start})


def prepared(world: Path, topics: Path, start: int) -> Path:
    """Write what is known of rooms and people, and the specs."""
    shutil.rmtree(topics, ignore_errors=True)
    for topic in ("exposure", "click", "long", "watch", "like", "comment", "gift"):
        (topics / "topics" / topic).mkdir(parents=True)
    for name in PROFILES:
        shutil.copyfile(world / "kuailive" / name, topics / name)
    with (world / "kuailive" / "room.csv").open() as rooms, (topics / "room.csv").open("w", newline="") as out:
        reader = csv.DictReader(rooms)
        writer = csv.DictWriter(out, reader.fieldnames or ())
        writer.writeheader()
        for row in reader:
            at = int(row["start_timestamp"]) - EVENING_MS
            writer.writerow(row | {"start_timestamp": (at + DAY_MS // 2) % DAY_MS - DAY_MS // 2 + start})
    (topics / "events.yaml").write_text(EVENTS)
    text = spec(1)
    for before, after in WAITS.items():
        text = text.replace(before, after)
    (topics / "stream.yaml").write_text(text)
    return topics


def happen(told: list[tuple[int, int, str, str]], topics: Path, start: int, count: int, work: Path) -> dict[str, float]:
    """Let messages land by the clock until the minutes that count are published; return when each version was seen."""
    published, left = dict[str, float](), list(reversed(told))
    while left and len(published) <= count:  # the first is the base, which takes longer
        now, due = time.time(), defaultdict[str, list[str]](list)
        while left and start + left[-1][0] / 1000 + LANDS_S < now:
            _, day, topic, line = left.pop()
            due[topic].append(moved(line, day, 1000 * start))
        for topic, lines in due.items():
            draft = topics / "topics" / topic / f"_{1000 * now:.0f}.jsonl"
            draft.write_text("".join(f"{line}\n" for line in lines))
            draft.rename(draft.with_name(draft.name[1:]))
        look(work, published)
        time.sleep(0.1)
    return published


def ended(version: str) -> int:
    """Return when the minute ended up to which a version has learned, s."""
    return calendar.timegm(time.strptime(version, "%Y-%m-%dT%H-%M-%SZ"))


def metrics_of(work: Path, begin: int) -> Path:
    """Return the file that `livetrain watch` writes of the minute that begins at a time."""
    return work / "live" / "metrics" / f"{minutes.folder_of(begin)}.parquet"


def page(given: argparse.Namespace, work: Path, published: dict[str, float]) -> str:
    """Return the results as a page."""
    head = "| minute | samples | closed | measured | published | from its first event | from its last |"
    lines, longest, shortest = [], [], []
    seen = {ended(name): at for name, at in published.items()}
    for end in range(min(seen) + EACH, max(seen) + 1, EACH):  # the first was the base
        out = min(at for until, at in seen.items() if until >= end)
        begin = end - EACH
        folder = work / "live" / minutes.folder_of(begin) / "lane=0"
        metrics = metrics_of(work, begin)
        closed = (folder / "manifest.json").stat().st_mtime
        rows = pq.read_table(folder / "part-0.parquet", columns=["timestamp"], partitioning=None)
        times = rows["timestamp"].to_numpy()
        longest.append(out - times.min() / 1000)
        shortest.append(out - times.max() / 1000)
        cells = [minutes.name_of(begin)[11:16], f"{len(times):,}", f"{closed - end:.1f} s"]
        cells += [f"{metrics.stat().st_mtime - closed:.1f} s", f"{out - closed:.1f} s"]
        lines.append(f"| {' | '.join([*cells, f'**{longest[-1]:.0f} s**', f'{shortest[-1]:.0f} s'])} |")
    told = f"{max(longest):.0f} s at most, {statistics.median(longest):.0f} s in the median" if lines else "never"
    return f"""# From an event to what it taught being published: {given.recipe.stem}

{made(versions(), given)}
Two-core CPU VM (AMD EPYC), shared with other programs.

From the first event of a minute, which waits the longest, to the pointer that names a model which has learned it:
{told}, of {len(lines)} minutes. "closed" is from the minute's end to its manifest: lateness 5 s, actions waited for
30 s, and the join. "measured" and "published" are from there.

{head}
{rule(head)}
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    main()
