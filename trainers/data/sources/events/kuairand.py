"""KuaiRand-Pure: short-video exposures with their outcomes beside them.

Reads the published CSV files, and Parquet files of the same columns; columns that such copies derive from a row's
outcome are not read. A row's outcome is known when its play ends (a click from the exposure on), so a history shows a
like only to rows after it. The log's `date` runs up to three hours ahead of the local clock.

Source: Gao et al., "KuaiRand", CIKM 2022, kuairand.com.
"""

from livetrain.trainers.data.sources.events.model import (
    CLICK,
    COMMENT,
    EXPOSURE,
    FOLLOW,
    GIFT,
    LIKE,
    LONG,
    PROFILE,
    WATCH,
    Adapter,
    Attributes,
    Label,
    RawFile,
    Sequence,
)

_FLAGS = {
    LONG: "long_view",
    LIKE: "is_like",
    COMMENT: "is_comment",
    FOLLOW: "is_follow",
    GIFT: "is_forward",
    PROFILE: "is_profile_enter",
}
_LOG = ("user_id", "video_id", "date", "time_ms", "is_click", "play_time_ms", "duration_ms", "is_rand", "tab")
_USER = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{n}" for n in range(18)),
)
_VIDEO = ("video_type", "upload_type", "music_id", "music_type", "tag")
_PICTURE = ("server_width", "server_height")

_DAY = "CAST(strptime(CAST(date AS VARCHAR), '%Y%m%d') AS DATE)"
_PLAYED = "CASE WHEN play_time_ms IS NOT NULL THEN greatest(play_time_ms, 0) / 1000.0 END"
_END = "time_ms + greatest(coalesce(play_time_ms, 0), 0)"
_ACTIONS = ", ".join(
    [
        f"{{'kind': {CLICK}, 'time': time_ms, 'value': NULL::DOUBLE, 'done': is_click = 1}}",
        f"{{'kind': {WATCH}, 'time': {_END}, 'value': {_PLAYED}, 'done': true}}",
        *(
            f"{{'kind': {kind}, 'time': {_END}, 'value': NULL::DOUBLE, 'done': {flag} = 1}}"
            for kind, flag in _FLAGS.items()
        ),
    ]
)

ADAPTER = Adapter(
    name="kuairand",
    domain="video",
    item="video",
    author="author",
    utc_offset_s=8 * 3600,
    overlap_s=3 * 3600,
    files={
        "log": RawFile(
            names=("log_*.csv", "log_*.parquet"),
            columns=dict.fromkeys((*_LOG, *_FLAGS.values()), "BIGINT"),
            unused=(
                *("hourmin", "is_hate", "profile_stay_time", "comment_stay_time", "source_file", "author_id", "tag"),
                *("watch_ratio", "finish", "like", "long_watch", "is_positive", "upload_dt", "upload_date"),
                *("video_duration", "freshness_days"),
            ),
            checks={"play_time_ms is negative: taken as 0": "play_time_ms < 0"},
        ),
        "user_features": RawFile(
            names=("user_features_pure.csv", "user_features_pure.parquet"),
            columns={"user_id": "BIGINT", "register_days": "DOUBLE", **dict.fromkeys(_USER, "VARCHAR")},
            unused=("follow_user_num", "fans_user_num", "friend_user_num"),
        ),
        "video_features": RawFile(
            names=("video_features_basic_pure.csv", "video_features_basic_pure.parquet"),
            columns={
                "video_id": "BIGINT",
                "author_id": "BIGINT",
                "upload_dt": "DATE",
                **dict.fromkeys(_VIDEO, "VARCHAR"),
                **dict.fromkeys(_PICTURE, "DOUBLE"),
            },
            unused=("visible_status", "video_duration"),
        ),
        "user_sequences": RawFile(
            names=("user_sequences.parquet",),
            columns={
                **{"user_id": "BIGINT", "last_time_ms": "BIGINT"},
                **dict.fromkeys(("watch_seq", "like_seq", "long_watch_seq"), "BIGINT[]"),
            },
            unused=("history_len",),
            required=False,
        ),
    },
    exposures=f"""
        SELECT user_id AS user, video_id AS item, author_id AS author, time_ms AS time, {_DAY} AS day,
               tab, is_rand, duration_ms / 1000.0 AS duration
        FROM log LEFT JOIN video_features USING (video_id)""",
    context={"tab": "id", "is_rand": "id", "duration": "dense"},
    actions=f"""
        SELECT user, 'video' AS domain, item, author, a.time AS time, a.kind AS kind, a.value AS value,
               session, day
        FROM (SELECT user_id AS user, video_id AS item, author_id AS author, time_ms AS session, {_DAY} AS day,
                     unnest([{_ACTIONS}]) AS a
              FROM log LEFT JOIN video_features USING (video_id))
        WHERE a.done""",
    attributes={
        "user": Attributes(
            key="user",
            select=f"SELECT user_id AS id, register_days, {', '.join(_USER)} FROM user_features",
            ids=_USER,
            dense=("register_days",),
        ),
        "video": Attributes(
            key="item",
            select=f"""SELECT video_id AS id, {", ".join((*_VIDEO, *_PICTURE))},
                              list_sort(list_distinct(string_split(tag, ','))) AS tags,
                              epoch_ms(CAST(upload_dt AS TIMESTAMP)) - 28800000 AS start FROM video_features""",
            ids=_VIDEO,
            bags=("tags",),
            dense=_PICTURE,
            age="video_age",
        ),
    },
    labels={
        "click": Label(CLICK),
        "long_view": Label(LONG),
        "watch_time": Label(WATCH, total=True),
        "like": Label(LIKE),
        "comment": Label(COMMENT),
        "follow": Label(FOLLOW),
        "forward": Label(GIFT),
        "profile_enter": Label(PROFILE),
    },
    sequences={
        "video": Sequence("video", EXPOSURE, item="id", author="author", topic="tag"),
        "like": Sequence("video", LIKE, item="video", author="author", topic="tag", action=False),
    },
    topics={"video": ("video", "tag")},
    statistics={"user": "user", "video": "item", "author": "author"},
    # Of the time before the log only the order is told, and the last event's time: the others get the milliseconds
    # before it. What a user liked or watched long is told by video.
    earlier={
        "video": f"""
            SELECT user, item, author_id AS author, time,
                   CASE WHEN list_contains(long_watch_seq, item) THEN {CLICK | LONG} ELSE 0 END
                   | CASE WHEN list_contains(like_seq, item) THEN {LIKE} ELSE 0 END AS bits
            FROM (SELECT user_id AS user, unnest(watch_seq) AS item, like_seq, long_watch_seq,
                         last_time_ms - len(watch_seq) + unnest(range(1, len(watch_seq) + 1)) AS time
                  FROM user_sequences) LEFT JOIN video_features ON item = video_id""",
        "like": """
            SELECT user, item, author_id AS author, time, 0 AS bits
            FROM (SELECT user_id AS user, unnest(like_seq) AS item,
                         last_time_ms - len(like_seq) + unnest(range(1, len(like_seq) + 1)) AS time
                  FROM user_sequences) LEFT JOIN video_features ON item = video_id""",
    },
    terms="CC BY-SA 4.0 (Gao et al., KuaiRand, CIKM 2022)",
)
