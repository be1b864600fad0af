"""A small event log with everything that may lie beside it, its prepared days, and a store that knows of them."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.schema import Recipe
from livetrain.trainers.data.sources.events import kuailive, raw, stage
from livetrain.trainers.data.sources.events.known import Options
from livetrain.trainers.data.sources.events.model import Adapter
from livetrain.trainers.data.sources.events.prepare import prepare
from livetrain.trainers.data.store.fill import KEEP_DAYS, Filled, fill
from livetrain.trainers.data.store.kv import Store
from livetrain.trainers.data.store.minutes import Minutes
from tests.trainers.data.sources.events.logs import HOUR, Visit
from tests.trainers.data.sources.events.test_parts import beside, write

DAY = 24 * HOUR
EVERYTHING = kuailive.with_parts(kuailive.PARTS)


def log(count: int, days: int, seed: int) -> list[Visit]:
    """Return visits of some users to some rooms, many around midnight, with likes and gifts that reach over it."""
    draw = random.Random(seed)
    return [
        Visit(
            draw.randrange(days * DAY) if n % 3 else draw.randrange(1, days) * DAY + draw.randrange(-400, 400),
            draw.randrange(1, 5),
            draw.randrange(1, 6),
            draw.random() < 0.7,
            draw.choice([1, 45, 700]),
            tuple(draw.sample(range(1, 500), draw.choice([0, 0, 2]))),
            tuple(draw.sample(range(1, 5000), draw.choice([0, 1]))),
        )
        for n in range(count)
    ]


def prepared(folder: Path, seed: int, count: int = 150) -> list[Path]:
    """Write a log of three days to `folder`/raw and prepare it; return the days' folders."""
    write("kuailive", beside(folder / "raw"), log(count, 3, seed))
    prepare(EVERYTHING, folder / "raw", folder / "out")
    return sorted((folder / "out").glob("date=*"))


def filled(store: Store, day: Path, keep_days: int = KEEP_DAYS) -> Filled:
    return fill(store, day, keep_days, day.parent, lambda words: None)


def told(store: Store, adapter: Adapter, source: Path, day: Path, work: Path) -> None:
    """Add the events of a day, as a stream would."""
    work.mkdir()
    with stage.connect(adapter, Options(), work) as connection:
        raw.open_raw(connection, adapter, source)
        stage.load_attributes(connection, adapter, work)
        for what, select in (("exposures", adapter.exposures), ("actions", adapter.actions)):
            inside = f"SELECT * EXCLUDE (day) FROM ({select}) WHERE day = DATE '{day.name.removeprefix('date=')}'"
            connection.execute(f"CREATE TABLE new_{what} AS {inside}")
        Minutes(store, adapter, connection).add("new_exposures", "new_actions")


def samples(day: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path, partitioning=None) for path in sorted(day.glob("*.parquet")))


def recipe(out: Path, **changes: Any) -> Recipe:
    """Return a recipe that reads features of every kind that a store knows."""
    names = [day.name.removeprefix("date=") for day in sorted(out.glob("date=*"))]
    days = {split: f"{name}..{name}" for split, name in zip(("train", "valid", "test"), names, strict=True)}
    tables = {name: {"rows": 64, "dim": 4} for name in ("user", "room", "streamer", "tag")}
    tree = {
        "name": "online",
        "data": {"path": str(out), "batch_size": 8, "shards": 2, "days": days},
        "features": {
            **{name: {"type": "id", "table": name} for name in ("user", "room", "streamer")},
            "lived": {"type": "sequence", "table": "streamer", "max_length": 5, "column": "live_streamer"},
            "topics": {"type": "bag", "table": "tag", "column": "user_topics"},
            "title_vector": {"type": "vector", "width": 128},
            "hour": {"type": "hour", "table": "hour", "column": "timestamp", "unit": "ms", "zone": "Asia/Shanghai"},
            **{
                name: {"type": "dense", "missing_flag": True}
                for name in ("room_viewers", "room_age", "user_streamer_count", "user_streamer_ago", "user_seen_count")
            },
            "streamer_count": {"type": "bucket", "table": "counted", "bounds": [1.0, 2.0]},
        },
        "tables": tables | {"hour": {"rows": 24, "dim": 4, "hash": "modulo"}}
        | {"counted": {"rows": 4, "dim": 4, "hash": "modulo"}},
        "model": {"kind": "din", "attention": [{"query": ["streamer"], "events": ["lived"]}], "units": [8]},
        "tasks": {"click": {"label": "click"}, "like": {"label": "like", "unknown": True}},
        "train": {"epochs": 1},
        "cluster": {"workers": 0, "device": "cpu"},
        **changes,
    }  # fmt: skip
    return Recipe.model_validate(tree)
