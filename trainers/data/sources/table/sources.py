"""A spec's files: what they were when samples were made of them, and as the tables that expressions can name."""

from pathlib import Path

import duckdb
import pyarrow as pa

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.spec import Loaded, Spec
from livetrain.trainers.data.sources.table import files, select
from livetrain.trainers.data.sources.table.files import quoted, text
from livetrain.trainers.runtime import reach


def stamps(loaded: Loaded[Spec]) -> dict[str, list[int | None]]:
    """Return the size and the time of every file, by which a folder knows what it was prepared from."""
    described: dict[str, list[int | None]] = {}
    for place, part in _tables(loaded):
        try:
            paths = files.found(part, loaded.folder)
        except BadInput as error:
            raise BadInput(f"{loaded.where(place + '.files')}: {error}") from error
        for path in paths:
            try:
                system, inner = reach.from_uri(path)
                about = system.get_file_info(inner)
            except (OSError, pa.ArrowException) as error:
                raise BadInput(f"{loaded.where(place + '.files')}: {path} cannot be reached ({error})") from error
            described[path] = [about.size, about.mtime_ns]
    return described


def _tables(loaded: Loaded[Spec]) -> list[tuple[str, files.Files]]:
    return [("log", loaded.spec.log), *((f"joins.{name}", join) for name, join in loaded.spec.joins.items())]


def scope_of(connection: duckdb.DuckDBPyConnection, loaded: Loaded[Spec], work: Path) -> select.Scope:
    """Make the view `log` and the joined tables, and return what expressions can name."""
    spec = loaded.spec
    select.add_functions(connection)
    connection.execute("SET preserve_insertion_order = true")  # rows are numbered as they lie in the files
    zone = spec.time.zone if spec.time else "UTC"
    try:
        connection.execute(f"SET TimeZone = {text(zone)}")
    except duckdb.Error:
        where = loaded.where("time.zone")
        raise BadInput(f"{where}: there is no time zone '{zone}'; write it as Europe/Paris") from None
    columns, repeated = {}, {}
    for place, part in _tables(loaded):
        name = place.removeprefix("joins.")
        try:
            columns[name] = files.open_files(connection, f"files of {name}", part, loaded.folder, work)
        except BadInput as error:
            key = ".where" if str(error).startswith("where: ") else ""
            raise BadInput(f"{loaded.where(place + key)}: {str(error).removeprefix('where: ')}") from error
        numbered = f"SELECT *, row_number() OVER () AS {select.ROW} FROM {quoted(f'files of {name}')}"
        if name == "log":
            connection.execute(f"CREATE VIEW log AS {numbered}")
            continue
        key = loaded.spec.joins[name].key
        if key not in columns[name]:
            where = loaded.where(f"{place}.key")
            raise BadInput(f"{where}: the files have no column '{key}'{nearest(key, columns[name])}")
        rows = '"livetrain rows"'
        connection.execute(
            f"CREATE TABLE {quoted(name)} AS SELECT *, id_text({columns[name][key]}) AS {select.KEY}, "
            f"count(*) OVER (PARTITION BY {select.KEY}) AS {rows} FROM ({numbered}) WHERE {select.KEY} IS NOT NULL "
            f"QUALIFY row_number() OVER (PARTITION BY {select.KEY} ORDER BY {select.ROW}) = 1"
        )
        counted = f"SELECT count(*) FILTER ({rows} > 1) FROM {quoted(name)}"
        repeated[name] = connection.execute(counted).fetchall()[0][0]
    return select.Scope(connection, loaded, columns, repeated)
