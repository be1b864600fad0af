"""Raw tables to the internal form: a work database, attributes with ids for strings, events parted by day.

Everything streams from the raw files to disk; memory is DuckDB's bound, whatever the files' size.
"""

import os
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb.func import FunctionNullHandling, PythonUDFType

from livetrain.trainers.data.sources.events.known import ENTRY, NEVER, NOBODY, Options
from livetrain.trainers.data.sources.events.model import ACTIONS, BITS, EXPOSURES, Adapter, Attributes
from livetrain.trainers.data.write import layout
from livetrain.trainers.data.write.ids import string_ids

MEMORY = "1500MB"  # of DuckDB; what needs more goes to disk
BATCH = 100_000  # rows of an attributes' table in memory at a time


def database(work: Path) -> duckdb.DuckDBPyConnection:
    """Open a database of its own below `work`, bounded in memory, whose SQL may call `string_id(text)`."""
    connection = duckdb.connect(str(work / "work.duckdb"))
    settings = {"memory_limit": f"'{MEMORY}'", "temp_directory": f"'{work / 'spill'}'", "threads": os.cpu_count() or 1}
    settings |= {"preserve_insertion_order": "false", "partitioned_write_flush_threshold": 32_768, "TimeZone": "'UTC'"}
    for name, value in settings.items():
        connection.execute(f"SET {name} = {value}")
    connection.create_function(
        "string_id",
        string_ids,
        ["VARCHAR"],
        "BIGINT",
        type=PythonUDFType.ARROW,
        null_handling=FunctionNullHandling.SPECIAL,
    )
    return connection


def connect(adapter: Adapter, options: Options, work: Path) -> duckdb.DuckDBPyConnection:
    """Open a database with what the adapters' SQL calls."""
    connection = database(work)
    connection.execute(
        f"CREATE MACRO day_of(t) AS CAST(TRY(make_timestamp((t + {1000 * adapter.utc_offset_s}) * 1000)) AS DATE)"
    )
    for name, value in asdict(options).items():
        connection.execute(f"SET VARIABLE {name} = {value}")
    exposures = EXPOSURES.empty_table()
    for name, kind in adapter.context.items():
        exposures = exposures.append_column(name, pa.array([], pa.int64() if kind == "id" else pa.float64()))
    connection.register("no_exposures", exposures)
    connection.register("no_actions", ACTIONS.empty_table())
    return connection


def load_attributes(
    connection: duckdb.DuckDBPyConnection, adapter: Adapter, work: Path, only: Container[str] | None = None
) -> dict[str, int]:
    """Make the tables attributes_<prefix>, with categories as ids; return counts for the report.

    An id stands there once, or, where rows say since when they are known, once for each such time, and `_until` says
    when the next follows. `only` names the prefixes to make, by default all.
    """
    dropped = {}
    for prefix, known in adapter.attributes.items():
        if only is not None and prefix not in only:
            continue
        path = work / f"attributes_{prefix}.parquet"
        reader = connection.sql(known.select).to_arrow_reader(BATCH)
        writer = None
        for batch in reader:
            table = _with_ids(pa.Table.from_batches([batch]), known)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer is None:
            writer = pq.ParquetWriter(path, _with_ids(reader.schema.empty_table(), known).schema)
        writer.close()
        every, key, timed = ", ".join(reader.schema.names), "id", "*"
        if known.since:
            key = f"id, {known.since}"
            timed = f"*, lead({known.since}, 1, {NEVER}) OVER (PARTITION BY id ORDER BY {known.since}) AS _until"
        connection.execute(
            f"CREATE OR REPLACE TABLE attributes_{prefix} AS SELECT {timed} FROM ("
            f"SELECT * FROM read_parquet('{path}', hive_partitioning = false) "
            f"WHERE id IS NOT NULL AND {known.since or 'id'} IS NOT NULL "
            f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {every}) = 1)"
        )
        kept = connection.execute(f"SELECT count(*) FROM attributes_{prefix}").fetchall()[0][0]
        rows = pq.read_metadata(path).num_rows
        dropped[f"{prefix}: rows without an id or of one that stands twice: dropped"] = rows - kept
    return dropped


def _with_ids(table: pa.Table, known: Attributes) -> pa.Table:
    """Return a table with an id for each category, a list of them for each list, and vectors of float32."""
    for name in known.ids:
        table = table.set_column(table.schema.get_field_index(name), name, string_ids(table[name].cast(pa.string())))
    for name in known.bags:
        lists = table[name].cast(pa.list_(pa.string())).combine_chunks()
        made = layout.lists(lists.offsets, string_ids(lists.values), pa.int64())  # a list that is null becomes empty
        table = table.set_column(table.schema.get_field_index(name), name, made)
    for name in known.vectors:
        made = table[name].cast(pa.list_(pa.float32()))
        table = table.set_column(table.schema.get_field_index(name), name, made)
    return table


def actions_from(adapter: Adapter, begin: str) -> str:
    """Return SQL for the actions; what users did before the first exposures' day is history of that day."""
    return (
        f"SELECT * REPLACE (CASE WHEN day < DATE '{begin}' THEN DATE '{begin}' ELSE day END AS day) "
        f"FROM ({adapter.actions})"
    )


def by_day(connection: duckdb.DuckDBPyConnection, adapter: Adapter, work: Path, begin: str, first: str) -> None:
    """Read every raw file once, and write the internal form to `work`/exposures and `work`/actions, a folder per day.

    Args:
        begin: the first day that there is.
        first: the first day to write.
    """
    exposures, actions = f"SELECT * FROM ({adapter.exposures})", actions_from(adapter, begin)
    for what, select in (("exposures", exposures), ("actions", actions)):
        connection.execute(
            f"COPY (SELECT * FROM ({select}) WHERE day >= DATE '{first}') TO '{work / what}' "
            "(FORMAT parquet, PARTITION_BY (day), COMPRESSION lz4)"
        )


def seed(connection: duckdb.DuckDBPyConnection, adapter: Adapter, work: Path, buckets: int) -> Path:
    """Write what the adapter knows from before the log as the state of a day before the first."""
    folder = work / "seed"
    for name, sequence in adapter.sequences.items():
        path = folder / "sequences" / name
        path.mkdir(parents=True, exist_ok=True)
        select = adapter.earlier.get(name)
        table = pa.schema([(column, pa.int64()) for column in (*ENTRY, "bits")]).empty_table()
        if select:
            prefix, about = adapter.topics.get(sequence.domain, (None, "NULL::BIGINT"))
            same = adapter.attributes[prefix].of("known", "item", "time") if prefix else ""
            joined = f"LEFT JOIN attributes_{prefix} known ON {same}" if prefix else ""
            table = connection.sql(
                f"SELECT user, time, item, author, {about} AS topic, bits FROM ({select}) {joined} "
                "ORDER BY user, time, item"
            ).to_arrow_table()
        bits = table["bits"].to_numpy()
        known = {f"known_{bit}": np.where(bits & bit, table["time"].to_numpy(), NEVER) for bit in BITS}
        made = pa.table({column: table[column].fill_null(NOBODY).cast(pa.int64()) for column in ENTRY})
        for title, times in (known if sequence.action else {}).items():
            made = made.append_column(title, pa.array(times))
        place = np.mod(table["user"].to_numpy(), buckets)
        for number in range(buckets):
            pq.write_table(made.filter(pa.array(place == number)), path / f"part-{number:05d}.parquet")
    return folder
