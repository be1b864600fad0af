"""The tables that describe users, streamers, rooms and videos, as the raw files have them.

What a profile says that matters (counts, fans, durations) follows from the latent state; age, gender, country and
devices are noise, and so are the binary features. A share MISSING of the optional fields is empty.
"""

from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livetrain.trainers.data.simulator.settings import DAY_MS, FIRST_DAY, TOPICS, UTC8_MS, Settings
from livetrain.trainers.data.simulator.world import World

MISSING = 0.04
UNTITLED, NO_CATEGORY, NO_TAG = 0.2, 0.05, 0.08
NO_ROOM_VECTOR, NO_VIDEO_VECTOR = 0.01, 0.18  # published: 5.5 M of 6.7 M videos have one
TITLE_WIDTH, ROOM_WIDTH, VIDEO_WIDTH = 128, 64, 128
CLARITY = 1.0  # length of the topic's direction in an embedding whose noise has variance 1 in all
PIECE = 65_536  # rows of embeddings in memory at a time

AGES = ("0-12", "12-17", "18-23", "24-30", "31-40", "41-49", "50+")
AGE_SHARE = (0.01, 0.06, 0.18, 0.24, 0.29, 0.14, 0.08)
BRANDS = ("APPLE", "HUAWEI", "OPPO", "VIVO", "XIAOMI", "HONOR", "SAMSUNG", "DESKTOP")
PRICES = ("0", "0-1000", "1000-2000", "2000-3000", "3000-5000", "5000+")
COUNTRIES = ("China", "Other")


class Ids:
    """Anonymous ids: 1, 2, ... in random order, so that an id says nothing about what it names. (n,) int64 each.

    Where users have friends, theirs begin behind those of creators: an id of a person is one person's.
    """

    def __init__(self, world: World):
        def shuffled(kind: str, number: int) -> np.ndarray:
            return world.settings.random("ids of " + kind).permutation(number) + 1

        self.user = shuffled("users", len(world.users)) + (world.authors if world.settings.social else 0)
        self.author = shuffled("authors", world.authors)  # streamers come first
        self.streamer = self.author[: len(world.streamers)]
        self.room = shuffled("rooms", len(world.rooms))
        self.video = shuffled("videos", len(world.videos))


def bins(values: np.ndarray, edges: tuple[int, ...]) -> pa.Array:
    """Return ranges as strings: below the last edge "low-high", from it on "low+"."""
    names = [f"{low}-{high}" for low, high in zip((0, *edges[:-1]), edges, strict=True)] + [f"{edges[-1]}+"]
    return pa.array(names).take(pa.array(np.searchsorted(edges, values, side="right")))


def _decades(lowest: int, highest: int) -> tuple[int, ...]:
    """Return 1, 5, 10, 50, ... times ten, as edges of ranges."""
    return tuple(step * 10**power for power in range(lowest, highest) for step in (1, 5))


class _Column:
    """Makes columns of one table from one random stream."""

    def __init__(self, random: np.random.Generator, rows: int):
        self._random, self._rows = random, rows

    def choose(self, values: tuple[str, ...], share: tuple[float, ...] | None = None) -> pa.Array:
        return self.gaps(pa.array(values).take(pa.array(self._random.choice(len(values), self._rows, p=share))))

    def gaps(self, column: pa.Array, share: float = MISSING) -> pa.Array:
        """Return the column with a share of its values missing."""
        keep = self._random.random(self._rows) >= share
        return pc.if_else(pa.array(keep), column, pa.scalar(None, column.type))

    def around(self, values: np.ndarray, sigma: float = 0.5) -> np.ndarray:
        return values * np.exp(sigma * self._random.standard_normal(self._rows))

    def binary(self) -> dict[str, np.ndarray]:
        rates = (0.5, 0.3, 0.2, 0.1, 0.6, 0.05, 0.4)
        return {f"onehot_feat{n}": (self._random.random(self._rows) < p).astype(np.int64) for n, p in enumerate(rates)}

    def before(self, days: np.ndarray) -> pa.Array:
        """Return dates so many days before the first day, as YYYY-MM-DD."""
        return dates(-days.astype(np.int64))

    def person(self) -> dict[str, pa.Array]:
        return {
            "gender": self.choose(("M", "F"), (0.55, 0.45)),
            "age": self.choose(AGES, AGE_SHARE),
            "country": self.choose(COUNTRIES, (0.985, 0.015)),
            "device_brand": self.choose(BRANDS),
            "device_price": self.choose(PRICES),
        }


def dates(days: np.ndarray) -> pa.Array:
    """Return (n,) strings YYYY-MM-DD of days counted from the first day of the log."""
    known, place = np.unique(days, return_inverse=True)
    return pa.array([(FIRST_DAY + timedelta(days=int(day))).isoformat() for day in known]).take(pa.array(place))


def p_date(time: np.ndarray) -> np.ndarray:
    """Return (n,) int64 such as 20250525: the day in UTC+8 of epoch ms."""
    day, place = np.unique((time + UTC8_MS) // DAY_MS, return_inverse=True)
    text = np.datetime_as_string(day.astype("datetime64[D]"))
    return np.array([int(t.replace("-", "")) for t in text], np.int64)[place]


def users(world: World, ids: Ids) -> pa.Table:
    """Return user.csv."""
    state, random = world.users, world.settings.random("profiles of users")
    make = _Column(random, len(state))
    person = make.person()
    first_watch = random.integers(30, 1500, len(state))
    views = make.around(0.28 * state.sessions * state.live_length * first_watch)
    return pa.table(
        {
            "user_id": ids.user,
            **{name: person[name] for name in ("age", "gender", "country", "device_brand", "device_price")},
            "reg_timestamp": make.before(first_watch + random.integers(0, 1500, len(state))),
            "fans_num": make.gaps(bins(make.around(np.full(len(state), 20.0), 2.0), (10, 100, 1000, 10_000))),
            "follow_num": make.gaps(bins(make.around(60 * state.sessions, 1.0), (10, 100, 1000, 10_000))),
            "first_watch_live_timestamp": make.gaps(make.before(first_watch)),
            "accu_watch_live_cnt": bins(views, _decades(2, 6)),
            "accu_watch_live_duration": bins(make.around(122_000 * views), _decades(6, 11)),
            "is_live_streamer": (random.random(len(state)) < 0.08).astype(np.int64),
            "is_photo_author": (random.random(len(state)) < 0.35).astype(np.int64),
            **make.binary(),
        }
    )


def _persons(world: World) -> dict[str, pa.Array]:
    """Return (authors,) columns of who the creators are, the same in both forms."""
    return _Column(world.settings.random("persons"), world.authors).person()


def _fans(world: World) -> np.ndarray:
    """Return (authors,) rough numbers of fans."""
    state, random = world.streamers, world.settings.random("fans")
    weight = np.concatenate([state.weight / state.weight.max(), 1 / (random.permutation(len(state)) + 1)])
    return 5e6 * weight * np.exp(0.7 * random.standard_normal(len(weight)))


def streamers(world: World, ids: Ids) -> pa.Table:
    """Return streamer.csv."""
    state, random = world.streamers, world.settings.random("profiles of streamers")
    make = _Column(random, len(state))
    age_days = np.where(state.born > 0, -state.born, random.integers(5, 1800, len(state)))
    lives = make.around(state.rooms_per_day * np.maximum(age_days, 1), 0.3)
    plays = make.around(_fans(world)[: len(state)] * lives / 200)
    edges = _decades(1, 5)
    return pa.table(
        {
            "streamer_id": ids.streamer,
            **{name: column[: len(state)] for name, column in _persons(world).items()},
            "live_operation_tag": make.gaps(pa.array(TOPICS).take(pa.array(state.second)), NO_TAG),
            "fans_user_num": bins(_fans(world)[: len(state)], _decades(2, 7)),
            "fans_group_fans_num": make.gaps(bins(make.around(_fans(world)[: len(state)] / 500, 1.0), edges)),
            "follow_user_num": make.gaps(bins(make.around(np.full(len(state), 200.0), 1.0), edges)),
            "first_live_timestamp": make.before(age_days),
            "accu_live_cnt": bins(lives, _decades(1, 4)),
            "accu_live_duration": bins(make.around(lives * 163 * 60_000, 0.2), _decades(7, 12)),
            "accu_play_cnt": bins(plays, _decades(2, 9)),
            "accu_play_duration": bins(make.around(plays * 122_000), _decades(7, 13)),
            "reg_timestamp": make.before(np.maximum(age_days, 0) + random.integers(0, 1500, len(state))),
            **make.binary(),
        }
    )


def _names(world: World) -> tuple[np.ndarray, np.ndarray]:
    """Return (R,) the title of every room, 0 for none, and (titles,) the topic of every title from 1 on."""
    random, rooms = world.settings.random("titles"), world.rooms
    each = max(4, min(1600, len(rooms) // (20 * len(TOPICS))))
    name = 1 + rooms.topic.astype(np.int64) * each + random.integers(0, each, len(rooms))
    return np.where(random.random(len(rooms)) < UNTITLED, 0, name), np.repeat(np.arange(len(TOPICS)), each)


def rooms(world: World, ids: Ids) -> pa.Table:
    """Return room.csv."""
    state, random = world.rooms, world.settings.random("profiles of rooms")
    make = _Column(random, len(state))
    return pa.table(
        {
            "p_date": p_date(state.start),
            "live_id": ids.room,
            "streamer_id": ids.streamer[state.streamer],
            "live_type": random.choice([1, 2, 3], len(state), p=[0.9, 0.07, 0.03]),
            "start_timestamp": state.start,
            "end_timestamp": state.end,
            "live_content_category": make.gaps(pa.array(TOPICS).take(pa.array(state.topic)), NO_CATEGORY),
            "live_name_id": _names(world)[0],
        }
    )


def titles(world: World) -> np.ndarray:
    """Return title_embeddings.npy: (titles + 1, 128) float32, row 0 (no title) all zeros."""
    topic = _names(world)[1]
    found = np.zeros((len(topic) + 1, TITLE_WIDTH), np.float32)
    found[1:] = _embed(world.settings, "title vectors", 0, topic, TITLE_WIDTH)
    return found


def _embed(settings: Settings, purpose: str, piece: int, topic: np.ndarray, width: int) -> np.ndarray:
    """Return (n, width) float32: the topic's direction plus noise."""
    direction = settings.random("directions of " + purpose).standard_normal((len(TOPICS), width), dtype=np.float32)
    direction *= CLARITY / np.linalg.norm(direction, axis=1, keepdims=True)
    noise = settings.random(purpose, piece).standard_normal((len(topic), width), dtype=np.float32)
    return direction[topic] + noise / np.float32(np.sqrt(width))


def _vectors(
    settings: Settings,
    purpose: str,
    key: str,
    name: str,
    ids: np.ndarray,
    topic: np.ndarray,
    width: int,
    missing: float,
) -> Iterator[pa.Table]:
    for piece, first in enumerate(range(0, len(ids), PIECE)):
        part = slice(first, first + PIECE)
        values = _embed(settings, purpose, piece, topic[part], width)
        kept = settings.random("gaps in " + purpose, piece).random(len(values)) >= missing
        yield pa.table({key: ids[part][kept], name: listed(values[kept])})


def listed(values: np.ndarray) -> pa.ListArray:
    """Return (n, width) numbers as n lists."""
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))


def room_vectors(world: World, ids: Ids) -> Iterator[pa.Table]:
    """Yield live_emb_64.parquet in pieces."""
    return _vectors(
        *(world.settings, "room vectors", "live_id", "embedding", ids.room, world.rooms.topic, ROOM_WIDTH),
        missing=NO_ROOM_VECTOR,
    )


def video_vectors(world: World, ids: Ids) -> Iterator[pa.Table]:
    """Yield photo_emb_128.parquet in pieces."""
    return _vectors(
        *(world.settings, "video vectors", "photo_id", "feature", ids.video, world.videos.topic, VIDEO_WIDTH),
        missing=NO_VIDEO_VECTOR,
    )


def room_meta(world: World, ids: Ids) -> pa.Table:
    """Return live_room_meta.parquet; a room that outlasts the log has no end and no duration yet."""
    state, over = world.rooms, world.rooms.end <= world.settings.end_ms
    name = _names(world)[0]
    text = np.where(name > 0, np.char.add("title ", name.astype(str)), "")
    return pa.table(
        {
            "live_id": ids.room,
            "author_id": ids.streamer[state.streamer],
            "live_name": text,
            "start_timestamp": stamps(state.start),
            "end_timestamp": pa.array(state.end, pa.timestamp("ms"), mask=~over),
            "live_duration": pa.array(state.end - state.start, pa.int64(), mask=~over),
        }
    )


def stamps(time: np.ndarray) -> pa.Array:
    """Return epoch ms as timestamps."""
    return pa.array(time).cast(pa.timestamp("ms"))


def video_meta(world: World, ids: Ids) -> pa.Table:
    """Return photo_meta.parquet."""
    state, random = world.videos, world.settings.random("profiles of videos")
    name = np.char.add(np.array(TOPICS)[state.topic], " clip")
    return pa.table(
        {
            "photo_id": ids.video,
            "author_id": ids.author[state.author],
            "duration": state.duration_ms,
            "display_type": random.choice([1, 2], len(state), p=[0.85, 0.15]),
            "cover_title": np.where(random.random(len(state)) < UNTITLED, "", name),
            "video_texts": _Column(random, len(state)).gaps(pa.array(name), 0.3),
        }
    )


def video_tags(world: World, ids: Ids) -> pa.Table:
    """Return photo_tag.csv; a share NO_TAG of the videos has no row, and deeper levels end early."""
    state, random = world.videos, world.settings.random("tags")
    make = _Column(random, len(state))
    first = np.array(TOPICS)[state.topic]
    second = np.char.add(np.char.add(first, "/"), random.integers(0, 5, len(state)).astype(str))
    third = np.char.add(np.char.add(second, "/"), random.integers(0, 5, len(state)).astype(str))
    table = pa.table(
        {
            "photo_id": ids.video,
            "first_level_category_name": first,
            "second_level_category_name": second,
            "third_level_category_name": make.gaps(pa.array(third), 0.3),
            "fourth_level_category_name": make.gaps(pa.array(third), 0.9),
        }
    )
    return table.filter(pa.array(random.random(len(state)) >= NO_TAG))


def authors(world: World, ids: Ids) -> pa.Table:
    """Return author_profile.csv."""
    live = np.arange(world.authors) < len(world.streamers)
    photo = np.bincount(world.videos.author, minlength=world.authors) > 0
    person = _persons(world)
    edges = ((1_000, "1k"), (10_000, "1w"), (100_000, "10w"), (1_000_000, "100w"), (10_000_000, "1000w"))
    names = [f"{low}-{high}" for low, high in zip(("0", "1k", "1w", "10w", "100w"), (e for _, e in edges), strict=True)]
    fans = np.searchsorted([edge for edge, _ in edges], _fans(world), side="right")
    return pa.table(
        {
            "author_id": ids.author,
            "is_photo_author": photo.astype(np.int64),
            "is_live_author": live.astype(np.int64),
            "gender": pc.fill_null(person["gender"], "U"),
            "age_segment": pc.fill_null(person["age"], "unknown"),
            "fans_user_num": pa.array([*names, "1000w+"]).take(pa.array(fans)),
        }
    )
