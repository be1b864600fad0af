"""Prepared data with a row per sample become data with a row per request: what its rows share once, the rest in lists.

A request is what the rows of a user have in common that a server scores together: rows of one file that are equal in
the columns `by`, as a request's number, or a user and a time. What is the user's must be equal in all of them as well,
and a row in which it is not begins a request of its own; so does the row after the `most`-th.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from livetrain.configs.errors import BadInput, nearest
from livetrain.trainers.data.checks.dataset import MILLISECONDS
from livetrain.trainers.data.checks.schema import quoted
from livetrain.trainers.data.read.columns import is_list
from livetrain.trainers.data.read.files import find_files, short
from livetrain.trainers.data.write import layout

MEMORY = "2GB"  # of DuckDB; what does not fit goes to a temporary folder beside the data
_SAMPLE = 1 << 18  # rows by which columns are told apart
_PIECE = 1 << 13  # requests in memory at a time
_ROW, _CUT = "file_row_number", "_request_part"  # columns of a query: DuckDB's own, and ours


@dataclass(frozen=True)
class Rule:
    """What makes a request.

    Args:
        by: columns that are equal in a request's rows; with `within`, the user's alone.
        user: columns that are stored once per request, `by` among them.
        most: candidates of a request.
        within: a request's rows lie in the same so many seconds of the clock, by `time`; None where `by` says all.
        time: likewise: seconds or milliseconds since 1970.
    """

    by: tuple[str, ...]
    user: tuple[str, ...]
    most: int
    within: int | None = None
    time: str | None = None


def convert(
    flat: Path,
    out: Path,
    most: int,
    by: list[str] | None = None,
    within: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write the requests of prepared data; days that are there already stay as they are.

    Args:
        flat: a folder that `livetrain data` has written, or one like it: train/, valid/, test/, or date=YYYY-MM-DD/.
        out: a folder for the requests: new, or one to which days are added.
        most: candidates of a request; of more the next ones are another request.
        by: columns that tell requests apart; by default the user and the time of dataset.json's roles.
        within: a request is what a user's rows in the same so many seconds of the clock are; their time and lists are
            then those of the first one, as a server knows no more when it is asked.
        progress: told what is being done.

    Returns:
        dataset.json's content.

    Raises:
        BadInput: there are no such data, columns or roles, or `out` holds something else.
    """
    known = layout.finished(flat)
    if known is None:
        raise BadInput(f"{flat}: holds no finished data ({layout.MANIFEST} is missing); prepare it first")
    parts = sorted(path for path in flat.iterdir() if path.is_dir() and _is_part(path.name))
    if not parts:
        raise BadInput(f"{flat}: neither train/ nor date=YYYY-MM-DD/ is there; name prepared data")
    before = layout.finished(out)
    if before is None:
        layout.begin(out, clear=False)
        rule = _rule(flat, known, parts, most, by, within)
    else:
        rule = _same(before, out, most, by, within)
    counts = dict((before or {}).get("requests", {}).get("parts", {}))
    new = [part for part in parts if part.name not in counts]
    for path in (path for part in new for path in _files(part)):
        _check(path, rule)
    for part in new:
        progress(f"requests of {part.name}")
        counts[part.name] = _write(part, out / part.name, rule)
    told = {**asdict(rule), "candidates": _candidates(parts[0], rule), "parts": counts}
    content = {key: value for key, value in known.items() if key not in ("splits", "days", "report")}
    return layout.finish(out, {**content, "requests": told})


def _is_part(name: str) -> bool:
    return name in layout.SPLITS or name.startswith("date=")


def _files(part: Path) -> list[str]:
    return [file.path for file in find_files(fs.LocalFileSystem(), str(part))]


def _rule(
    flat: Path, known: dict[str, Any], parts: list[Path], most: int, by: list[str] | None, within: int | None
) -> Rule:
    """Settle what makes a request, by rows of the first part, the last and one between."""
    files = [path for part in {parts[0], parts[len(parts) // 2], parts[-1]} for path in _files(part)]
    schema, roles = pq.read_schema(files[0]), known.get("roles") or {}
    told = [name for name in (roles.get("group"), roles.get("time")) if name]
    if (by is None or within is not None) and len(told) < 2:
        raise BadInput(
            f"{flat}: {layout.MANIFEST} names no user and time (roles.group, roles.time), by whose rows requests could "
            "be told; name the columns with --by, as --by request_id"
        )
    if by is not None and within is not None:
        raise BadInput("--within: is of the user and time that dataset.json names; leave --by or --within out")
    keys = by or told
    for name in keys:
        if name not in schema.names:
            raise BadInput(f"--by: {files[0]} has no column '{name}'{nearest(name, schema.names)}; correct the name")
    apart, item, lists = {*roles.get("labels", [])}, roles.get("item"), list[str]()
    if within is not None:
        lists = [n for n in roles.get("sequences", []) if n in schema.names and is_list(schema.field(n).type)]
        of_item = _constant(files, [item], lists) if item else []  # as tags; the others are what the user has seen
        lists = [name for name in lists if name not in of_item]
    by_user = keys if within is None else keys[:1]
    asked = [name for name in schema.names if name not in {*apart, item, *keys, *lists}]
    user = {*keys, *lists, *_constant(files, by_user, asked)}
    return Rule(
        tuple(by_user), tuple(n for n in schema.names if n in user), most, within, None if within is None else keys[1]
    )


def _check(path: str, rule: Rule) -> None:
    """Raise BadInput where requests of a file's rows would not be what the rule says."""
    schema = pq.read_schema(path)
    alike: dict[str, str] = {_ROW: "the number of a row", _CUT: "the number of a request's part"}
    for name in schema.names:
        if (other := alike.get(name.casefold())) is not None:
            raise BadInput(f"{path}: column '{name}' and {other} cannot be told apart in SQL; rename the column")
        alike[name.casefold()] = f"column '{name}'"
    keys = [*rule.by, *([] if rule.time is None else [rule.time])]
    for name in keys:
        if name not in schema.names:
            raise BadInput(
                f"{path}: there is no column '{name}', by which requests are told; write it as in other files"
            )
    if rule.time is not None and not pa.types.is_integer(kind := schema.field(rule.time).type):
        raise BadInput(
            f"--within: column '{rule.time}' of {path} is {kind}, but the clock is read in whole seconds or "
            "milliseconds since 1970; store int64"
        )
    nulls = ", ".join(f"count(*) - count({quoted(name)})" for name in keys)
    with duckdb.connect() as db:
        found = db.execute(
            f"SELECT {nulls} FROM read_parquet([{_texts([path])}], hive_partitioning = false)"
        ).fetchone()
    for name, count in zip(keys, found or (), strict=True):
        if count:
            raise BadInput(
                f"{path}: column '{name}', by which requests are told, is null in {count:,} rows; fill it, or name "
                "other columns with --by"
            )


def _constant(files: list[str], keys: list[str], asked: list[str]) -> list[str]:
    """Return the columns that have one value in all rows of one key, measured on some of the rows."""
    if not asked:
        return []
    limit = -(-_SAMPLE // len(files))
    with duckdb.connect() as db:
        differs = ", ".join(f"bool_or(d{n})" for n in range(len(asked)))
        each = ", ".join(f"count(DISTINCT hash({quoted(name)})) > 1 AS d{n}" for n, name in enumerate(asked))
        key = ", ".join(["_file", *map(quoted, keys)])  # a request's rows are in one file
        some = (
            f"(SELECT *, {n} AS _file FROM read_parquet({_texts([file])}, hive_partitioning = false) LIMIT {limit})"
            for n, file in enumerate(files)
        )
        rows = " UNION ALL BY NAME ".join(some)
        found = db.execute(f"SELECT {differs} FROM (SELECT {each} FROM ({rows}) GROUP BY {key})").fetchone()
    assert found is not None
    return [name for name, other in zip(asked, found, strict=True) if not other]


def _same(before: dict[str, Any], out: Path, most: int, by: list[str] | None, within: int | None) -> Rule:
    """Return the rule of data that days are added to; refuse another one."""
    told = before.get("requests")
    if told is None:
        raise BadInput(f"{out}: holds other data; name a new folder")
    rule = Rule(tuple(told["by"]), tuple(told["user"]), told["most"], told["within"], told["time"])
    if (most, within) != (rule.most, rule.within) or (by is not None and tuple(by) != rule.by):
        raise BadInput(f"{out}: its requests were made by other options; name a new folder, or keep to them")
    return rule


def _candidates(part: Path, rule: Rule) -> list[str]:
    names = pq.read_schema(_files(part)[0]).names
    return [name for name in names if name not in rule.user]


def _write(part: Path, out: Path, rule: Rule) -> dict[str, int]:
    """Write one part's requests, file by file; return how many there are, and their rows."""
    hidden = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    counts = {"requests": 0, "rows": 0}
    for path in map(Path, _files(part)):
        counts["rows"] += pq.read_metadata(path).num_rows
        counts["requests"] += _convert_file(path, hidden / path.name, rule, hidden / ".spill")
    shutil.rmtree(hidden / ".spill", ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    hidden.rename(out)
    return counts


def _convert_file(path: Path, out: Path, rule: Rule, spill: Path) -> int:
    """Write the requests of one file, in the order of their first rows; return how many there are."""
    stored = pq.read_schema(path)
    fields = [f if f.name in rule.user else pa.field(f.name, pa.list_(pa.field("element", f.type))) for f in stored]
    schema = pa.schema(fields)
    with duckdb.connect() as db:
        db.execute(f"SET memory_limit = '{MEMORY}'; SET temp_directory = {_texts([str(spill)])}; SET threads = 1")
        try:
            batches = db.sql(_query(path, stored, rule)).to_arrow_reader(_PIECE)
            pieces = (pa.Table.from_batches([batch]).cast(schema) for batch in batches)
            return layout.write_part(out, schema, pieces)
        except duckdb.Error as error:
            raise BadInput(f"{path}: cannot be made requests of ({short(error)}); write the file again") from error


def _query(path: Path, stored: pa.Schema, rule: Rule) -> str:
    """Return the SELECT of a file's requests."""
    rows = f"SELECT * FROM read_parquet([{_texts([str(path)])}], hive_partitioning = false, file_row_number = true)"
    by, shared = [quoted(name) for name in rule.by], [name for name in rule.user if name not in rule.by]
    key = [*by]
    if rule.within is not None:
        time, lists = quoted(rule.time or ""), {field.name for field in stored if is_list(field.type)}
        key.append(f"{time} // (CASE WHEN {time} > {MILLISECONDS} THEN 1000 ELSE 1 END * {rule.within})")
        shared = [name for name in shared if name != rule.time and name not in lists]
    if shared:
        key.append(f"hash({', '.join(map(quoted, shared))})")
    place = f"row_number() OVER (PARTITION BY {', '.join(key)} ORDER BY {_ROW})"
    rows = f"SELECT *, ({place} - 1) // {rule.most} AS {_CUT} FROM ({rows})"
    columns = [
        f"arg_min_null({quoted(n)}, {_ROW}) AS {quoted(n)}"
        if n in rule.user
        else f"list({quoted(n)} ORDER BY {_ROW}) AS {quoted(n)}"
        for n in stored.names
    ]
    return f"SELECT {', '.join(columns)} FROM ({rows}) GROUP BY {', '.join(key)}, {_CUT} ORDER BY min({_ROW})"


def _texts(texts: list[str]) -> str:
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)
