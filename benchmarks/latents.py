"""The parts of a simulated click's true logit, row by row: built again from the world's seed."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from livetrain.trainers.data.simulator.chances import CLICK
from livetrain.trainers.data.simulator.live import affinity
from livetrain.trainers.data.simulator.profiles import Ids
from livetrain.trainers.data.simulator.settings import Settings
from livetrain.trainers.data.simulator.world import build

PARTS = {
    "interest": "the user's interest in the room's topics",
    "bias": "the user's readiness to click",
    "quality": "the streamer's quality",
    "favourite": "whether the streamer is one of the user's favourites",
    "burst": "whether the room has a burst",
}


class Truth:
    """What is true of some rows of the samples.

    Args:
        world: what `livetrain data simulate` wrote.
        rows: samples, with user, room and timestamp; (n,) rows.
    """

    def __init__(self, world: Path, rows: pa.Table) -> None:
        keys = rows.select(["user", "room", "timestamp"]).append_column("place", pa.array(np.arange(len(rows))))
        found = duckdb.sql(
            f"SELECT t.* FROM keys k JOIN read_parquet('{world}/truth/*/*.parquet', hive_partitioning = false) t "
            "ON t.user_id = k.user AND t.live_id = k.room AND t.timestamp = k.timestamp ORDER BY k.place"
        ).to_arrow_table()
        if len(found) != len(keys):
            raise SystemExit(f"{world}: {len(keys) - len(found):,} of {len(keys):,} rows are not in its truth/")
        self._chances = {task[2:]: found[task].to_numpy() for task in found.column_names if task.startswith("p_")}
        chance = self._chances["click"]
        self.logit = np.log(chance) - np.log1p(-chance)
        self.parts = _parts(world, found, self.logit)

    def chance(self, task: str) -> np.ndarray:
        """Return (n,) the true probability of a label."""
        return self._chances[task]


def _parts(world: Path, found: pa.Table, logit: np.ndarray) -> dict[str, np.ndarray]:
    """Return (n,) each part of the logit; bursts are what the other parts leave."""
    made = build(Settings(**json.loads((world / "manifest.json").read_text())["settings"]))
    ids = Ids(made)
    user, streamer, room = (
        place(numbers, found[name].to_numpy())
        for numbers, name in ((ids.user, "user_id"), (ids.streamer, "streamer_id"), (ids.room, "live_id"))
    )
    second = made.streamers.second[streamer]
    interest = affinity(made.users.live_click, user, made.rooms.topic[room], second)
    parts = {
        "interest": CLICK["interest"] * interest.astype(np.float64),
        "bias": made.users.bias[user].astype(np.float64),
        "quality": CLICK["quality"] * made.streamers.quality[streamer].astype(np.float64),
        "favourite": CLICK["favourite"] * (made.users.favourites[user] == streamer[:, None]).any(axis=1),
    }
    rest = logit - CLICK["intercept"] - sum(parts.values())
    return parts | {"burst": np.where(rest > CLICK["burst"] / 2, CLICK["burst"], 0.0)}  # rounding tells of large logits


def place(numbers: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the rows of ids among those of a world."""
    order = np.argsort(numbers)
    return order[np.searchsorted(numbers[order], asked)]
