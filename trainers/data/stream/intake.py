"""Messages to the internal form of an event log, by the very SELECTs that read its files.

A message becomes a row of the table that its topic feeds; the event log's SELECTs make exposures and actions of it. A
message is kept aside (poison) where it is no JSON object, where a column that it has is not of the declared type, where
it has no time, or one that is far ahead of the clock. It is late where it is older by more than `lateness` than the
newest one before it in its partition; of those that came together in one file none makes another late.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from livetrain.configs.errors import BadInput
from livetrain.configs.stream_spec import LoadedStream
from livetrain.trainers.data.sources.events import raw, stage
from livetrain.trainers.data.sources.events.known import Options
from livetrain.trainers.data.sources.table import events
from livetrain.trainers.data.sources.table.files import NULLS, quoted, short
from livetrain.trainers.data.stream.clock import Partition
from livetrain.trainers.data.stream.sources.base import Messages

_EARLIEST, _LATEST = 946_684_800_000, 4_102_444_800_000  # ms: the years 2000 to 2100
_AGGREGATES = ("GROUP_BY", "AGGREGATE", "WINDOW", "ORDER_BY", "TOP_N", "LIMIT")


@dataclass
class Taken:
    """What came since the last commit, by words, and the messages that are kept aside, as JSON."""

    counts: Counter = field(default_factory=Counter)
    poison: list[str] = field(default_factory=list)


class Intake:
    """Turns messages into rows of the tables `new_exposures` and `new_actions` of a database.

    Args:
        loaded: the stream's spec.
        connection: from `stage.connect` for the same event log.

    Raises:
        BadInput: the event log's SELECTs cannot be asked of a few messages at a time, or DuckDB does not take them.
    """

    def __init__(self, loaded: LoadedStream, connection: duckdb.DuckDBPyConnection):
        spec = loaded.events.spec
        self._spec, self._where, self._connection = loaded.spec, loaded.events.where, connection
        self.adapter = events.adapter(spec)
        self._columns = {name: spec.tables[name].columns for name in loaded.spec.topics}
        files = {name: f for name, f in self.adapter.files.items() if name not in map(quoted, self._columns)}
        self._files, self._folder = replace(self.adapter, files=files), loaded.events.folder
        self.read_files()
        for name, columns in self._columns.items():
            made = ", ".join(f"{quoted(column)} {kind}" for column, kind in columns.items())
            try:
                connection.execute(f"CREATE TABLE {quoted(name)} ({made})")
            except duckdb.Error as error:
                raise BadInput(f"{self._where(f'tables.{name}')}: DuckDB does not take it: {short(error)}") from None
        follows = events.follows_of(spec)
        live = events.adapter(spec.model_copy(update={"follows": None}))
        self._selects = {"exposures": live.exposures, "actions": live.actions}
        if follows and self._named("follows", follows) & self._columns.keys():
            self._selects["follows"], follows = follows, ""
        self._feeds = {place: self._named(place, select) for place, select in self._selects.items()}
        self._told: dict[str, set[str]] = {}
        for prefix, known in self.adapter.attributes.items():
            for name in self._named(f"attributes.{prefix}.select", known.select) & self._columns.keys():
                self._told.setdefault(name, set()).add(prefix)
        self._check(loaded)
        connection.execute(f"CREATE TABLE new_exposures AS SELECT * EXCLUDE (day) FROM ({live.exposures}) LIMIT 0")
        connection.execute(f"CREATE TABLE new_actions AS SELECT * EXCLUDE (day) FROM ({live.actions}) LIMIT 0")
        for name in self._told:
            connection.execute(f"CREATE TABLE {quoted(f'new {name}')} AS FROM {quoted(name)} LIMIT 0")
        self._waiting: set[str] = set()  # tables of messages that no exposure or action is made of yet
        self.begun = f"SELECT * EXCLUDE (day) FROM ({follows})" if follows else None
        self._seen: set[tuple[str, str]] = set()
        self.changed: list[str] = []  # what the log is to say of the messages' columns

    @property
    def told(self) -> dict[str, set[str]]:
        """Table fed by a topic that only says what is known of ids -> the attributes; all of its rows are kept."""
        return self._told

    def read_files(self) -> None:
        """Look at the files of the tables that no topic feeds, again."""
        raw.open_raw(self._connection, self._files, self._folder)

    def _named(self, place: str, select: str) -> set[str]:
        """Return the tables of the event log that a SELECT reads."""
        tree = _parsed(self._connection, select)
        if tree.get("error"):
            raise BadInput(f"{self._where(place)}: DuckDB does not take it: {tree['error_message']}")
        return _tables(tree)

    def _check(self, loaded: LoadedStream) -> None:
        """Refuse SELECTs whose rows are not each made of one message."""
        for table in self._columns:
            used = any(table in feeds for feeds in self._feeds.values())
            if used and table in self._told:
                raise BadInput(
                    f"{loaded.where(f'topics.{table}')}: attributes and events both read this table; give the "
                    "attributes a table of their own"
                )
            if not used and table not in self._told:
                raise BadInput(f"{loaded.where(f'topics.{table}')}: nothing in the event log reads it; leave it out")
        if not self._feeds["exposures"] & self._columns.keys():
            raise BadInput(f"{loaded.where('topics')}: none of them feeds the exposures; name a table that they read")
        for prefix, known in self.adapter.attributes.items():
            fed = [table for table, prefixes in self._told.items() if prefix in prefixes]
            if fed and known.since is None:
                raise BadInput(
                    f"{self._where(f'attributes.{prefix}')}: topic {min(fed)} feeds it, so that what it says of an id "
                    "may change; name in `since` the column of its SELECT from when on each row is known, in ms"
                )
        for place, select in self._selects.items():
            try:
                plan = self._connection.execute(f"EXPLAIN (FORMAT json) {select}").fetchall()[0][1]
                rows = self._connection.execute(f"SELECT count(*) FROM ({select})").fetchall()[0][0]
            except duckdb.Error as error:
                raise BadInput(f"{self._where(place)}: DuckDB does not take it: {short(error)}") from None
            if any(word in name for name in _operators(json.loads(plan)) for word in _AGGREGATES):
                raise BadInput(
                    f"{self._where(place)}: in a stream each row is made of one message, so no GROUP BY, DISTINCT, "
                    "window or ORDER BY can be asked; leave it out"
                )
            if rows:
                raise BadInput(
                    f"{self._where(place)}: {rows:,} of its rows come from tables that no topic feeds; read those logs "
                    "as topics too"
                )
            for left, right in _joins(_parsed(self._connection, select)):
                if left & self._columns.keys() and right & self._columns.keys():
                    raise BadInput(
                        f"{self._where(place)}: it joins tables that topics feed, whose messages do not come together; "
                        "name the key in the messages"
                    )

    def take(self, given: Messages, partition: Partition, taken: Taken) -> int | None:
        """Take messages into their table, for `settle`, and return the newest time of those that count, ms.

        Args:
            given: the messages.
            partition: as it was before them.
            taken: is told what came.
        """
        table = given.place[0]
        columns = self._columns[table]
        self._parse(table, columns, given)
        before = -1 if partition.newest is None else partition.newest
        newest = f"""greatest({before}, coalesce(max(_time) FILTER (_why IS NULL) OVER (
            ORDER BY _turn RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), -1))"""
        judged = f"SELECT *, _why IS NULL AND _time < {newest} - {1000 * self._spec.lateness_s} AS _late FROM _parsed"
        self._connection.execute(f"CREATE OR REPLACE TEMP TABLE _judged AS {judged}")
        count, late, bad, latest = self._connection.execute(
            "SELECT count(*), count(*) FILTER (_late), count(*) FILTER (_why IS NOT NULL), "
            "max(_time) FILTER (_why IS NULL) FROM _judged"
        ).fetchall()[0]
        taken.counts.update({"messages": count, "late": late, "poison": bad})
        if bad:
            self._aside(given, taken)
        if count > late + bad:
            self._insert(table, columns)
            if table not in self._told:
                self._waiting.add(table)
        return latest

    def _parse(self, table: str, columns: dict[str, str], given: Messages) -> None:
        """Make the table `_parsed`: the columns, _n, _m (the message), _time, and _why it is kept aside."""
        names = ", ".join(map(quoted, columns))
        if isinstance(given.values, Path):
            source, wrong = self._rows(columns, given)
        else:
            kept = [_text(value) for value in given.values]
            told = [pa.array(range(len(kept)), pa.int64()), pa.array(kept, pa.string())]
            told += [pa.array(given.stamps, pa.int64()), pa.array(given.turns, pa.int64())]
            self._connection.register("_given", pa.table(told, ["_n", "_m", "_stamp", "_turn"]))
            form = raw.text(json.dumps(columns))
            source = f"""SELECT _n, _m, _stamp, _turn, _v, _v IS NULL AS _none, unnest(_s) FROM (
                SELECT *, from_json(_v, {form}) AS _s FROM (
                    SELECT *, CASE WHEN json_type(_j) = 'OBJECT' THEN _j END AS _v FROM (
                        SELECT *, CASE WHEN json_valid(_m) THEN _m END AS _j FROM _given)))"""
            wrong = [
                f"WHEN {quoted(name)} IS NULL AND json_type(_v, '$.{quoted(name)}') != 'NULL' "
                f"THEN {raw.text(f'{name} is not {kind}')}"
                for name, kind in columns.items()
            ]
            self._tell_columns(table, columns, given)
        clock = int(time.time() * 1000)
        query = f"""CREATE OR REPLACE TEMP TABLE _parsed AS
            SELECT _n, _m, _turn, {names}, _time, CASE WHEN _none THEN 'it is no JSON object' {" ".join(wrong)}
                WHEN _time IS NULL OR _time NOT BETWEEN {_EARLIEST} AND {_LATEST}
                    THEN 'its time is no milliseconds since 1970'
                WHEN _time > least(_stamp, {clock}) + {1000 * self._spec.ahead_s} THEN 'its time is ahead of the clock'
                END AS _why
            FROM (SELECT *, TRY_CAST({self._spec.topics[table].time} AS BIGINT) AS _time FROM ({source}))"""
        try:
            self._connection.execute(query)
        except (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException) as error:
            raise BadInput(f"topics.{table}.time: DuckDB does not take it: {short(error)}") from None

    def _rows(self, columns: dict[str, str], given: Messages) -> tuple[str, list[str]]:
        """Return the SELECT of a file's rows with the declared columns, and the tests that tell which are wrong."""
        path = raw.text(str(given.values))
        if str(given.values).endswith(".parquet"):
            source = f"read_parquet({path}, hive_partitioning = false)"
        else:
            nulls = ", ".join(map(raw.text, NULLS))
            source = f"read_csv({path}, header = true, all_varchar = true, delim = ',', nullstr = [{nulls}])"
        try:
            found = [name for name, *_ in self._connection.execute(f"DESCRIBE FROM {source}").fetchall()]
        except duckdb.Error as error:
            source = f"(SELECT {raw.text(short(error))} AS unreadable)"
            found = ["unreadable"]
        made = ", ".join(
            f"TRY_CAST({quoted(name)} AS {kind}) AS {quoted(f'_to {name}')}" if name in found else
            f"CAST(NULL AS {kind}) AS {quoted(f'_to {name}')}"
            for name, kind in columns.items()
        )  # fmt: skip
        back = ", ".join(f"{quoted(f'_to {name}')} AS {quoted(name)}" for name in columns)
        bad = " OR ".join(
            [f"({quoted(name)} IS NOT NULL AND {quoted(f'_to {name}')} IS NULL)" for name in columns if name in found]
            or ["true"]
        )
        inner = f"SELECT *, {made} FROM (SELECT r, r.* FROM {source} r)"
        source = f"""SELECT row_number() OVER () - 1 AS _n, CASE WHEN {bad} THEN to_json(r)::VARCHAR END AS _m,
            {given.stamps[0]}::BIGINT AS _stamp, 0 AS _turn, false AS _none, {bad} AS _bad, {back} FROM ({inner})"""
        return source, ["WHEN _bad THEN 'a column is not of its declared type'"]

    def _tell_columns(self, table: str, columns: dict[str, str], given: Messages) -> None:
        """Say once of each column that messages have it beside the declared ones, or lack it."""
        first = next((text for value in given.values if (text := _text(value))), None)  # type: ignore[union-attr]
        try:
            found = json.loads(first or "")
        except ValueError:
            return
        if not isinstance(found, dict):
            return
        for name, words in [(n, "is new and not read") for n in found if n not in columns] + [
            (n, "is missing, and null") for n in columns if n not in found
        ]:
            if (table, f"{name} {words}") not in self._seen:
                self._seen.add((table, f"{name} {words}"))
                self.changed.append(f"{table}: column '{name}' of its messages {words}")

    def _aside(self, given: Messages, taken: Taken) -> None:
        rows = self._connection.execute(
            "SELECT _n, _m, _why FROM _judged WHERE _why IS NOT NULL ORDER BY _n"
        ).fetchall()
        table, partition = given.place
        for number, message, why in rows:
            name = given.names[min(number, len(given.names) - 1)]
            content = {"table": table, "partition": partition, "at": name, "why": why, "message": message}
            taken.poison.append(json.dumps(content, ensure_ascii=False))

    def _insert(self, table: str, columns: dict[str, str]) -> None:
        """Put the messages that count into their table."""
        names = ", ".join(map(quoted, columns))
        fine = f"SELECT {names} FROM _judged WHERE _why IS NULL AND NOT _late"
        for name in (table, f"new {table}") if table in self._told else (table,):
            self._connection.execute(f"INSERT INTO {quoted(name)} {fine}")

    def settle(self, closed: int | None, taken: Taken) -> None:
        """Make exposures and actions of the messages that were taken since the last time.

        Args:
            closed: ms; rows from before it come too late.
            taken: is told what came.
        """
        whole = f"user IS NOT NULL AND item IS NOT NULL AND time BETWEEN {_EARLIEST} AND {_LATEST}"
        open_ = f"time >= {closed}" if closed is not None else "true"
        for place, into in (("exposures", "exposures"), ("actions", "actions"), ("follows", "actions")):
            if not self._waiting & self._feeds.get(place, set()):
                continue
            made = f"CREATE OR REPLACE TEMP TABLE _made AS SELECT * EXCLUDE (day) FROM ({self._selects[place]})"
            self._connection.execute(made)
            count, good, late = self._connection.execute(
                f"SELECT count(*), count(*) FILTER ({whole}), count(*) FILTER ({whole} AND NOT {open_}) FROM _made"
            ).fetchall()[0]
            taken.counts.update({into: good - late, "incomplete": count - good, "behind": late})
            self._connection.execute(f"INSERT INTO new_{into} BY NAME SELECT * FROM _made WHERE {whole} AND {open_}")
        for table in self._waiting:
            self._connection.execute(f"DELETE FROM {quoted(table)}")
        self._waiting.clear()


def connected(loaded: LoadedStream, work: Path) -> duckdb.DuckDBPyConnection:
    """Open a database of a stream below a folder."""
    spec = loaded.events.spec
    options = Options(live=spec.history, video=spec.history, window_s=spec.window_s)
    return stage.connect(events.adapter(spec), options, work)


def _text(value: bytes | None) -> str | None:
    """Return a message's text, or None of one that has none."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _operators(plan: Any) -> Iterator[str]:
    """Yield the names of a plan's operators."""
    for node in plan if isinstance(plan, list) else [plan]:
        yield node.get("name", "")
        yield from _operators(node.get("children", []))


def _parsed(connection: duckdb.DuckDBPyConnection, select: str) -> dict[str, Any]:
    """Return a SELECT as DuckDB's parser sees it."""
    return json.loads(connection.execute("SELECT json_serialize_sql(?)", [select]).fetchall()[0][0])


def _joins(tree: Any) -> Iterator[tuple[set[str], set[str]]]:
    """Yield the tables on both sides of each join of a parsed SELECT."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if node.get("type") == "JOIN":
                yield _tables(node.get("left")), _tables(node.get("right"))
            todo += node.values()
        elif isinstance(node, list):
            todo += node


def _tables(tree: Any) -> set[str]:
    """Return the names of the tables in a part of a parsed SELECT."""
    if isinstance(tree, dict):
        own = {tree["table_name"]} if tree.get("type") == "BASE_TABLE" else set()
        return own.union(*map(_tables, tree.values()))
    return set().union(*map(_tables, tree)) if isinstance(tree, list) else set()
