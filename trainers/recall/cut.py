"""A pre-rank's cut of scored candidates, and what survives it.

<out>/kept.parquet     the rows that go on to the ranker, in the order of the data
<out>/figures.json     of the cut, and of one by score alone
<out>/manifest.json    written last
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from livetrain.configs.errors import BadInput, nearest
from livetrain.trainers.data.read.columns import is_list
from livetrain.trainers.data.read.files import read_footer
from livetrain.trainers.export import prediction_files
from livetrain.trainers.export.prediction_files import Files
from livetrain.trainers.runtime import manifest

KEPT, FIGURES = "kept.parquet", "figures.json"
_ROW = "_row"


@dataclass(frozen=True)
class Rules:
    """How candidates are cut, by columns of the data.

    Args:
        group: the request.
        score: of the pre-rank; a row without one is not kept.
        keep: candidates per request.
        regular: above 0 where the user often visits it, such as her visits or gifts; None where nothing says so.
        regulars: places that regulars get, whatever their scores.
        kind: what lists are to be of several of, such as a category; None does not limit kinds.
        most: places that one kind gets at most, while others are there.
        against: the ranker's score.
        top: how many of the ranker's best are to survive.
        label: above 0 where the candidate was taken.
    """

    group: str
    score: str
    keep: int
    regular: str | None = None
    regulars: int = 0
    kind: str | None = None
    most: int = 0
    against: str | None = None
    top: int = 10
    label: str | None = None

    def columns(self) -> list[str]:
        """Return the columns that are asked."""
        named = (self.group, self.score, self.regular, self.kind, self.against, self.label)
        return list(dict.fromkeys(name for name in named if name is not None))

    def check(self) -> None:
        """Raise BadInput where the rules cannot be followed."""
        if self.keep < 1 or self.top < 1:
            raise BadInput(f"--keep, --top: {min(self.keep, self.top)} is less than 1; name how many stay")
        if (self.regular is None) != (self.regulars == 0):
            raise BadInput("--regular, --regulars: a column and a number of places go together; give both, or neither")
        if (self.kind is None) != (self.most == 0):
            raise BadInput("--kind, --most: a column and a number of places go together; give both, or neither")
        if not 0 <= self.regulars <= self.keep or self.most < 0:
            raise BadInput(
                f"--regulars, --most: of {self.keep} places {self.regulars} for regulars, and {self.most} for a kind "
                "cannot be; give numbers from 1 on, regulars up to --keep"
            )


def cut(data: str, out: Path, rules: Rules) -> dict[str, Any]:
    """Cut scored candidates, and measure the cut beside one by score alone.

    Memory: DuckDB's, which spills to a disk.

    Args:
        data: Parquet, a file or a folder, as `livetrain predict` writes it.
        out: a new folder.
        rules: how.

    Returns:
        Figures, see `_figures`, under `rules` and `score`, beside `requests`, `rows` and `kept`.

    Raises:
        BadInput: a column is missing or of another type, the rules cannot be followed, or the folder is not new.
    """
    rules.check()
    prediction_files.check_place(out, data)
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out}: is not empty; name a new folder with --out")
    files = prediction_files.find(data, "DATA")
    names = _check(files, rules)
    with duckdb.connect() as connection:
        connection.execute("SET preserve_insertion_order = true")
        connection.register("given", _numbered(files, names))
        connection.execute(f"CREATE TABLE rows AS SELECT * FROM given WHERE {_q(rules.group)} IS NOT NULL")
        connection.unregister("given")
        if not connection.execute("SELECT count(*) FROM rows").fetchone()[0]:  # type: ignore[index]
            raise BadInput(f"{data}: has no row with a '{rules.group}'; name other data, or another --group")
        connection.execute(f"CREATE TABLE cut AS {_query(rules)}")
        kept = ", ".join(f"rows.{_q(name)}" for name in names)
        out.mkdir(parents=True, exist_ok=True)
        target = str(out / KEPT).replace("'", "''")
        connection.execute(
            f"COPY (SELECT {kept} FROM rows JOIN cut USING ({_ROW}) WHERE cut.by_rules ORDER BY {_ROW}) "
            f"TO '{target}' (FORMAT parquet)"
        )
        found = _figures(connection, rules)
    (out / FIGURES).write_text(json.dumps(found, indent=2), encoding="utf-8")
    manifest.commit(out, {path.name: manifest.digest(path) for path in sorted(out.iterdir())}, rows=found["kept"])
    return found


def _check(files: Files, rules: Rules) -> list[str]:
    """Return the columns of all files, once each has what is asked, in one form."""
    names: list[str] = []
    numbers = (rules.score, rules.regular, rules.against, rules.label)
    for path in files.paths:
        schema, name = read_footer(files.filesystem, path)[1], files.named(path)
        names = names or list(schema.names)
        if schema.names != names:
            raise BadInput(f"{name}: has other columns than {files.named(files.paths[0])}; cut files of one form")
        if len({column.lower() for column in names}) < len(names):
            raise BadInput(f"{name}: has columns that differ in capitals alone, which SQL takes for one; rename one")
        if _ROW in names:
            raise BadInput(f"{name}: has a column '{_ROW}', which is the cut's own; name it otherwise")
        for column in rules.columns():
            if column not in names:
                raise BadInput(f"{name}: has no column '{column}'{nearest(column, names)}; name one that is there")
            kind = schema.field(column).type
            number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
            if is_list(kind) or (column in numbers and not number):
                raise BadInput(f"{name}: column '{column}' holds {kind}, and a number is asked of it; name another one")
    return names


def _numbered(files: Files, names: list[str]) -> pa.RecordBatchReader:
    """Return all rows with their places."""
    schema = read_footer(files.filesystem, files.paths[0])[1].append(pa.field(_ROW, pa.int64()))

    def batches() -> Iterator[pa.RecordBatch]:
        done = 0
        for path in files.paths:
            for table in files.batches(path, names):
                places = pa.array(range(done, done + len(table)), pa.int64())
                yield from table.append_column(_ROW, places).cast(schema).to_batches()
                done += len(table)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _query(rules: Rules) -> str:
    """Return the SQL of each row's fate: whether the rules keep it, and whether its score alone would.

    The same choice as `modules.serving.cut.Cut` makes.
    """
    group, score = _q(rules.group), f"CAST({_q(rules.score)} AS DOUBLE)"

    def known(name: str) -> str:  # NaN, which would stand above every number
        return f"nullif(CAST({_q(name)} AS DOUBLE), 'nan'::DOUBLE)"

    regular = f"coalesce({known(rules.regular)} > 0, false)" if rules.regular else "false"
    kind = _q(rules.kind) if rules.kind else "NULL"
    against = known(rules.against) if rules.against else "NULL"
    label = f"coalesce({known(rules.label)} > 0, false)" if rules.label else "false"
    over = f"kind IS NOT NULL AND nth > {rules.most}" if rules.most else "false"
    best = f"there DESC, score DESC, {_ROW}"
    return f"""
        WITH scored AS (
            SELECT {_ROW}, {group} AS request, {score} AS score, {regular} AS regular, {kind} AS kind,
                {against} AS against, {label} AS taken, {score} IS NOT NULL AND NOT isnan({score}) AS there FROM rows
        ), placed AS (
            SELECT *, row_number() OVER (PARTITION BY request ORDER BY {best}) AS place,
                row_number() OVER (PARTITION BY request, regular ORDER BY {best}) AS regular_place,
                row_number() OVER (PARTITION BY request ORDER BY against DESC NULLS LAST, {_ROW}) AS ranker_place,
                there AND against IS NOT NULL AS compared
            FROM scored
        ), secured AS (
            SELECT *, there AND regular AND regular_place <= {rules.regulars} AS secured FROM placed
        ), counted AS (
            SELECT *, row_number() OVER (PARTITION BY request, kind ORDER BY secured DESC, {best}) AS nth FROM secured
        ), turns AS (
            SELECT *, CASE WHEN NOT there THEN 3 WHEN secured THEN 0 WHEN {over} THEN 2 ELSE 1 END AS turn FROM counted
        )
        SELECT {_ROW}, request, score, regular, kind, against, taken, ranker_place, compared,
            there AND place <= {rules.keep} AS by_score,
            there AND row_number() OVER (PARTITION BY request ORDER BY turn, place) <= {rules.keep} AS by_rules
        FROM turns"""


def _figures(connection: duckdb.DuckDBPyConnection, rules: Rules) -> dict[str, Any]:
    """Return what survives each cut.

    Of `rules` and `score`: `ranker_top`, the mean share per request of the ranker's `top` best rows that are kept;
    `ranker_best`, how often its very best is; `taken`, the share of all taken rows; `regulars`, of all regular rows;
    `kinds`, how many kinds a kept list has in the mean. `agreement` is the mean over requests of Spearman's rank
    correlation of both scores. What no column tells is left out.
    """

    def one(query: str) -> Any:
        return (connection.execute(query).fetchone() or (None,))[0]

    def of(kept: str) -> dict[str, Any]:
        share = f"avg(CAST({kept} AS INT))"
        best = f"against IS NOT NULL AND ranker_place <= {rules.top}"
        many = f"SELECT count(DISTINCT kind) AS many FROM cut WHERE {kept} GROUP BY request"
        asked = {
            "ranker_top": f"SELECT avg(part) FROM (SELECT {share} AS part FROM cut WHERE {best} GROUP BY request)",
            "ranker_best": f"SELECT {share} FROM cut WHERE against IS NOT NULL AND ranker_place = 1",
            "taken": f"SELECT {share} FROM cut WHERE taken",
            "regulars": f"SELECT {share} FROM cut WHERE regular",
            "kinds": f"SELECT avg(many) FROM ({many})",
        }
        told = {"ranker_top": rules.against, "ranker_best": rules.against, "taken": rules.label}
        told |= {"regulars": rules.regular, "kinds": rules.kind}
        return {name: one(query) for name, query in asked.items() if told[name]}

    found = {
        "requests": one("SELECT count(DISTINCT request) FROM cut"),
        "rows": one("SELECT count(*) FROM cut"),
        "kept": one("SELECT count(*) FROM cut WHERE by_rules"),
        "rules": of("by_rules"),
        "score": of("by_score"),
    }
    if rules.against:
        found["agreement"] = one(
            "SELECT avg(r) FROM (SELECT corr(own, rankers) AS r FROM (SELECT request, "
            f"{_rank('score')} AS own, {_rank('against')} AS rankers FROM cut WHERE compared) GROUP BY request) "
            "WHERE NOT isnan(r)"
        )
    return found


def _rank(column: str) -> str:
    """Return the SQL of a row's rank within its request, from 1 on; equal ones share the mean of theirs."""
    below = f"rank() OVER (PARTITION BY request ORDER BY {column})"
    return f"{below} + (count(*) OVER (PARTITION BY request, {column}) - 1) / 2.0"


def _q(name: str | None) -> str:
    """Return a column's name as SQL writes it."""
    assert name is not None
    quoted = name.replace('"', '""')
    return f'"{quoted}"'
