"""A simulated world as it would have come: messages in files that land in the order of time, late and twice at times.

    OUT/replay.json                                       how it is replayed; written first, once
    OUT/events.yaml, OUT/stream.yaml                      the specs by which `livetrain stream` reads it
    OUT/room.csv, user.csv, streamer.csv                  what is known of them
    OUT/topics/TOPIC/20250525-160100.jsonl                what arrived in a minute, in the order of arrival

TOPIC is exposure, click, watch, long, like, comment or gift.

A message is sent when it has happened: an exposure and a click at once, `long` when a view has lasted 30 s, `watch`
when it ends. It arrives a while later: delays are exponential, one in so many is late by up to an hour, and one in so
many comes twice. All is a function of the world, the days and the seed: so a replay that was killed goes on where it
was, and its speed changes no byte.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.simulator.replay_specs import EVENTS, stream
from livetrain.trainers.data.simulator.settings import EFFECTIVE_S, UTC8_MS
from livetrain.trainers.runtime import manifest

MINUTE_MS, LATE_MS = 60_000, 3_600_000  # of a file; how late a late message is at most
_KEY = "user_id, live_id, streamer_id, timestamp"
_LONG_MS = int(1000 * EFFECTIVE_S)
# Topic -> its messages, and when each is sent.
TOPICS = {
    "exposure": f"SELECT {_KEY}, timestamp AS sent FROM (FROM click UNION ALL BY NAME FROM negative)",
    "click": f"SELECT {_KEY}, timestamp AS sent FROM click",
    "long": f"SELECT {_KEY}, timestamp + {_LONG_MS} AS sent FROM click WHERE watch_live_time >= {_LONG_MS}",
    "watch": f"SELECT {_KEY}, watch_live_time, timestamp + watch_live_time AS sent FROM click",
    "like": f'SELECT {_KEY}, timestamp AS sent FROM "like"',
    "comment": f"SELECT {_KEY}, timestamp AS sent FROM comment",
    "gift": f"SELECT {_KEY}, gift_price, timestamp AS sent FROM gift",
}
PROFILES = ("room.csv", "user.csv", "streamer.csv")


@dataclass(frozen=True)
class Replay:
    """How messages come.

    Args:
        seed: of all that is drawn.
        delay: s from what happens to its message's arrival, in the mean.
        twice, late: shares of the messages that come twice, and up to an hour late.
    """

    seed: int = 7
    delay: float = 2.0
    twice: float = 0.002
    late: float = 0.001

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise BadInput(f"--seed {self.seed}: a seed is from 0 to {2**32 - 1:,}")
        if not 0 <= self.delay <= 3600:
            raise BadInput(f"--delay {self.delay}: choose 0 to 3600 seconds")
        for name in ("twice", "late"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"--{name} {getattr(self, name)}: choose a share from 0 to 1")


@dataclass(frozen=True)
class Arrived:
    """What arrives in a minute: `start` in ms since 1970, and topic -> lines of JSON."""

    start: int
    messages: dict[str, list[str]]

    @property
    def end(self) -> int:
        """Ms since 1970."""
        return self.start + MINUTE_MS


def shown(ms: int) -> str:
    """Return a time as people read it.

    Example:
        >>> shown(1_748_102_460_000)
        '2025-05-24 16:01 UTC'
    """
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ms // 1000))


def messages(world: Path, how: Replay, days: tuple[date, date] | None = None) -> Iterator[Arrived]:
    """Yield what arrives, minute by minute, from the first message on; each topic in the order of arrival.

    Memory: some 100 bytes per message of the world's days.

    Args:
        world: a folder that `simulate` wrote.
        how: they come.
        days: first and last day, in UTC+8, of what is sent; None for all.

    Raises:
        BadInput: `world` is none.
    """
    _check(world)
    sent = {topic: _sent(world, topic, days) for topic in TOPICS}
    arrivals = {topic: _arrivals(table, how, place) for place, (topic, table) in enumerate(sent.items())}
    sent = {
        topic: table.drop_columns("sent").combine_chunks() for topic, table in sent.items()
    }  # `take` joins chunks anew
    ends = [times[[0, -1]] // MINUTE_MS for times, _ in arrivals.values() if len(times)]
    for minute in range(min((first for first, _ in ends), default=0), max((last for _, last in ends), default=-1) + 1):
        found = {}
        for topic, (times, row) in arrivals.items():
            first, end = np.searchsorted(times, [minute * MINUTE_MS, (minute + 1) * MINUTE_MS])
            if end > first:
                found[topic] = [json.dumps(each) for each in sent[topic].take(pa.array(row[first:end])).to_pylist()]
        yield Arrived(int(minute) * MINUTE_MS, found)


def replay(
    world: Path,
    out: Path,
    how: Replay,
    speed: float,
    days: tuple[date, date] | None = None,
    told: Callable[[Arrived], None] = lambda arrived: None,
) -> int:
    """Write a world's messages below `out`, at most `speed` times as fast as they came; return how many minutes came.

    Args:
        world, how, days: as of `messages`.
        out: a new folder, or one to go on with.
        speed: 1 as they came, 600 ten minutes in a second, 0 without waiting.
        told: what has been written.

    Raises:
        BadInput: `world` is none, or `out` is of another replay or cannot be written.
    """
    if not 0 <= speed <= 1e9:
        raise BadInput(f"--speed {speed}: choose 1 for as it came, 600 for ten minutes a second, 0 for no waiting")
    _check(world)
    try:
        _begin(world, out, speed, {**asdict(how), "days": None if days is None else [str(day) for day in days]})
        started, come = time.monotonic(), 0
        for arrived in messages(world, how, days):
            new = False
            for topic, lines in arrived.messages.items():
                path = out / "topics" / topic / time.strftime("%Y%m%d-%H%M%S.jsonl", time.gmtime(arrived.start // 1000))
                if not path.exists():
                    draft = path.with_name(f"_{path.name}")  # a killed replay writes it anew
                    draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
                    draft.replace(path)
                    new = True
            come += 1
            if not new:  # written before a kill: what was waited for is over
                started -= MINUTE_MS / 1000 / speed if speed else 0
            elif speed and (ahead := come * MINUTE_MS / 1000 / speed - (time.monotonic() - started)) > 0:
                time.sleep(ahead)
            told(arrived)
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}); name a folder that can") from None
    return come


def _check(world: Path) -> None:
    if not (world / manifest.MANIFEST).exists() or not (world / "kuailive").is_dir():
        raise BadInput(f"{world} is no world that `livetrain data simulate` has written; correct the path")


def _begin(world: Path, out: Path, speed: float, how: dict[str, Any]) -> None:
    path, how = out / "replay.json", {"world": str(world.absolute()), **how}
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != how:
            raise BadInput(f"{out} is of another replay; name a new folder with --out, or give the same options")
        return
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty; name a new folder with --out")
    for topic in TOPICS:
        (out / "topics" / topic).mkdir(parents=True, exist_ok=True)
    for name in PROFILES:
        shutil.copyfile(world / "kuailive" / name, out / name)
    manifest.write_text(out / "events.yaml", EVENTS)
    manifest.write_text(out / "stream.yaml", stream(speed))
    manifest.write_json(path, how)


def _sent(world: Path, topic: str, days: tuple[date, date] | None) -> pa.Table:
    """Return a topic's messages in the order in which they are sent."""
    connection = duckdb.connect(":memory:", config={"threads": 1})
    for name in ("click", "negative", "like", "comment", "gift"):
        path = str(world / "kuailive" / f"{name}.csv").replace("'", "''")
        connection.execute(f"CREATE VIEW \"{name}\" AS FROM read_csv('{path}')")
    within = "true"
    if days is not None:
        first, last = ((day - date(1970, 1, 1)).days * 86_400_000 - UTC8_MS for day in days)
        within = f"timestamp >= {first} AND timestamp < {last + 86_400_000}"
    query = f"FROM ({TOPICS[topic]}) WHERE {within} ORDER BY sent, user_id, live_id, timestamp"
    return connection.sql(query).to_arrow_table()


def _arrivals(sent: pa.Table, how: Replay, topic: int) -> tuple[np.ndarray, np.ndarray]:
    """Return when messages arrive (ms), in that order, and which of the `sent` each is: some come twice."""
    random = np.random.default_rng(np.random.SeedSequence(how.seed, spawn_key=(topic,)))
    count = len(sent)
    delay = random.exponential(1000 * how.delay, 2 * count) if how.delay else np.zeros(2 * count)
    delay += np.where(random.random(2 * count) < how.late, random.uniform(0, LATE_MS, 2 * count), 0)
    times = np.tile(sent["sent"].to_numpy(), 2) + delay.astype(np.int64)
    comes = np.concatenate([np.ones(count, bool), random.random(count) < how.twice])
    row = np.flatnonzero(comes)
    row = row[np.argsort(times[row], kind="stable")]
    return times[row], row % max(count, 1)
