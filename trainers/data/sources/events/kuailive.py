"""KuaiLive: who was shown which room, who clicked, and what they did there.

An exposure is a row of click.csv or of negative.csv. A view that lasts `effective_view_s` is effective from that moment
on; its whole length is known when it ends. Profiles are strings (categories and ranges), whatever they look like.

Source: "KuaiLive: A Real-time Interactive Dataset for Live Streaming Recommendation", arXiv 2508.05633; fields at
imgkkk574.github.io/KuaiLive.
"""

from collections.abc import Iterable
from dataclasses import replace

from livetrain.trainers.data.sources.events.model import (
    CLICK,
    COMMENT,
    EXPOSURE,
    FOLLOW,
    FRIEND,
    GIFT,
    LIKE,
    LONG,
    PEOPLE,
    SHOWN,
    WATCH,
    Adapter,
    Attributes,
    Label,
    RawFile,
    Sequence,
)

UTC8 = 8 * 3600
BACKWARDS = "ends before it starts: its start taken as unknown, room_age null"
_ONEHOT = tuple(f"onehot_feat{n}" for n in range(7))
_USER = (
    *("age", "gender", "country", "device_brand", "device_price", "fans_num", "follow_num"),
    *("accu_watch_live_cnt", "accu_watch_live_duration", "is_live_streamer", "is_photo_author", *_ONEHOT),
)
_STREAMER = (
    *("gender", "age", "country", "device_brand", "device_price", "live_operation_tag", "fans_user_num"),
    *("fans_group_fans_num", "follow_user_num", "accu_live_cnt", "accu_live_duration", "accu_play_cnt"),
    *("accu_play_duration", *_ONEHOT),
)
_EVENT = dict.fromkeys(("user_id", "live_id", "streamer_id", "timestamp"), "BIGINT")
_KEY = "user_id AS user, live_id AS item, streamer_id AS author"
_LONG_MS = "1000 * getvariable('effective_view_s')"


def since(column: str) -> str:
    """Return SQL for the ms at which a date such as 2014-07-03 begins in UTC+8; null where it is none."""
    return f"epoch_ms(TRY_CAST({column} AS TIMESTAMP)) - {1000 * UTC8}"


def person(prefix: str, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the SELECT list that names a profile's columns after whose they are, and these names."""
    made = tuple(name if name.startswith(prefix) else f"{prefix}_{name}" for name in names)
    return ", ".join(f"{name} AS {new}" for name, new in zip(names, made, strict=True)), made


def _act(kind: int, table: str, value: str = "NULL::DOUBLE") -> str:
    return (
        f"SELECT {_KEY}, 'live' AS domain, timestamp AS time, {kind} AS kind, {value} AS value, "
        f"NULL::BIGINT AS session, day_of(timestamp) AS day FROM {table}"
    )


_USER_SELECT, _USER_IDS = person("user", _USER)
_STREAMER_SELECT, _STREAMER_IDS = person("streamer", _STREAMER)

ADAPTER = Adapter(
    name="kuailive",
    domain="live",
    item="room",
    author="streamer",
    utc_offset_s=UTC8,
    files={
        "click": RawFile(
            names=("click.csv",),
            columns=_EVENT | {"watch_live_time": "BIGINT"},
            checks={
                "watch_live_time is missing: watch_time null": "watch_live_time IS NULL",
                "watch_live_time is negative: taken as missing": "watch_live_time < 0",
            },
        ),
        "negative": RawFile(names=("negative.csv",), columns=_EVENT),
        "comment": RawFile(names=("comment.csv",), columns=_EVENT),
        '"like"': RawFile(names=("like.csv",), columns=_EVENT),
        "gift": RawFile(
            names=("gift.csv",),
            columns=_EVENT | {"gift_price": "DOUBLE"},
            checks={"gift_price is missing: gift_value null": "gift_price IS NULL"},
        ),
        "room": RawFile(
            names=("room.csv",),
            columns={
                **dict.fromkeys(("live_id", "start_timestamp", "end_timestamp"), "BIGINT"),
                **dict.fromkeys(("live_type", "live_content_category", "live_name_id"), "VARCHAR"),
            },
            unused=("p_date", "streamer_id"),
            checks={
                "ends before it starts: its start taken as unknown, room_age null": "end_timestamp < start_timestamp"
            },
        ),
        "user": RawFile(
            names=("user.csv",),
            columns={"user_id": "BIGINT", "reg_timestamp": "VARCHAR", **dict.fromkeys(_USER, "VARCHAR")},
            unused=("first_watch_live_timestamp",),
        ),
        "streamer": RawFile(
            names=("streamer.csv",),
            columns={"streamer_id": "BIGINT", "reg_timestamp": "VARCHAR", **dict.fromkeys(_STREAMER, "VARCHAR")},
            unused=("first_live_timestamp",),
        ),
    },
    exposures="\nUNION ALL ".join(
        f"SELECT {_KEY}, timestamp AS time, day_of(timestamp) AS day FROM {table}" for table in ("click", "negative")
    ),
    actions=f"""
        SELECT {_KEY}, 'live' AS domain, a.time AS time, a.kind AS kind, a.value AS value, timestamp AS session,
               day_of(timestamp) AS day
        FROM (SELECT *, unnest([
                  {{'kind': {CLICK}, 'time': timestamp, 'value': NULL::DOUBLE, 'done': true}},
                  {{'kind': {WATCH}, 'time': timestamp + coalesce(watch, 0), 'value': watch / 1000.0, 'done': true}},
                  {{'kind': {LONG}, 'time': timestamp + {_LONG_MS}, 'value': NULL::DOUBLE,
                    'done': watch >= {_LONG_MS}}}]) AS a
              FROM (SELECT *, CASE WHEN watch_live_time >= 0 THEN watch_live_time END AS watch FROM click))
        WHERE a.done
        UNION ALL {_act(COMMENT, "comment")}
        UNION ALL {_act(LIKE, '"like"')}
        UNION ALL {_act(GIFT, "gift", "gift_price")}""",
    attributes={
        "user": Attributes(
            key="user",
            select=f'SELECT user_id AS id, {since("reg_timestamp")} AS start, {_USER_SELECT} FROM "user"',
            ids=_USER_IDS,
            age="user_since",
        ),
        "streamer": Attributes(
            key="author",
            select=f"SELECT streamer_id AS id, {since('reg_timestamp')} AS start, {_STREAMER_SELECT} FROM streamer",
            ids=_STREAMER_IDS,
            age="streamer_since",
        ),
        "room": Attributes(
            key="item",
            select="""SELECT live_id AS id, live_type, live_content_category, live_name_id,
                             CASE WHEN end_timestamp < start_timestamp THEN NULL ELSE start_timestamp END AS start
                      FROM room""",
            ids=("live_type", "live_content_category", "live_name_id"),
            age="room_age",
        ),
    },
    labels={
        "click": Label(CLICK),
        "effective_view": Label(LONG, ("effective_view_s",), session=True),
        "watch_time": Label(WATCH, ("window_s",), total=True, session=True),
        "like": Label(LIKE, ("window_s",)),
        "comment": Label(COMMENT, ("window_s",)),
        "gift": Label(GIFT, ("window_s",)),
        "gift_value": Label(GIFT, ("window_s",), total=True),
    },
    sequences={"live": Sequence("live", CLICK, item=None, author="streamer", topic="category")},
    topics={"live": ("room", "live_content_category")},
    statistics={"user": "user", "streamer": "author"},
    terms="CC BY-NC-SA 4.0 (KuaiLive, Zenodo record 16565801)",
)


def _titles(adapter: Adapter) -> Adapter:
    """Add `title_vector`, of the room's title: null of one without a title, which is row 0."""
    room = adapter.attributes["room"]
    vectors = "LEFT JOIN title ON row > 0 AND TRY_CAST(live_name_id AS BIGINT) = row"
    select = f"SELECT known.*, vector AS title_vector FROM ({room.select}) known {vectors}"
    file = RawFile(names=("title_embeddings.npy",), columns={"row": "BIGINT", "vector": "FLOAT[]"})
    return _told(adapter, "title", file, "room", replace(room, select=select, vectors=("title_vector",)))


def _told(adapter: Adapter, table: str, file: RawFile, of: str, known: Attributes) -> Adapter:
    """Return the adapter with one more table, which tells more of users, streamers or rooms."""
    return replace(adapter, files=adapter.files | {table: file}, attributes=adapter.attributes | {of: known})


def _vectors(adapter: Adapter) -> Adapter:
    """Add `streamer_vector`, of what a streamer is like."""
    streamer = adapter.attributes["streamer"]
    select = (
        f"SELECT known.*, embedding AS streamer_vector FROM ({streamer.select}) known "
        "LEFT JOIN streamer_embedding ON known.id = streamer_embedding.streamer_id"
    )
    file = RawFile(names=("streamer_emb_64.parquet",), columns={"streamer_id": "BIGINT", "embedding": "FLOAT[]"})
    told = replace(streamer, select=select, vectors=("streamer_vector",))
    return _told(adapter, "streamer_embedding", file, "streamer", told)


def _people(adapter: Adapter) -> Adapter:
    """Add whom a user follows and whom she befriends; a friendship counts for both."""
    row = "CAST(NULL AS DOUBLE), CAST(NULL AS BIGINT), day_of(timestamp)"
    known = "\nUNION ALL ".join(
        f"SELECT {user}, {other}, {other}, '{PEOPLE}', timestamp, {kind}, {row} FROM {table}"
        for user, other, kind, table in (
            ("user_id", "streamer_id", FOLLOW, "follow"),
            ("user_id", "friend_id", FRIEND, "friend"),
            ("friend_id", "user_id", FRIEND, "friend"),
        )
    )
    files = {
        table: RawFile(names=(f"{table}.csv",), columns=dict.fromkeys(("user_id", other, "timestamp"), "BIGINT"))
        for table, other in (("follow", "streamer_id"), ("friend", "friend_id"))
    }
    lists = {
        name: Sequence(PEOPLE, kind, item=None, author="user", action=False)
        for name, kind in (("followed", FOLLOW), ("friends", FRIEND))
    }
    return replace(
        adapter,
        files=adapter.files | files,
        actions=f"{adapter.actions}\nUNION ALL {known}",
        sequences=adapter.sequences | lists,
    )


def _interests(adapter: Adapter) -> Adapter:
    """Add `user_topics`, a bag of what a user chose when she registered."""
    user = adapter.attributes["user"]
    select = (
        f"SELECT known.*, string_split(topics, '+') AS user_topics FROM ({user.select}) known "
        "LEFT JOIN interest ON known.id = interest.user_id"
    )
    file = RawFile(names=("interest.csv",), columns={"user_id": "BIGINT", "topics": "VARCHAR"})
    return _told(adapter, "interest", file, "user", replace(user, select=select, bags=("user_topics",)))


def _visits(adapter: Adapter) -> Adapter:
    """Add a sequence of all that a user was shown, clicked or not, and when she came before and comes back."""
    shown = Sequence("live", EXPOSURE, item=None, author="streamer", topic="category")
    return replace(adapter, sequences=adapter.sequences | {SHOWN: shown}, visits=True)


PARTS = {"visits": _visits, "titles": _titles, "vectors": _vectors, "people": _people, "interests": _interests}


def with_parts(parts: Iterable[str]) -> Adapter:
    """Return the adapter that reads these PARTS too: what lies beside the log's files, and costs room in every sample.

    Each is a data set of its own: a folder is gone on with by the same ones.
    """
    made, chosen = ADAPTER, sorted(set(parts))
    for part in chosen:
        made = PARTS[part](made)
    return replace(made, name="-".join([ADAPTER.name, *chosen]))
