"""KuaiLive-M3: rooms that were shown or played, and short-video plays of the same users beside them.

An exposure is a row of live_show, or a play that no show of the room to the user precedes by `click_s`: entered from
elsewhere, or logged as a play alone. What a user does in a play is told when it ends. There are no prices: gift_value
is the number of gifts. Timestamps are wall-clock times in UTC.

Source: imgkkk574/KuaiLive-M3.
"""

from livetrain.trainers.data.sources.events.kuailive import BACKWARDS, UTC8, person
from livetrain.trainers.data.sources.events.model import (
    CLICK,
    COMMENT,
    FOLLOW,
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

_START, _END = "epoch_ms(live_play_start_timestamp)", "epoch_ms(live_play_end_timestamp)"
_COUNTS = {LIKE: "like_cnt", COMMENT: "comment_cnt", FOLLOW: "follow_author_cnt", GIFT: "send_gift_cnt"}
_LEVELS = tuple(f"{place}_level_category_name" for place in ("first", "second", "third", "fourth"))
_AUTHOR_SELECT, _AUTHOR_IDS = person(
    "streamer", ("gender", "age_segment", "fans_user_num", "is_photo_author", "is_live_author")
)
_LONG_MS = "1000 * getvariable('effective_view_s')"
_PLAYS = f"""
    SELECT user_id AS user, live_id AS item, author_id AS author,
           {_START} AS begin, greatest({_END}, {_START}) AS finish,
           CASE WHEN play_duration >= 0 THEN play_duration END AS watch, {", ".join(_COUNTS.values())}, send_gift_num
    FROM live_interaction"""
_LIVE_ACTIONS = [
    f"{{'kind': {CLICK}, 'time': begin, 'value': NULL::DOUBLE, 'done': true}}",
    f"{{'kind': {WATCH}, 'time': coalesce(finish, begin), 'value': watch / 1000.0, 'done': true}}",
    f"{{'kind': {LONG}, 'time': begin + {_LONG_MS}, 'value': NULL::DOUBLE, 'done': watch >= {_LONG_MS}}}",
    *(
        f"{{'kind': {kind}, 'time': coalesce(finish, begin), 'value': "
        f"{'send_gift_num' if kind == GIFT else count}::DOUBLE, 'done': {count} > 0}}"
        for kind, count in _COUNTS.items()
    ),
]
_VIDEO_ACTIONS = [
    f"{{'kind': {CLICK}, 'time': begin, 'value': NULL::DOUBLE, 'done': true}}",
    f"{{'kind': {WATCH}, 'time': finish, 'value': (finish - begin) / 1000.0, 'done': true}}",
    f"{{'kind': {LONG}, 'time': finish, 'value': NULL::DOUBLE, 'done': is_complete_play = 1}}",
    f"{{'kind': {LIKE}, 'time': finish, 'value': NULL::DOUBLE, 'done': like_status_type = 1}}",
    f"{{'kind': {FOLLOW}, 'time': finish, 'value': NULL::DOUBLE, "
    "'done': is_follow_after_play = 1 AND is_follow_before_play = 0}",
]


def _acts(domain: str, actions: list[str], plays: str) -> str:
    return f"""
        SELECT user, '{domain}' AS domain, item, author, a.time AS time, a.kind AS kind, a.value AS value,
               begin AS session, day_of(begin) AS day
        FROM (SELECT *, unnest([{", ".join(actions)}]) AS a FROM ({plays})) WHERE a.done"""


_VIDEO_PLAYS = """
    SELECT user_id AS user, photo_id AS item, author_id AS author, epoch_ms(enter_timestamp) AS begin,
           greatest(epoch_ms(leave_timestamp), epoch_ms(enter_timestamp)) AS finish, is_complete_play, like_status_type,
           is_follow_before_play, is_follow_after_play
    FROM photo_play"""
_IDS = ("user_id", "live_id", "author_id")

ADAPTER = Adapter(
    name="kuailive-m3",
    domain="live",
    item="room",
    author="streamer",
    utc_offset_s=UTC8,
    files={
        "live_interaction": RawFile(
            names=("live_interaction.csv", "live_interaction.parquet"),
            columns={
                **dict.fromkeys((*_IDS, "play_duration", *_COUNTS.values(), "send_gift_num"), "BIGINT"),
                **dict.fromkeys(("live_play_start_timestamp", "live_play_end_timestamp"), "TIMESTAMP"),
            },
            unused=(
                *("p_date", "live_source_category", "enter_live_action", "is_auto_play", "is_follow_enter"),
                *("is_follow_leave", "cancel_follow_author_cnt", "share_cnt", "report_live_cnt"),
            ),
            checks={
                "ends before it starts: taken as ending at once": "live_play_end_timestamp < live_play_start_timestamp",
                "play_duration is missing or negative: watch_time null": "play_duration IS NULL OR play_duration < 0",
            },
        ),
        "live_show": RawFile(
            names=("live_show.parquet", "live_show.csv"),
            columns={**dict.fromkeys(_IDS, "BIGINT"), "show_timestamp": "TIMESTAMP"},
        ),
        "live_room_meta": RawFile(
            names=("live_room_meta.parquet", "live_room_meta.csv"),
            columns={
                **{"live_id": "BIGINT", "live_name": "VARCHAR"},
                **dict.fromkeys(("start_timestamp", "end_timestamp"), "TIMESTAMP"),
            },
            unused=("author_id", "live_duration"),
            checks={BACKWARDS: "end_timestamp < start_timestamp"},
        ),
        "photo_play": RawFile(
            names=("photo_play.parquet", "photo_play.csv"),
            columns={
                **dict.fromkeys(("user_id", "photo_id", "author_id", "is_complete_play", "like_status_type"), "BIGINT"),
                **dict.fromkeys(("is_follow_before_play", "is_follow_after_play"), "BIGINT"),
                **dict.fromkeys(("enter_timestamp", "leave_timestamp"), "TIMESTAMP"),
            },
            unused=("enter_play_type",),
            checks={"leaves before it enters: taken as leaving at once": "leave_timestamp < enter_timestamp"},
        ),
        "photo_tag": RawFile(
            names=("photo_tag.csv", "photo_tag.parquet"),
            columns={"photo_id": "BIGINT", **dict.fromkeys(_LEVELS, "VARCHAR")},
            required=False,
        ),
        "author_profile": RawFile(
            names=("author_profile.csv", "author_profile.parquet"),
            columns={
                "author_id": "BIGINT",
                **dict.fromkeys(("is_photo_author", "is_live_author", "gender", "age_segment"), "VARCHAR"),
                "fans_user_num": "VARCHAR",
            },
        ),
    },
    exposures=f"""
        SELECT user, item, author, time, day_of(time) AS day
        FROM (SELECT *, max(CASE WHEN NOT play THEN time END)
                        OVER (PARTITION BY user, item ORDER BY time, play) AS shown
              FROM (SELECT user_id AS user, live_id AS item, author_id AS author, epoch_ms(show_timestamp) AS time,
                           false AS play
                    FROM live_show
                    UNION ALL SELECT user, item, author, begin, true FROM ({_PLAYS})))
        WHERE NOT play OR shown IS NULL OR time - shown > 1000 * getvariable('click_s')""",
    actions=f"{_acts('live', _LIVE_ACTIONS, _PLAYS)} UNION ALL {_acts('video', _VIDEO_ACTIONS, _VIDEO_PLAYS)}",
    attributes={
        "streamer": Attributes(
            key="author", select=f"SELECT author_id AS id, {_AUTHOR_SELECT} FROM author_profile", ids=_AUTHOR_IDS
        ),
        "room": Attributes(
            key="item",
            select="""SELECT live_id AS id, live_name, CASE WHEN end_timestamp < start_timestamp THEN NULL
                             ELSE epoch_ms(start_timestamp) END AS start FROM live_room_meta""",
            ids=("live_name",),
            age="room_age",
        ),
        "video": Attributes(
            key=None,
            select="SELECT photo_id AS id, first_level_category_name AS category FROM photo_tag",
            ids=("category",),
        ),
    },
    labels={
        "click": Label(CLICK, ("click_s",)),
        "effective_view": Label(LONG, ("click_s", "effective_view_s"), session=True),
        "watch_time": Label(WATCH, ("window_s",), total=True, session=True),
        "like": Label(LIKE, ("window_s",), session=True),
        "comment": Label(COMMENT, ("window_s",), session=True),
        "follow": Label(FOLLOW, ("window_s",), session=True),
        "gift": Label(GIFT, ("window_s",), session=True),
        "gift_value": Label(GIFT, ("window_s",), total=True, session=True),
    },
    sequences={
        "live": Sequence("live", CLICK, item=None, author="streamer"),
        "video": Sequence("video", CLICK, item="id", author="author", topic="category"),
    },
    topics={"video": ("video", "category")},
    statistics={"user": "user", "streamer": "author"},
    terms="as published with KuaiLive-M3",
)
