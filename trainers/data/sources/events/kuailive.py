"""KuaiLive: who was shown which room, who clicked, and what they did there.

An exposure is a row of click.csv or of negative.csv. A view that lasts `effective_view_s` is effective from that moment
on; its whole length is known when it ends. Profiles are strings (categories and ranges), whatever they look like.

Source: "KuaiLive: A Real-time Interactive Dataset for Live Streaming Recommendation", arXiv 2508.05633; fields at
imgkkk574.github.io/KuaiLive.
"""

from livetrain.trainers.data.sources.events.model import (
    CLICK,
    COMMENT,
    GIFT,
    LIKE,
    LONG,
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
