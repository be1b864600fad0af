"""What lies beside KuaiLive's files where asked for: follows and friends, streamers' vectors, users' interests."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from livetrain.trainers.data.simulator.live import SECOND_TOPIC
from livetrain.trainers.data.simulator.profiles import PIECE, Ids, listed
from livetrain.trainers.data.simulator.settings import DAY_MS, START_MS, TOPICS
from livetrain.trainers.data.simulator.world import World, cumulative, draw_topics

FOLLOWS, FRIENDS = "kuailive/follow.csv", "kuailive/friend.csv"
WIDTH = 64
CHOSEN = 3  # draws of a topic when a user registers


def followed(world: World, ids: Ids) -> dict[str, np.ndarray]:
    """Return the rows of follow.csv from before the log: user_id, streamer_id, timestamp (ms)."""
    favourites = world.users.favourites
    everyone = np.repeat(np.arange(len(favourites)), favourites.shape[1])
    user, streamer = np.unique(np.stack([everyone, favourites.ravel()]), axis=1)
    return {"user_id": ids.user[user], "streamer_id": ids.streamer[streamer], "timestamp": _before(len(user))}


def friends(world: World, ids: Ids) -> pa.Table:
    """Return friend.csv: user_id, friend_id, timestamp (ms); a pair once."""
    known, number = world.users.friends, len(world.users)
    pairs = np.stack([np.repeat(np.arange(number), known.shape[1]), known.ravel()])
    one, other = np.unique(pairs[:, (pairs[0] < pairs[1]) & (pairs[1] < number)], axis=1)
    return pa.table({"user_id": ids.user[one], "friend_id": ids.user[other], "timestamp": _before(len(one))})


def _before(rows: int) -> np.ndarray:
    return np.full(rows, START_MS - DAY_MS)


def vectors(world: World, ids: Ids) -> Iterator[pa.Table]:
    """Yield streamer_emb_64.parquet in pieces: streamer_id, embedding (64 float32).

        v = sqrt(content / 3) (t + Q d_q + C d_c) + sqrt((1 - content) / 64) noise

    with t = (d_topic + 0.4 d_second) / its mean length, Q quality, C charm, every d a direction of length 1, and noise
    of variance 1 in each of 64 places: so `content` is the share of |v|^2 that comes of who the streamer is.
    """
    settings, streamers = world.settings, world.streamers
    drawn = settings.random("directions of streamer vectors").standard_normal((len(TOPICS) + 2, WIDTH))
    *topics, quality, charm = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    topics, length = np.stack(topics), np.float32(np.sqrt(1 + SECOND_TOPIC**2))
    about, noise = np.float32(np.sqrt(settings.content / 3)), np.float32(np.sqrt((1 - settings.content) / WIDTH))
    for piece, first in enumerate(range(0, len(streamers), PIECE)):
        part = slice(first, first + PIECE)
        true = (topics[streamers.topic[part]] + SECOND_TOPIC * topics[streamers.second[part]]) / length
        true = true + streamers.quality[part, None] * quality + streamers.charm[part, None] * charm
        random = settings.random("streamer vectors", piece)
        values = about * true + noise * random.standard_normal(true.shape, dtype=np.float32)
        yield pa.table({"streamer_id": ids.streamer[part], "embedding": listed(values.astype(np.float32))})


def interests(world: World, ids: Ids) -> pa.Table:
    """Return interest.csv: user_id, and the topics that she chose when she registered, such as game+music.

    CHOSEN topics are drawn from softmax(click_u), those that were not drawn before.
    """
    random, users = world.settings.random("chosen interests"), len(world.users)
    running = np.repeat(cumulative(world.users.live_click), CHOSEN, axis=0)
    drawn = np.sort(draw_topics(random, running).reshape(users, CHOSEN), axis=1)
    names = np.array(TOPICS, object)[drawn]
    names[:, 1:] = np.where(drawn[:, 1:] == drawn[:, :-1], "", "+" + names[:, 1:])
    return pa.table({"user_id": ids.user, "topics": pa.array(names.sum(axis=1))})
