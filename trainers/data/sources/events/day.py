"""One day in SQL: what is the same for every bucket, joined to the day's exposures, and the state for the next day.

`take` reads the day's log, `lay_out` joins what is known to its exposures, or to those of a part of the day, and
`write_state` is for the next day.

Time is cut at the day's *horizon*, its first possible moment. Statistics count what was known before it; what is known
from then on, of this day or from plays that the day before left running, is the day's own affair and is compared with
each row's time.

The state of a day, a folder of Parquet files, is all that the next day needs of the past: `statistics/<prefix>` and
`pairs/<prefix>` (counts before the next horizon), `topics` (an author's exposures by topic, likewise), `rooms` (viewers
a room's look back before it), `carry` (events from there on), `sequences/<name>` (the newest entries of every user).

Tables of this module begin with an underscore, as no raw table of a source does.
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb

from livetrain.trainers.data.sources.events.model import (
    CLICK,
    COUNTED,
    EXPOSURE,
    GIFT,
    LIKE,
    WATCH,
    Adapter,
    Attributes,
)

ROOM_WINDOW_MS = 300_000  # likes and gifts of a room that count as its last minutes
_EVENT = "user, domain, item, author, time, kind, value, session"


@dataclass(frozen=True)
class Day:
    """Where a day's inputs and outputs lie, and its limits in ms.

    Args:
        exposures, actions: what stands after FROM: the day's staged files.
        before: state of the day before, if any.
        horizon, cut, next_horizon: first possible moment, end, and the next day's first possible moment.
        work: folder for `rows`, `events` and the new `state`.
        buckets: of users.
        begin, end: exposures from `begin` on and before `end` become rows; by default all of the day.
        own: SQL condition on `user`: whose events the buckets and the state of pairs are of.
    """

    exposures: str
    actions: str
    before: Path | None
    horizon: int
    cut: int
    next_horizon: int
    work: Path
    buckets: int
    begin: int | None = None
    end: int | None = None
    own: str = "true"


def lay_out(connection: duckdb.DuckDBPyConnection, adapter: Adapter, day: Day) -> dict[str, int]:
    """Write `rows/bucket=N` and `events/bucket=N` of what `take` has taken below the work folder.

    Returns:
        Counts for the report, by words.
    """
    joined, columns = [], ["e.*"]
    local = f"(e.time + {1000 * adapter.utc_offset_s})"
    columns += [f"{local} // 3600000 % 24 AS hour", f"({local} // 86400000 + 3) % 7 AS weekday"]  # Monday is 0
    prefix, name = adapter.topics.get(adapter.domain, (None, None))
    topic = f"{prefix}_known.{name}" if prefix else "NULL::BIGINT"
    columns += [f"{topic} AS topic"]
    if adapter.domain == "live":
        _room_state(connection, day)
        columns += ["greatest(coalesce(now.viewers, 0), 0) AS room_viewers"]  # a log may begin amid views
        columns += [f"coalesce(now.{what}, 0) AS room_{what}" for what in ("likes", "gifts")]
        joined += ["JOIN _room_moments now ON e.item = now.room AND e.time = now.time"]
    for prefix, known in _joined(adapter):
        columns += [f"{prefix}_known.{name}" for name in (*known.ids, *known.bags, *known.dense, *known.vectors)]
        if known.age:
            start = f"{prefix}_known.start"
            columns += [f"CASE WHEN {start} < e.time THEN (e.time - {start}) / 1000.0 END AS {known.age}"]
            columns += [f'{start} >= e.time AS "early.{prefix}"']
        columns += [f'{prefix}_known.id IS NULL AS "unknown.{prefix}"']
        same = known.of(f"{prefix}_known", f"e.{known.key}", "e.time")
        joined += [f"LEFT JOIN attributes_{prefix} {prefix}_known ON {same}"]
    for prefix, key in adapter.statistics.items():
        columns += [f'coalesce({prefix}_before.n{kind}, 0) AS "{prefix}.{kind}"' for kind in COUNTED]
        joined += [f"LEFT JOIN statistics_{prefix} {prefix}_before ON e.{key} = {prefix}_before.id"]
    for prefix, key in adapter.pairs.items():
        columns += [f'coalesce({prefix}_with.n{kind}, 0) AS "{prefix}.{kind}"' for kind in COUNTED]
        columns += [f'{prefix}_with.last AS "{prefix}.last"']
        other = topic if key == "topic" else f"e.{key}"
        joined += [
            f"LEFT JOIN pairs_{prefix} {prefix}_with ON e.user = {prefix}_with.user AND {other} = {prefix}_with.id"
        ]
    part = " AND ".join(
        ["true", *([f"e.time >= {day.begin}"] if day.begin else []), *([f"e.time < {day.end}"] if day.end else [])]
    )
    rows = f"SELECT {', '.join(columns)} FROM _exposures e {' '.join(joined)} WHERE {part}"
    connection.execute(f"CREATE OR REPLACE TABLE _rows AS {_with_others(adapter, rows)}")
    counts = _unknown(connection, adapter)
    _write_rows(connection, day)
    write_events(connection, day)
    return counts


def take(connection: duckdb.DuckDBPyConnection, adapter: Adapter, day: Day) -> dict[str, int]:
    """Make the tables `_exposures` and `_events` of a day, without duplicates, and views of the state before it.

    Days may overlap, so what the day before has carried over may stand in this day's log again.

    Returns:
        Counts for the report of what was read and left out, by words.
    """
    _read_states(connection, adapter, day)
    shown = "user, item, author, time" + "".join(f", {name}" for name in adapter.context)
    exposures, actions = day.exposures, day.actions
    keyed = "user IS NOT NULL AND item IS NOT NULL AND time IS NOT NULL"
    inside = f"{keyed} AND time >= {day.horizon} AND time < {day.cut}"
    topic, topics = about(adapter)
    connection.execute(f"""
        CREATE OR REPLACE TABLE _exposures AS SELECT {shown} FROM {exposures} e
        WHERE {inside} AND NOT EXISTS (
            FROM _carry c WHERE kind = {EXPOSURE} AND c.user = e.user AND c.item = e.item AND c.time = e.time)
        QUALIFY row_number() OVER (PARTITION BY user, item, time ORDER BY {shown}) = 1""")
    connection.execute(f"""
        CREATE OR REPLACE TABLE _fresh AS
        SELECT DISTINCT {_EVENT} FROM {actions} WHERE {keyed} EXCEPT SELECT {_EVENT} FROM _carry""")
    connection.execute(f"""
        CREATE OR REPLACE TABLE _events AS SELECT {_EVENT}, carried, {topic} AS topic FROM (
            SELECT {_EVENT}, true AS carried FROM _carry
            UNION ALL SELECT {_EVENT}, false FROM _fresh
            UNION ALL SELECT user, '{adapter.domain}', item, author, time, {EXPOSURE}, NULL, NULL, false
            FROM _exposures) {topics}""")
    found, whole, within = _one(
        connection, f"count(*), count(*) FILTER ({keyed}), count(*) FILTER ({inside})", exposures
    )
    acted, complete = _one(connection, f"count(*), count(*) FILTER ({keyed})", actions)
    kept, distinct = _one(connection, "count(*)", "_exposures")[0], _one(connection, "count(*)", "_fresh")[0]
    return {
        "exposures read": found,
        "actions read": acted,
        "exposures without user, item or time: dropped": found - whole,
        "exposures whose time is not of their day: dropped": whole - within,
        "exposures of the same user, item and time: one kept": within - kept,
        "actions without user, item or time: dropped": acted - complete,
        "actions that stand twice: one kept": complete - distinct,
    }


def about(adapter: Adapter) -> tuple[str, str]:
    """Return SQL for the topic of an event's item, and the joins that it needs, of rows with domain, item and time."""
    topic = "".join(f" WHEN '{domain}' THEN about_{domain}.{name}" for domain, (_, name) in adapter.topics.items())
    topics = " ".join(
        f"LEFT JOIN attributes_{prefix} about_{domain} ON domain = '{domain}' AND "
        + adapter.attributes[prefix].of(f"about_{domain}", "item", "time")
        for domain, (prefix, _) in adapter.topics.items()
    )
    return f"CASE domain{topic} END" if topic else "NULL::BIGINT", topics


def _one(connection: duckdb.DuckDBPyConnection, what: str, source: str) -> tuple:
    return connection.execute(f"SELECT {what} FROM {source}").fetchall()[0]


def _room_state(connection: duckdb.DuckDBPyConnection, day: Day) -> None:
    """Make `_room_moments`: a room's viewers, and its likes and gifts of the last minutes, before each of its moments.

    Every exposure is such a moment. (An ASOF join would say the same, in quadratic time.)
    """
    begin = day.horizon - ROOM_WINDOW_MS
    connection.execute(f"""
        CREATE OR REPLACE TABLE _room_moments AS
        WITH moments AS (
            SELECT item AS room, time, count(*) FILTER (kind = {CLICK}) - count(*) FILTER (kind = {WATCH}) AS viewers,
                   count(*) FILTER (kind = {LIKE}) AS likes, count(*) FILTER (kind = {GIFT}) AS gifts
            FROM _events
            WHERE domain = 'live' AND kind IN ({EXPOSURE}, {CLICK}, {WATCH}, {LIKE}, {GIFT}) AND time >= {begin}
            GROUP BY ALL
            UNION ALL SELECT room, {begin - 1}, viewers, 0, 0 FROM _rooms)
        SELECT room, time, sum(viewers) OVER (PARTITION BY room ORDER BY time
                                              RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS viewers,
               sum(likes) OVER recent AS likes, sum(gifts) OVER recent AS gifts
        FROM moments
        WINDOW recent AS (PARTITION BY room ORDER BY time RANGE BETWEEN {ROOM_WINDOW_MS} PRECEDING AND 1 PRECEDING)""")


def _with_others(adapter: Adapter, rows: str) -> str:
    """Return SQL for rows with what else their author is about, and the user's past with that.

    `others.topics` are the topics but the row's own of which the author had exposures on earlier days, `others.shown`
    how many of each, and `others.<kind>` the sum over both of these and the user's counts of the kind before the
    horizon: whole numbers, so that no order of summing changes them.
    """
    if adapter.others is None:
        return rows
    sums = ", ".join(f'sum(a.shown * coalesce(p.n{kind}, 0))::BIGINT AS "others.{kind}"' for kind in COUNTED)
    return f"""
        WITH made AS MATERIALIZED ({rows}), others AS (
            SELECT k.user, k.author, k.topic, list(a.topic ORDER BY a.topic) AS "others.topics",
                   list(a.shown ORDER BY a.topic) AS "others.shown", {sums}
            FROM (SELECT DISTINCT user, author, topic FROM made) k
            JOIN _author_topics a ON a.author = k.author AND a.topic IS DISTINCT FROM k.topic
            LEFT JOIN pairs_user_{adapter.topics[adapter.domain][1]} p ON p.user = k.user AND p.id = a.topic
            GROUP BY ALL)
        SELECT made.*, others.* EXCLUDE (user, author, topic) FROM made LEFT JOIN others
        ON made.user = others.user AND made.author = others.author AND made.topic IS NOT DISTINCT FROM others.topic"""


def _joined(adapter: Adapter) -> list[tuple[str, Attributes]]:
    return [(prefix, known) for prefix, known in adapter.attributes.items() if known.key]


def _unknown(connection: duckdb.DuckDBPyConnection, adapter: Adapter) -> dict[str, int]:
    """Count exposures of ids that the attributes do not know, and those before an id's start."""
    words = {}
    for prefix, known in _joined(adapter):
        words[f"exposures of a {prefix} that no file describes: kept, its attributes null"] = f'"unknown.{prefix}"'
        if known.age:
            words[f"exposures at or before the start of their {prefix}: kept, {known.age} null"] = f'"early.{prefix}"'
    query = ", ".join(f"count(*) FILTER ({flag})" for flag in words.values())
    return dict(zip(words, _one(connection, query, "_rows"), strict=True)) if words else {}


def _write_rows(connection: duckdb.DuckDBPyConnection, day: Day) -> None:
    flags = [name for (name,) in connection.execute("SELECT column_name FROM (DESCRIBE _rows)").fetchall()]
    flags = [f'"{name}"' for name in flags if name.startswith(("unknown.", "early."))]
    without = f"EXCLUDE ({', '.join(flags)})" if flags else ""
    connection.execute(f"CREATE OR REPLACE VIEW _rows_only AS SELECT * {without} FROM _rows")
    _write_buckets(connection, day, "_rows_only", "rows")


def write_events(connection: duckdb.DuckDBPyConnection, day: Day) -> None:
    """Write `events/bucket=N` of what `take` has taken below the work folder."""
    _write_buckets(connection, day, f"(SELECT * FROM _events WHERE {day.own})", "events")


def _write_buckets(connection: duckdb.DuckDBPyConnection, day: Day, table: str, name: str) -> None:
    bucket = f"(user % {day.buckets} + {day.buckets}) % {day.buckets} AS bucket"
    connection.execute(
        f"COPY (SELECT *, {bucket} FROM {table}) TO '{day.work / name}' (FORMAT parquet, PARTITION_BY (bucket))"
    )


def write_state(connection: duckdb.DuckDBPyConnection, adapter: Adapter, day: Day) -> None:
    """Write the state for the next day, but for its sequences, of what `take` has taken below the work folder."""
    state = day.work / "state"
    for what in ("statistics", "pairs"):
        (state / what).mkdir(parents=True)
    counts = ", ".join(f"count(*) FILTER (kind = {kind}) AS n{kind}" for kind in COUNTED)
    sums = ", ".join(f"sum(n{kind})::BIGINT AS n{kind}" for kind in COUNTED)
    for prefix, key in adapter.statistics.items():
        _copy(
            connection,
            f"""SELECT id, {sums} FROM (
                    FROM statistics_{prefix} UNION ALL BY NAME
                    SELECT {key} AS id, {counts} FROM _events
                    WHERE domain = '{adapter.domain}' AND time >= {day.horizon} AND time < {day.next_horizon}
                      AND {key} IS NOT NULL GROUP BY ALL)
                GROUP BY id ORDER BY id""",
            state / "statistics" / f"{prefix}.parquet",
        )
    for prefix, key in adapter.pairs.items():
        _copy(
            connection,
            f"""SELECT user, id, max(last) AS last, {sums} FROM (
                    FROM pairs_{prefix} UNION ALL BY NAME
                    SELECT user, {key} AS id, max(time) FILTER (kind = {EXPOSURE}) AS last, {counts} FROM _events
                    WHERE domain = '{adapter.domain}' AND time >= {day.horizon} AND time < {day.next_horizon}
                      AND {key} IS NOT NULL AND kind != {WATCH} AND {day.own} GROUP BY ALL)
                GROUP BY ALL""",
            state / "pairs" / f"{prefix}.parquet",
        )
    if adapter.others:
        _copy(
            connection,
            f"""SELECT author, topic, sum(shown)::BIGINT AS shown FROM (
                    FROM _author_topics UNION ALL BY NAME
                    SELECT author, topic, count(*) AS shown FROM _events
                    WHERE domain = '{adapter.domain}' AND time >= {day.horizon} AND time < {day.next_horizon}
                      AND kind = {EXPOSURE} AND author IS NOT NULL AND topic IS NOT NULL GROUP BY ALL)
                GROUP BY ALL ORDER BY ALL""",
            state / "topics.parquet",
        )
    begin, end = day.horizon - ROOM_WINDOW_MS, day.next_horizon - ROOM_WINDOW_MS
    if adapter.domain == "live":
        _copy(
            connection,
            f"""SELECT room, sum(viewers)::BIGINT AS viewers FROM (
                    FROM _rooms UNION ALL
                    SELECT item, count(*) FILTER (kind = {CLICK}) - count(*) FILTER (kind = {WATCH}) FROM _events
                    WHERE domain = 'live' AND time >= {begin} AND time < {end} GROUP BY ALL)
                GROUP BY room HAVING sum(viewers) != 0 ORDER BY room""",
            state / "rooms.parquet",
        )
    _copy(connection, f"SELECT {_EVENT} FROM _events WHERE time >= {end} ORDER BY ALL", state / "carry.parquet")


def _copy(connection: duckdb.DuckDBPyConnection, select: str, path: Path) -> None:
    connection.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")


def _read_states(connection: duckdb.DuckDBPyConnection, adapter: Adapter, day: Day) -> None:
    """Make views of all parts of the state of the day before."""
    for prefix in adapter.statistics:
        _read_state(connection, day, f"statistics/{prefix}", f"statistics_{prefix}", _statistics_columns())
    for prefix in adapter.pairs:
        empty = f"SELECT 0::BIGINT AS user, 0::BIGINT AS last, * FROM ({_statistics_columns()})"
        _read_state(connection, day, f"pairs/{prefix}", f"pairs_{prefix}", empty)
    if adapter.others:
        empty = "SELECT 0::BIGINT AS author, 0::BIGINT AS topic, 0::BIGINT AS shown WHERE false"
        _read_state(connection, day, "topics", "_author_topics", empty)
    _read_state(connection, day, "carry", "_carry", f"SELECT {_EVENT} FROM no_actions")
    if adapter.domain == "live":
        _read_state(connection, day, "rooms", "_rooms", "SELECT 0::BIGINT AS room, 0::BIGINT AS viewers WHERE false")


def _read_state(connection: duckdb.DuckDBPyConnection, day: Day, name: str, table: str, empty: str) -> None:
    """Make a view of a part of the state of the day before, or of an empty table."""
    source = f"FROM read_parquet('{day.before / name}.parquet', hive_partitioning = false)" if day.before else empty
    connection.execute(f"CREATE OR REPLACE VIEW {table} AS {source}")


def _statistics_columns() -> str:
    counts = ", ".join(f"0::BIGINT AS n{kind}" for kind in COUNTED)
    return f"SELECT 0::BIGINT AS id, {counts} WHERE false"
