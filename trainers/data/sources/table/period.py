"""One period in SQL: its rows with their split, counts of what was earlier, and the state for the next period.

A period is a day, or several that follow one another. What is counted by earlier days is made here, out of core; what
depends on a row's own moment is made by buckets of users (bucket.py).

The state of a period is what the next one needs of the past: `counts/<column>` and `pairs/<column>` (up to its end),
and `histories/<name>` (the newest entries of every user).
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb

from livetrain.configs.spec import Spec
from livetrain.trainers.data.sources.table.files import quoted
from livetrain.trainers.data.sources.table.select import ROW, TEXTS


@dataclass(frozen=True)
class Period:
    """Where a period's inputs and outputs lie.

    Args:
        staged: glob of its typed rows.
        before: state of the period before, if any.
        work: folder for `rows` and the new `state`.
        buckets: of users, or of rows where there are no users.
        binary: labels that are 0 or 1, which are counted.
        split: SQL that gives a row's split.
    """

    staged: str
    before: Path | None
    work: Path
    buckets: int
    binary: list[str]
    split: str


def seen(spec: Spec) -> list[str]:
    """Return the columns that are counted together with the user up to a row's moment; the user's own comes first."""
    assert not spec.pairs or spec.user
    return ([spec.user] if spec.user is not None and spec.user in spec.counts else []) + spec.pairs


def lay_out(connection: duckdb.DuckDBPyConnection, spec: Spec, period: Period) -> dict[str, int]:
    """Write `rows/bucket=N` and `state` below the work folder, make the view `rows`; return counts for the report."""
    connection.execute(
        f"CREATE OR REPLACE VIEW staged AS FROM read_parquet('{period.staged}', hive_partitioning = false)"
    )
    keyed = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in (spec.user, spec.item) if name) or "true"
    connection.execute(f"CREATE OR REPLACE VIEW kept AS FROM staged WHERE {keyed}")
    counts = _report(connection, spec, keyed)
    _open_state(connection, spec, period)
    joined = ""
    flags = [name for (name,) in connection.execute("SELECT column_name FROM (DESCRIBE staged)").fetchall()]
    flags = [quoted(name) for name in flags if name.startswith(("bad.", "lost."))]
    columns = [f"e.* EXCLUDE ({', '.join(flags)})" if flags else "e.*", f"{period.split} AS split"]
    for place, name in enumerate(spec.counts):
        _days_before(connection, period, name, f"days_{place}")
        id_ = quoted(name)
        joined += f" LEFT JOIN days_{place} ON e.{id_} = days_{place}.id AND e.day = days_{place}.day"
        joined += f" LEFT JOIN counts_{place} ON e.{id_} = counts_{place}.id"
        for n, words in _counted(period):
            columns += [
                f'(coalesce(days_{place}.{n}, 0) + coalesce(counts_{place}.{n}, 0))::BIGINT AS "{name}.{words}"'
            ]
    for place, name in enumerate(seen(spec)):
        assert spec.user is not None
        joined += f" LEFT JOIN pairs_{place} ON e.{quoted(spec.user)} = pairs_{place}.user_id"
        joined += f" AND e.{quoted(name)} = pairs_{place}.id"
        columns += [f'coalesce(pairs_{place}.{n}, 0)::BIGINT AS "seen.{name}.{w}"' for n, w in _counted(period)]
        columns += [f'coalesce(pairs_{place}.last, -1) AS "seen.{name}.last"']
    bucketed = quoted(spec.user) if spec.user else ROW
    bucket = f"(e.{bucketed} % {period.buckets} + {period.buckets}) % {period.buckets} AS bucket"
    connection.execute(f"CREATE OR REPLACE VIEW rows AS SELECT {', '.join(columns)}, {bucket} FROM kept e {joined}")
    connection.execute(f"COPY (FROM rows) TO '{period.work / 'rows'}' (FORMAT parquet, PARTITION_BY (bucket))")
    _write_state(connection, spec, period)
    return counts


def _counted(period: Period) -> list[tuple[str, str]]:
    """Return what is counted: its column in a state, and in words."""
    return [("n", "n"), *((f"n{place}", label) for place, label in enumerate(period.binary))]


def _sums(period: Period) -> str:
    """Return SQL that counts rows, and those with each label."""
    labels = "".join(
        f", count(*) FILTER ({quoted(label)} = 1) AS n{place}" for place, label in enumerate(period.binary)
    )
    return f"count(*) AS n{labels}"


def _open_state(connection: duckdb.DuckDBPyConnection, spec: Spec, period: Period) -> None:
    """Make views of the state of the period before, or of empty tables."""
    zeros = ", ".join(f"0::BIGINT AS {n}" for n, _ in _counted(period))
    for what, names, keys in (
        ("counts", spec.counts, "0::BIGINT AS id"),
        ("pairs", seen(spec), "0::BIGINT AS user_id, 0::BIGINT AS id, 0::BIGINT AS last"),
    ):
        for place, name in enumerate(names):
            path = f"{period.before}/{what}/{name}.parquet"
            source = (
                f"FROM read_parquet('{path}', hive_partitioning = false)"
                if period.before
                else (f"SELECT {keys}, {zeros} WHERE false")
            )
            connection.execute(f"CREATE OR REPLACE VIEW {what}_{place} AS {source}")


def _days_before(connection: duckdb.DuckDBPyConnection, period: Period, name: str, table: str) -> None:
    """Make a table of what the period's own earlier days have counted of each value, for each of its days."""
    totals = ", ".join(f"sum({n}) OVER earlier AS {n}" for n, _ in _counted(period))
    connection.execute(f"""
        CREATE OR REPLACE TABLE {table} AS SELECT id, day, {totals}
        FROM (SELECT {quoted(name)} AS id, day, {_sums(period)} FROM kept WHERE {quoted(name)} IS NOT NULL GROUP BY ALL)
        WINDOW earlier AS (PARTITION BY id ORDER BY day ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)""")


def _write_state(connection: duckdb.DuckDBPyConnection, spec: Spec, period: Period) -> None:
    sums = ", ".join(f"sum({n})::BIGINT AS {n}" for n, _ in _counted(period))
    for what in ("counts", "pairs", "histories"):
        (period.work / "state" / what).mkdir(parents=True)
    for place, name in enumerate(spec.counts):
        _copy(
            connection,
            f"""SELECT id, {sums} FROM (FROM counts_{place} UNION ALL BY NAME
                    SELECT {quoted(name)} AS id, {_sums(period)} FROM kept
                    WHERE {quoted(name)} IS NOT NULL GROUP BY ALL)
                GROUP BY id""",
            period.work / "state" / "counts" / f"{name}.parquet",
        )
    for place, name in enumerate(seen(spec)):
        assert spec.user is not None
        _copy(
            connection,
            f"""SELECT user_id, id, max(last) AS last, {sums} FROM (FROM pairs_{place} UNION ALL BY NAME
                    SELECT {quoted(spec.user)} AS user_id, {quoted(name)} AS id, max(timestamp) AS last, {_sums(period)}
                    FROM kept WHERE {quoted(name)} IS NOT NULL GROUP BY ALL)
                GROUP BY ALL""",
            period.work / "state" / "pairs" / f"{name}.parquet",
        )


def _copy(connection: duckdb.DuckDBPyConnection, select: str, path: Path) -> None:
    connection.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")


def _report(connection: duckdb.DuckDBPyConnection, spec: Spec, keyed: str) -> dict[str, int]:
    """Count what the report tells of a period's rows."""
    asked = {"rows read": "count(*)"}
    for role in ("user", "item"):
        if name := getattr(spec, role):
            asked[f"rows without {role}: dropped"] = f"count(*) FILTER ({quoted(name)} IS NULL)"
    asked["rows kept"] = f"count(*) FILTER ({keyed})"
    for name, join in spec.joins.items():
        asked[f"joins.{name}: rows whose {join.on} it does not have"] = f'count(*) FILTER ("lost.{name}")'
    for name, column in spec.columns.items():
        asked[f"{name}: null"] = f"count(*) FILTER ({quoted(name)} IS NULL)"
        if column.type not in TEXTS:
            asked[f"{name}: null because the value is no {column.type}"] = f'count(*) FILTER ("bad.{name}")'
    for flag in connection.table("staged").columns:
        if flag.startswith("bad.") and "." in flag[4:]:  # of a column of the files
            asked[f"{flag[4:]}: null in expressions because the value is no number"] = (
                f"count(*) FILTER ({quoted(flag)})"
            )
    for name in spec.labels:
        asked[f"{name}: not known"] = f"count(*) FILTER ({quoted(name)} IS NULL AND {keyed})"
    found = connection.execute(f"SELECT {', '.join(asked.values())} FROM staged").fetchall()[0]
    return dict(zip(asked, found, strict=True))
