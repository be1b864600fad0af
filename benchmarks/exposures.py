"""All exposures of a simulated world with what the simulator knows of how each came about, for posterior.py."""

import math
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import torch
from latents import place
from scipy.special import ndtr

from livetrain.trainers.data.simulator import live
from livetrain.trainers.data.simulator.chances import CLICK, LEAVE, REMAIN
from livetrain.trainers.data.simulator.profiles import Ids
from livetrain.trainers.data.simulator.settings import DAY_MS, SLOT_MS, START_MS, TOPICS
from livetrain.trainers.data.simulator.world import World, popularity

T = len(TOPICS)


@dataclass(frozen=True)
class Rows:
    """Exposures by user and then by time; (n,) tensors, float32 where not said otherwise."""

    user: torch.Tensor  # int64, row of Users
    streamer: torch.Tensor  # int64
    topic: torch.Tensor  # int64, of the room
    day: torch.Tensor  # int64
    click: torch.Tensor
    stays: (
        torch.Tensor
    )  # density of the watch time if the user stays, over the sum of both densities; .5 without a click
    burst: torch.Tensor
    by_topic: torch.Tensor  # chance that a feed by popularity within the topic shows the room, over that of all rooms
    evenly: torch.Tensor  # chance that an even draw shows it, over that of a draw by popularity
    as_favourite: torch.Tensor  # 1 over the chance of a draw by popularity
    slot: torch.Tensor  # int64
    room: torch.Tensor  # int64, row of Rooms
    time: torch.Tensor  # int64, epoch ms
    chance: torch.Tensor  # float64, true

    def where(self, kept: torch.Tensor) -> "Rows":
        """Return some of the rows."""
        return Rows(**{name: column[kept] for name, column in vars(self).items()})


def read(world: World, folder: Path) -> tuple[Rows, torch.Tensor]:
    """Return all exposures, and (S, slots) whether a streamer is on air all through a slot."""
    ids = Ids(world)
    found = duckdb.sql(
        "SELECT user_id, live_id, timestamp, click, watch_time, p_click"
        f" FROM read_parquet('{folder}/truth/*/*.parquet', hive_partitioning = false)"
    ).to_arrow_table()
    user, room = place(ids.user, found["user_id"].to_numpy()), place(ids.room, found["live_id"].to_numpy())
    time = found["timestamp"].to_numpy()
    rooms, streamer = world.rooms, world.rooms.streamer[room]
    slot = (time - START_MS) // SLOT_MS
    slots = world.settings.days * (DAY_MS // SLOT_MS)
    first = np.maximum(-((START_MS - rooms.start) // SLOT_MS), 0)  # the first slot that begins on air
    last = np.minimum((rooms.end - START_MS) // SLOT_MS, slots)  # one past the last that ends on air
    days = np.stack(list(popularity(world.settings, world.streamers)))
    on_air = np.zeros((len(world.streamers), slots), bool)
    weight = np.zeros((slots, T + 1))  # of all rooms on air: by topic, and their number
    for r in range(len(rooms)):
        inside = np.arange(first[r], last[r])
        on_air[rooms.streamer[r], inside] = True
        weight[inside, rooms.topic[r]] += days[inside // (DAY_MS // SLOT_MS), rooms.streamer[r]]
        weight[inside, T] += 1
    whole, topic = weight[:, :T].sum(axis=1), rooms.topic[room].astype(np.int64)
    popular = days[slot // (DAY_MS // SLOT_MS), streamer] / whole[slot]
    click, left_s = found["click"].to_numpy(), (np.minimum(rooms.end[room], world.settings.end_ms) - time) / 1000
    columns = {
        "user": user,
        "streamer": streamer,
        "topic": topic,
        "day": (time - START_MS) // DAY_MS,
        "click": click.astype(np.float32),
        "stays": np.where(click > 0, _stays(found["watch_time"].to_numpy().astype(float), left_s), 0.5).astype(
            np.float32
        ),
        "burst": _burst(world, user, room, streamer, found["p_click"].to_numpy()),
        "by_topic": (whole[slot] / weight[slot, topic]).astype(np.float32),
        "evenly": (1 / weight[slot, T] / popular).astype(np.float32),
        "as_favourite": (1 / popular).astype(np.float32),
        "slot": slot,
        "room": room,
        "time": time,
        "chance": found["p_click"].to_numpy(),
    }
    order = np.lexsort((time, user))
    rows = Rows(**{name: torch.from_numpy(np.ascontiguousarray(column[order])) for name, column in columns.items()})
    return rows, torch.from_numpy(on_air)


def _stays(watched: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return the longer part's density over the sum of both; their chances, where the room's end cut the view."""

    def part(median: float, sigma: float) -> np.ndarray:
        z = (np.log(np.maximum(watched, 1e-3)) - math.log(median)) / sigma
        return np.where(watched >= left - 1e-3, ndtr(-z), np.exp(-(z**2) / 2) / sigma)

    remain, leave = part(*REMAIN), part(*LEAVE)
    return remain / np.maximum(remain + leave, 1e-300)


def _burst(world: World, user: np.ndarray, room: np.ndarray, streamer: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Return 1 where the room has a burst: what the other parts leave of the true logit."""
    users, streamers = world.users, world.streamers
    favourite = (users.favourites[user] == streamer[:, None]).any(axis=1)
    logit = CLICK["intercept"] + users.bias[user] + CLICK["quality"] * streamers.quality[streamer]
    logit = logit + CLICK["favourite"] * favourite
    logit += CLICK["interest"] * live.affinity(
        users.live_click, user, world.rooms.topic[room], streamers.second[streamer]
    )
    return (np.log(chance) - np.log1p(-chance) - logit > CLICK["burst"] / 2).astype(np.float32)
