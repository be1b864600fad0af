"""Latent state of a world: who its users, streamers, rooms and videos are. See the package's docstring for formulas."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from livetrain.trainers.data.simulator.settings import DAY_MS, HOURS, SLOT_MS, START_MS, TOPIC_SHARE, TOPICS, Settings

STREAMERS_PER_USER = 0.25
NEW_STREAMERS = 0.008  # of the streamers there on day 0, each later day
POPULARITY_ZIPF = 0.95  # exponent of a streamer's weight by rank
DRIFT_DAY, DRIFT_STD = 0.85, 0.5  # autocorrelation over a day and deviation of log popularity
ROOMS_PER_DAY = 1.22  # of a streamer; published: 11,613,708 rooms of 452,621 streamers in 21 days
ROOM_MEDIAN_MIN, ROOM_SIGMA = 151.0, 0.62  # of a room's length; measured on shop rooms: quartiles 85, 134, 202 minutes
STREAMER_BLOCK = 16_384  # streamers whose rooms are drawn from one random stream
VIDEOS_PER_USER, VIDEO_ZIPF = 1.5, 0.8
VIDEO_MEDIAN_S, VIDEO_SIGMA = 25.0, 0.7
OFF_TOPIC = 0.15  # rooms of a streamer on his second topic; videos of an author on any topic
SPARSITY = 0.4  # shape of the Gamma behind an interest: the smaller, the fewer topics a user cares for
FAVOURITES = 4  # streamers whom a user follows from the start
FRIENDS = 6  # of a user, drawn evenly from all: nothing but the ties themselves tells who they are


@dataclass(frozen=True)
class Users:
    """(U,) or (U, topics) arrays, float32 unless said."""

    live_click: np.ndarray  # interest behind click and watch time in live rooms, mean 0 and variance 1 over users
    live_value: np.ndarray  # interest behind like, comment and gift there
    video_click: np.ndarray
    video_value: np.ndarray
    sessions: np.ndarray  # expected sittings per day
    live_length: np.ndarray  # expected live exposures per sitting
    video_length: np.ndarray  # expected videos per sitting
    bias: np.ndarray  # of click
    patience: np.ndarray  # of watch time
    warmth: np.ndarray  # of like, comment and follow
    purse: np.ndarray  # of gift, and of its price
    favourites: np.ndarray  # (U, FAVOURITES) int64, rows of Streamers
    friends: np.ndarray  # (U, FRIENDS) int64, rows of Users; U where there is none; (U, 0) in a world without friends

    def __len__(self) -> int:
        return len(self.bias)


@dataclass(frozen=True)
class Streamers:
    """(S,) arrays; those born on later days are there from the start, with `born` > 0."""

    weight: np.ndarray  # float64, popularity before drift
    quality: np.ndarray  # float32, of click and watch time
    charm: np.ndarray  # float32, of like, comment, follow and gift
    topic: np.ndarray  # int8
    second: np.ndarray  # int8, another topic
    born: np.ndarray  # int64, day; 0 for those of before
    rooms_per_day: np.ndarray  # float32

    def __len__(self) -> int:
        return len(self.weight)


@dataclass(frozen=True)
class Rooms:
    """(R,) arrays, by rising start."""

    streamer: np.ndarray  # int64, row of Streamers
    topic: np.ndarray  # int8
    start: np.ndarray  # int64, epoch ms
    end: np.ndarray  # int64, epoch ms

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Videos:
    """(V,) arrays, by rising day of upload and then by topic."""

    author: np.ndarray  # int64; below len(Streamers) a streamer, otherwise an author of videos alone
    topic: np.ndarray  # int8
    born: np.ndarray  # int64, day of upload; 0 for those of before
    weight: np.ndarray  # float64
    duration_ms: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.weight)


@dataclass(frozen=True)
class World:
    settings: Settings
    users: Users
    streamers: Streamers
    rooms: Rooms
    videos: Videos

    @property
    def authors(self) -> int:
        """Number of creators: streamers, and as many who only publish videos."""
        return 2 * len(self.streamers)


def build(settings: Settings) -> World:
    """Draw a world's latent state."""
    streamers = _streamers(settings)
    rooms = _rooms(settings, streamers)
    return World(settings, _users(settings, streamers), streamers, rooms, _videos(settings, streamers))


def through_the_day(share: np.ndarray) -> np.ndarray:
    """Return the time of day in ms at which `share` (any shape, in [0, 1]) of a day's activity is over."""
    passed = np.concatenate([[0.0], np.cumsum(HOURS) / np.sum(HOURS)])
    return np.interp(share, passed, np.linspace(0, DAY_MS, len(passed)))


def _interest(random: np.random.Generator, users: int) -> np.ndarray:
    """Return (users, topics) independent draws with mean 0, variance 1 and a heavy right tail."""
    drawn = random.standard_gamma(SPARSITY, (users, len(TOPICS)), dtype=np.float32)
    return (drawn - np.float32(SPARSITY)) / np.float32(np.sqrt(SPARSITY))


def _users(settings: Settings, streamers: Streamers) -> Users:
    random, users = settings.random("users"), settings.users
    shared, own = np.float32(np.sqrt(settings.transfer)), np.float32(np.sqrt(1 - settings.transfer))
    aligned = np.float32(1 - 2 * settings.conflict)
    other = np.sqrt(1 - aligned**2)
    click, value = _interest(random, users), _interest(random, users)
    domains = []
    for _ in ("live", "video"):
        mine = shared * click + own * _interest(random, users)
        domains += [mine, aligned * mine + other * (shared * value + own * _interest(random, users))]

    def normal(deviation: float, mean: float = 0.0) -> np.ndarray:
        return (mean + deviation * random.standard_normal(users)).astype(np.float32)

    live_click, live_value, video_click, video_value = domains
    return Users(
        live_click=live_click,
        live_value=live_value,
        video_click=video_click,
        video_value=video_value,
        sessions=np.exp(normal(0.7, np.log(0.75))),
        live_length=np.exp(normal(0.75, np.log(3.3))),
        video_length=np.exp(normal(0.5, np.log(5.0))),
        bias=normal(0.4),
        patience=normal(0.4),
        warmth=normal(0.8),
        purse=normal(1.0),
        favourites=_favourites(settings, live_click, streamers),
        friends=_friends(settings),
    )


def _favourites(settings: Settings, interest: np.ndarray, streamers: Streamers) -> np.ndarray:
    """Draw whom each user follows: a topic by interest, in it a streamer of before by popularity."""
    random = settings.random("favourites")
    topics = draw_topics(random, np.repeat(cumulative(interest), FAVOURITES, axis=0))
    old = np.flatnonzero(streamers.born == 0)
    old = old[np.argsort(streamers.topic[old], kind="stable")]
    return old[draw_within(random, topics, streamers.topic[old], streamers.weight[old])].reshape(-1, FAVOURITES)


def _friends(settings: Settings) -> np.ndarray:
    """Pair all users anew FRIENDS times: who is one's friend has one for a friend."""
    users = settings.users
    friends = np.full((users, FRIENDS if settings.social else 0), users)
    for turn in range(friends.shape[1]):
        pairs = settings.random("friends", turn).permutation(users)[: users // 2 * 2].reshape(-1, 2)
        friends[pairs, turn] = pairs[:, ::-1]
    return friends


def cumulative(interest: np.ndarray) -> np.ndarray:
    """Return (U, topics) float32, the running sum over topics of softmax(interest)."""
    chance = np.exp(interest - interest.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    return np.cumsum(chance, axis=1, dtype=np.float32)


def draw_topics(random: np.random.Generator, chances: np.ndarray) -> np.ndarray:
    """Draw one topic per row of running sums (n, topics)."""
    drawn = random.random(len(chances), dtype=np.float32)
    return np.minimum((chances <= drawn[:, None]).sum(axis=1), len(TOPICS) - 1)


def draw_within(random: np.random.Generator, wanted: np.ndarray, topic: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Draw one item by weight among those of each wanted topic, or among all where the topic has none.

    Args:
        random: the stream to draw from.
        wanted: (n,) topics, or -1 for any.
        topic: (m,) the items' topics, rising; m > 0.
        weight: (m,) positive.

    Returns:
        (n,) positions among the items.
    """
    passed = np.concatenate([[0.0], np.cumsum(weight)])
    border = np.searchsorted(topic, np.arange(len(TOPICS) + 1))
    low, high = passed[border[:-1]], passed[border[1:]]
    first, last = border[:-1], border[1:] - 1
    any_topic = (wanted < 0) | (first > last)[wanted]
    low = np.where(any_topic, 0.0, low[wanted])
    high = np.where(any_topic, passed[-1], high[wanted])
    found = np.searchsorted(passed, low + random.random(len(wanted)) * (high - low), side="right") - 1
    lowest = np.where(any_topic, 0, first[wanted])
    return np.clip(found, lowest, np.where(any_topic, len(topic) - 1, last[wanted]))


def _streamers(settings: Settings) -> Streamers:
    random = settings.random("streamers")
    old = max(4 * len(TOPICS), int(STREAMERS_PER_USER * settings.users))
    new = int(np.ceil(NEW_STREAMERS * old))
    born = np.concatenate([np.zeros(old, np.int64), np.repeat(np.arange(1, settings.days), new)])
    number = len(born)
    rank = random.permutation(number) + 1
    topic = random.choice(len(TOPICS), number, p=TOPIC_SHARE).astype(np.int8)
    second = (topic + random.integers(1, len(TOPICS), number)) % len(TOPICS)
    busy = random.standard_gamma(2.0, number) / 2.0
    return Streamers(
        weight=rank**-POPULARITY_ZIPF,
        quality=random.standard_normal(number).astype(np.float32),
        charm=random.standard_normal(number).astype(np.float32),
        topic=topic,
        second=second.astype(np.int8),
        born=born,
        rooms_per_day=(ROOMS_PER_DAY * np.clip(busy, 0.1, 4.0)).astype(np.float32),
    )


def popularity(settings: Settings, streamers: Streamers) -> Iterator[np.ndarray]:
    """Yield each day's (S,) float64 weights: w exp(x_d), and for one born on a later day times 1 - exp(-age / 3).

    Log popularity drifts by x_d = a x_{d-1} + sqrt(1 - a^2) n_d with n_d ~ N(0, DRIFT_STD^2).
    """
    drift = np.zeros(len(streamers))
    for day in range(settings.days):
        fresh = DRIFT_STD * settings.random("drift", day).standard_normal(len(streamers))
        drift = DRIFT_DAY * drift + np.sqrt(1 - DRIFT_DAY**2) * fresh if day else fresh
        age = np.maximum(day - streamers.born + 1, 0)
        yield streamers.weight * np.exp(drift) * np.where(streamers.born > 0, 1 - np.exp(-age / 3), 1.0)


def _rooms(settings: Settings, streamers: Streamers) -> Rooms:
    """Draw when each streamer is on air: rooms follow one another with pauses, mostly at busy hours."""
    blocks = [
        _rooms_of(settings, streamers, np.arange(first, min(first + STREAMER_BLOCK, len(streamers))))
        for first in range(0, len(streamers), STREAMER_BLOCK)
    ]
    streamer, start, end = (np.concatenate(part) for part in zip(*blocks, strict=True))
    order = np.argsort(start, kind="stable")
    streamer, start, end = streamer[order], start[order], end[order]
    off_topic = settings.random("room topics").random(len(order)) < OFF_TOPIC
    return Rooms(streamer, np.where(off_topic, streamers.second[streamer], streamers.topic[streamer]), start, end)


def _rooms_of(settings: Settings, streamers: Streamers, block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the (streamer, start, end) of the rooms of some streamers that touch the log's days.

    In a clock on which every hour is equally busy, a room starts a pause after its predecessor's start. The pauses are
    exponential, so that a streamer's rooms per day are Poisson; a room ends a minute before the next at the latest.
    """
    random = settings.random("rooms", int(block[0]))
    horizon = settings.days + 2  # two days earlier, so that the first day opens with rooms on air
    rate = streamers.rooms_per_day[block]
    most = int(np.ceil(rate.max() * horizon + 6 * np.sqrt(rate.max() * horizon) + 6))
    busy = np.cumsum(random.standard_exponential((len(block), most)) / rate[:, None], axis=1)  # days since two before
    day = np.floor(busy)
    start = START_MS + ((day - 2) * DAY_MS + through_the_day(busy - day)).astype(np.int64)
    length = np.exp(np.log(ROOM_MEDIAN_MIN) + ROOM_SIGMA * random.standard_normal(start.shape)) * 60_000
    end = start + length.astype(np.int64)
    end[:, :-1] = np.minimum(end[:, :-1], start[:, 1:] - 60_000)
    born = START_MS + streamers.born[block, None] * DAY_MS
    alive = (start >= born) | (streamers.born[block, None] == 0)
    kept = alive & (end - start >= 2 * SLOT_MS) & (start < settings.end_ms) & (end > START_MS)
    return np.broadcast_to(block[:, None], start.shape)[kept], start[kept], end[kept]


def _videos(settings: Settings, streamers: Streamers) -> Videos:
    random = settings.random("videos")
    number = max(8 * len(TOPICS), int(VIDEOS_PER_USER * settings.users))
    author = random.integers(0, 2 * len(streamers), number)
    born = np.where(random.random(number) < 0.5, 0, random.integers(0, settings.days, number))
    born = np.where(author < len(streamers), np.maximum(born, streamers.born[author % len(streamers)]), born)
    topic = streamers.topic[author % len(streamers)]
    topic = np.where(random.random(number) < OFF_TOPIC, random.choice(len(TOPICS), number, p=TOPIC_SHARE), topic)
    weight = (random.permutation(number) + 1.0) ** -VIDEO_ZIPF
    duration = np.exp(np.log(VIDEO_MEDIAN_S) + VIDEO_SIGMA * random.standard_normal(number)) * 1000
    order = np.lexsort((topic, born))
    return Videos(
        author[order], topic[order].astype(np.int8), born[order], weight[order], duration[order].astype(np.int64) + 3000
    )
