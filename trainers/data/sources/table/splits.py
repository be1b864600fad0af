"""Which split a row falls to, as SQL."""

from pathlib import Path

import duckdb

from livetrain.configs.errors import BadInput, shown
from livetrain.configs.spec import Loaded, Spec
from livetrain.trainers.data.sources.table import select
from livetrain.trainers.data.sources.table.files import quoted


def split_of(connection: duckdb.DuckDBPyConnection, loaded: Loaded[Spec], days: str, staged: Path) -> str:
    """Return SQL that gives the split of a row `e`.

    Args:
        connection: that reads the log; by: leave_one_out gets a table `newest` in it.
        loaded: the spec.
        days: SELECT of all rows' times and days.
        staged: folder of the typed rows.

    Raises:
        BadInput: the rows have too few times to be parted by time, or a column that says their split says another.
    """
    spec, split = loaded.spec, loaded.spec.split
    if split.by == "day":
        return "'day'"
    if split.by == "time":
        moments = f"SELECT timestamp, count(*) AS n FROM ({days}) WHERE day IS NOT NULL GROUP BY ALL"
        first, last = connection.execute(
            f"""SELECT min(timestamp) FILTER (before >= total * {1 - split.valid - split.test}),
                       min(timestamp) FILTER (before >= total * {1 - split.test})
                FROM (SELECT timestamp, sum(n) OVER (ORDER BY timestamp) - n AS before, sum(n) OVER () AS total
                      FROM ({moments}))"""
        ).fetchall()[0]
        if first is None or last is None or first == last:
            raise BadInput(f"{loaded.where('split.by')}: the rows have too few different times; use by: random")
        return f"CASE WHEN e.timestamp < {first} THEN 'train' WHEN e.timestamp < {last} THEN 'valid' ELSE 'test' END"
    if split.by == "leave_one_out":
        order = "timestamp DESC, " if spec.time else ""
        user = quoted(spec.user or "")
        keyed = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in (spec.user, spec.item) if name)
        connection.execute(
            f"""CREATE OR REPLACE TABLE newest AS
                SELECT {select.ROW} AS row, row_number() OVER own AS place
                FROM read_parquet('{staged}/*/*.parquet', hive_partitioning = false) WHERE {keyed}
                WINDOW own AS (PARTITION BY {user} ORDER BY {order}{select.ROW} DESC) QUALIFY place <= 2"""
        )
        place = f"(SELECT place FROM newest WHERE newest.row = e.{select.ROW})"
        return f"CASE {place} WHEN 1 THEN 'test' WHEN 2 THEN 'valid' ELSE 'train' END"
    if split.column is not None:
        column = f"e.{quoted(split.column)}"
        other = connection.execute(
            f"""SELECT {column} FROM read_parquet('{staged}/*/*.parquet', hive_partitioning = false) e
                WHERE {column} IS NULL OR {column} NOT IN ('train', 'valid', 'test') LIMIT 1"""
        ).fetchone()
        if other is not None:
            raise BadInput(
                f"{loaded.where('split.column')}: a row's '{split.column}' is {shown(other[0])}, and a split is train, "
                "valid or test; mend the column, or leave such rows out by log.where"
            )
        return column
    drawn = quoted(spec.user or "") if split.by == "user" else select.ROW
    draw = f"(md5_number_lower(concat(e.{drawn}, ':{split.seed}')) % 1000000) / 1e6"
    return (
        f"CASE WHEN {draw} < {split.test} THEN 'test' WHEN {draw} < {split.test + split.valid} THEN 'valid' "
        "ELSE 'train' END"
    )
