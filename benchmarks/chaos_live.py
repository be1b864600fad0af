"""What stories of kills play on: a small event log that happens, and `livetrain stream` and `livetrain follow` at work.

The programs are `livetrain`'s own command line, in processes forked off one that has imported it, since a hundred
starts of Python would take an hour; with workers they are started as in a terminal.
"""

import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import livetrain.cluster.stream.follow
import livetrain.trainers.data.stream.lane  # noqa: F401  (what a forked program needs is imported before)
from benchmarks import chaos_kills
from livetrain.cli.main import main as livetrain_main
from livetrain.cluster.stream.publishing import version_of
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read import minutes
from livetrain.trainers.export import deltas
from livetrain.trainers.runtime import manifest, run_folder
from tests import samples

UTC8 = 8 * 3600
FIRST = minutes.started("2025-05-24T16:00:00Z")  # 2025-05-25 00:00 in UTC+8, when the night's day begins
BEGIN = FIRST + 86_400  # of the stream
EACH, EVERY, LASTS, SLOT = 15, 30, 1440, 15  # s of event time: a minute, an increment, the stream, a file of messages
TABLES = ("shows", "clicks", "gifts")
LONGEST_S = 300.0  # for a program to end that has to
EVENTS = f"""
name: rooms
item: room
author: streamer
utc_offset_s: {UTC8}
window_s: 60
history: 10
tables:
  shows: {{files: [topics/shows/*/*.csv], columns: &event {{u: BIGINT, r: BIGINT, s: BIGINT, ms: BIGINT}}}}
  clicks: {{files: [topics/clicks/*/*.csv], columns: *event}}
  gifts: {{files: [topics/gifts/*/*.csv], columns: {{<<: *event, price: DOUBLE}}}}
  rooms: {{files: [rooms.csv], columns: {{r: BIGINT, category: VARCHAR}}}}
exposures: SELECT u AS user, r AS item, s AS author, ms AS time FROM shows
actions: >
  SELECT u AS user, r AS item, s AS author, ms AS time, 'click' AS kind, NULL::DOUBLE AS value, ms AS session
  FROM clicks
  UNION ALL SELECT u, r, s, ms, 'gift', price, NULL FROM gifts
attributes:
  room: {{key: item, select: "SELECT r AS id, category FROM rooms", ids: [category]}}
topics: {{live: room.category}}
labels:
  click: {{kind: click, delay: false}}
  gift: {{kind: gift}}
sequences:
  live: {{domain: live, event: click, author: streamer, topic: category}}
statistics: {{user: user, streamer: author}}
"""
STREAM = {
    "events": "events.yaml",
    "sources": {"files": {"kind": "folder", "path": "topics"}},
    "topics": {name: {"source": "files", "topic": name, "time": "ms"} for name in TABLES},
    **{"every_s": EACH, "lateness_s": 40, "wait_s": 60, "ahead_s": 10**9, "idle_s": 86_400},
    "jobs": {"read": {"every_s": 0.05}, "join": {"every_s": 0.1}},
}


def messages(seed: int, begin: int, lasts: int, shown: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield (table, ms, row) of exposures and of what came of them. Every four minutes other rooms open."""
    draw = random.Random(seed)
    for _ in range(shown):
        at = 1000 * begin + draw.randrange(1000 * lasts)
        room = at // 240_000 % 1000 * 10 + draw.randrange(10)
        row = {"u": draw.randrange(1, 60), "r": room, "s": 100 + room % 7, "ms": at}
        yield "shows", at, row
        if draw.random() < (0.65 if (row["u"] + room) % 3 else 0.35):
            yield "clicks", at, row
            for _ in range(draw.randrange(3)):
                later = at + draw.randrange(50_000)
                if later < 1000 * (begin + lasts):
                    yield "gifts", later, {**row, "ms": later, "price": draw.choice([1.5, 20.25])}


def land(folder: Path, seed: int, begin: int, lasts: int, shown: int) -> None:
    """Write messages in files, up to 20 s late and some twice, in two partitions of each topic."""
    draw, files = random.Random(seed + 1), dict[Path, list[str]]()
    for table, at, row in sorted(messages(seed, begin, lasts, shown), key=lambda each: each[1]):
        for _ in range(1 + (draw.random() < 0.03)):
            slot = (at // 1000 - begin + draw.randrange(20)) // SLOT
            path = folder / "topics" / table / f"partition={draw.randrange(2)}" / f"{slot:06d}.csv"
            files.setdefault(path, [",".join(row)]).append(",".join(map(str, row.values())))
    for path, lines in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    (folder / "rooms.csv").write_text(
        "r,category\n" + "".join(f"{room},{'abcde'[room % 5]}\n" for room in range(10_000))
    )


def recipe(work: Path) -> Recipe:
    """Return a small DIN whose users and rooms have rows of their own, fewer than there are."""
    sequence = {"type": "sequence", "max_length": 6}
    days = {split: f"2025-05-{day}..2025-05-{day}" for split, day in (("train", 25), ("valid", 26), ("test", 27))}
    return samples.recipe(
        work / "days",
        name="din",
        data__days=days,
        data__batch_size=24,
        features={
            **{name: {"type": "id", "table": name} for name in ("user", "room", "streamer", "category")},
            **{"live_streamer": {**sequence, "table": "streamer"}, "live_category": {**sequence, "table": "category"}},
            **{"room_viewers": {"type": "dense"}, "user_seen_count": {"type": "dense"}},
        },
        tables={
            "user": {"rows": 48, "dim": 8, "hash": "table"},
            "room": {"rows": 64, "dim": 8, "hash": "table", "admission": {"threshold": 2}},
            "streamer": {"rows": 64, "dim": 8},
            "category": {"rows": 64, "dim": 8},
        },
        model__attention=[{"query": ["streamer", "category"], "events": ["live_streamer", "live_category"]}],
        tasks={"click": {"label": "click"}, "gift": {"label": "gift", "unknown": True}},
        train__epochs=1,
        train__log_every=1,
        evaluate__group_by=None,
        follow__path=str(work / "nowhere"),
        cluster__max_failures=20,
        cluster__cpus_per_worker=0.5,
    )


@dataclass(frozen=True)
class Place:
    """Where a story plays."""

    folder: Path

    @property
    def live(self) -> Path:
        return self.folder / "live"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def line(self) -> Path:
        return self.folder / "runs/din-follow/2025-05-27"

    def words(self, program: str, workers: int, last: bool) -> list[str]:
        """Return the arguments of `stream` or `follow`; `last` ends with all that is there."""
        if program == "stream":
            return ["stream", str(self.folder / "stream.yaml"), "--out", str(self.live), *["--drain"][:last]]
        told = ["--every", f"{EVERY}s", "--publish", str(self.models), "--runs", str(self.folder / "runs")]
        changes = [f"follow.path={self.live}", f"cluster.workers={workers}"]
        return ["follow", str(self.folder / "din.yaml"), *told, *["--once"][:last], *changes]


def program(words: list[str], log: Path) -> None:
    """Be `livetrain` with these words, in a forked process."""
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.argv = ["livetrain", *words]
    livetrain_main()


@cache
def forks() -> Any:
    """Return how processes begin whose parent has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Program:
    """A `livetrain` at work; `bare` from a start of Python of its own."""

    def __init__(self, place: Place, name: str, workers: int = 0, last: bool = False) -> None:
        words, log = place.words(name, workers, last), place.folder / f"{name}.txt"
        self.name, self.began = name, time.time()
        with log.open("ab") as file:
            file.write(f"\n--- {' '.join(words)}\n".encode())
        if workers:
            self._started: Any = chaos_kills.started(words, log, place.folder)
        else:
            self._started = forks().Process(target=program, args=(words, log))
            self._started.start()
        self.pid: int = self._started.pid

    def code(self) -> int | None:
        """Return with what it ended, or None."""
        return self._started.exitcode if isinstance(self._started, BaseProcess) else self._started.poll()

    def kill(self, victim: str) -> str:
        hit = chaos_kills.strike(self.pid, victim)
        if hit != "worker":
            self.wait()
        return hit

    def wait(self) -> int:
        """Return with what it ended, which has to be soon."""
        stop = time.monotonic() + LONGEST_S
        while (code := self.code()) is None:
            if time.monotonic() > stop:
                chaos_kills.strike(self.pid, "group")
                raise RuntimeError(f"{self.name} did not end in {LONGEST_S:.0f} s")
            time.sleep(0.02)
        return code


class Disk:
    """What a story's folder says of how far both programs are."""

    def __init__(self, place: Place) -> None:
        self.place, self.closed, self.since = place, BEGIN, time.time()
        self._taken, self._pointer = dict[str, int](), (0.0, "")
        self._begun, self._named = self._folders(), set[str]()

    def restarted(self) -> None:
        """Let what was begun before be no sign of what is being done from here on."""
        self._begun, self.since = self._folders(), time.time()

    def look(self) -> None:
        while (self.place.live / minutes.folder_of(self.closed) / "lane=0" / manifest.MANIFEST).exists():
            self.closed += EACH
        self.writing, self.committed = False, 0.0
        for entry in os.scandir(checkpoints) if (checkpoints := self.place.line / "checkpoints").exists() else ():
            try:
                written = os.stat(f"{entry.path}/{manifest.MANIFEST}").st_mtime
                if entry.name not in self._taken:
                    self._taken[entry.name] = run_folder.content(Path(entry.path))["position"]["taken"]
                self.committed = max(self.committed, written)
            except OSError:
                self.writing |= entry.name.startswith("step-") and _modified(entry.path) >= self.since
            except run_folder.Damaged:
                continue
        begun, pointer = self._folders() - self._begun, self.place.models / "current.json"
        if (at := _modified(pointer)) != self._pointer[0]:
            told = json.loads(pointer.read_text())
            self._pointer = (at, deltas.newest(told)["version"])
            self._named = {each["folder"] for each in (*told["versions"], *told.get("deltas", []))}
        self.publishing = bool(begun - self._named)

    def _folders(self) -> set[str]:
        """Return the folders of all bases and deltas, published or not."""
        bases = {name for name in chaos_kills.names(self.place.models) if name.startswith("20")}
        below = ((base, each) for base in bases for each in chaos_kills.names(self.place.models / base / "deltas"))
        return bases | {f"{base}/deltas/{each}" for base, each in below}

    @property
    def taken(self) -> int:
        """Up to when the newest checkpoint has learned."""
        return max(self._taken.values(), default=BEGIN)

    @property
    def unpublished(self) -> bool:
        return bool(self._taken) and version_of(self.taken) > self._pointer[1]

    @property
    def behind(self) -> bool:
        """Whether an increment is closed that no checkpoint has learned."""
        return (self.closed - BEGIN) // EVERY * EVERY + BEGIN > self.taken

    def at(self, moment: str, closed: int) -> bool:
        """Return whether a placed moment has come; `closed` is what was when it was begun to be waited for."""
        match moment:
            case "minute":
                return self.behind and self.closed > closed
            case "writing":
                return self.writing
            case "checkpoint":
                return self.unpublished and self.committed >= self.since
            case "publishing":
                return self.publishing
        return self._pointer[0] >= self.since

    def hit(self, following: bool) -> str:
        """Return what a kill has hit, of a follower that had begun to follow or had not."""
        self.look()
        if not following:
            return "start"
        if self.publishing:
            return "publishing"
        if self.unpublished and self.committed >= self.since:
            return "checkpoint"
        if self.writing:
            return "writing"
        return "minute" if self.behind else "waiting"


def _modified(path: str | Path) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
