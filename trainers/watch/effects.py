"""What came of a minute's exposures: how often, for how long and as well foretold, of all and by channel or version.

Of each minute a table is kept, a row per slice and measure: `start` (UTC), `by` and `value` (the slice; both empty for
all rows), `measure`, `count` (what the mean divides by), `sum`, `mean`, `scored` (rows with a score and a label),
`score_sum` and `label_sum` over those, and `pcoc` (score_sum / label_sum). Means of longer times are sums over sums.

Every expression sees one row, so that a minute's table is a function of its rows alone.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from livetrain.configs.errors import BadInput, nearest, short
from livetrain.trainers.data.expression import alone, database, named

ROWS, STREAM = "rows", "stream."  # the measure that counts exposures, and what begins those of the stream itself
MOST = 50  # values of a slice that a minute tells apart; what is rarer is OTHERS
OTHERS = "(others)"
SCHEMA = pa.schema(
    [
        ("start", pa.timestamp("ms", "UTC")),  # Parquet has no s
        *((name, pa.string()) for name in ("by", "value", "measure")),
        *((name, pa.float64()) for name in ("count", "sum", "mean")),
        ("scored", pa.int64()),
        *((name, pa.float64()) for name in ("score_sum", "label_sum", "pcoc")),
    ]
)


@dataclass(frozen=True)
class Measures:
    """What is measured of a stream's samples; names are columns or SQL expressions on one row.

    Attributes:
        labels: name -> label; null where it is not known (yet).
        per: name -> two of `labels`: so many of the first come of one of the second, as gifts of clicks.
        scores: of `labels` -> the probability, or number, that was foretold when the row was shown.
        by: name -> what slices the rows, as the recall channel or the model's version.
    """

    labels: Mapping[str, str]
    per: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    scores: Mapping[str, str] = field(default_factory=dict)
    by: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """Return it as JSON keeps it."""
        return {**asdict(self), "per": {name: list(pair) for name, pair in self.per.items()}}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Measures":
        """Return what `content` was made of."""
        per = {name: (up, down) for name, (up, down) in content["per"].items()}
        return cls(content["labels"], per, content["scores"], content["by"])

    def columns(self) -> list[str]:
        """Return the samples' columns that are read."""
        expressions = [*self.labels.values(), *self.scores.values(), *self.by.values()]
        return sorted({parts[0] for text in expressions for parts in named("", text)})

    def check(self, columns: Sequence[str]) -> None:
        """Raise BadInput where something is named that the samples do not have."""
        for option, parts in (("--label", self.labels), ("--score", self.scores), ("--by", self.by)):
            for name, text in parts.items():
                for parts_of in named(f"{option} {name}", text):
                    if len(parts_of) > 1 or parts_of[0] not in columns:
                        raise BadInput(
                            f"{option} {name}: the stream has no column '{'.'.join(parts_of)}'"
                            f"{nearest(parts_of[0], columns)}"
                        )
        for name, pair in self.per.items():
            for label in pair:
                if label not in self.labels:
                    raise BadInput(f"--per {name}: '{label}' is none of --label{nearest(label, self.labels)}; add it")
        for name in self.scores:
            if name not in self.labels:
                raise BadInput(f"--score {name}: that is none of --label{nearest(name, self.labels)}; add it")


def parsed(option: str, given: Sequence[str]) -> dict[str, str]:
    """Return what a person wrote as NAME or NAME=EXPRESSION, several times.

    Raises:
        BadInput: a name is there twice, or empty.

    Example:
        >>> parsed("--by", ["channel", "young=room_age < 600"])
        {'channel': '"channel"', 'young': 'room_age < 600'}
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, expression = text.partition("=")
        name = name.strip()
        if not name or name in found or (equals and not expression.strip()):
            raise BadInput(f"{option} {text}: write NAME or NAME=EXPRESSION, and each name once")
        quoted = name.replace('"', '""')
        found[name] = expression.strip() if equals else f'"{quoted}"'
    return found


def ratios(given: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return what a person wrote as NAME=A/B, several times.

    Raises:
        BadInput: it is something else.

    Example:
        >>> ratios(["conversion=gift/click"])
        {'conversion': ('gift', 'click')}
    """
    found = {}
    for text in given:
        name, _, pair = (part.strip() for part in text.partition("="))
        up, _, down = (part.strip() for part in pair.partition("/"))
        if not (name and up and down) or name in found:
            raise BadInput(f"--per {text}: write NAME=A/B with two labels, as conversion=gift/click, each name once")
        found[name] = (up, down)
    return found


def effects(samples: pa.Table | None, start: int, measures: Measures, counts: Mapping[str, int]) -> pa.Table:
    """Return the table of a minute.

    Args:
        samples: the minute's; None where it has none.
        start: s since 1970 at which it begins.
        measures: what is measured.
        counts: words -> how many, as the stream says of the minute; each is a measure `stream.<words>`.

    Raises:
        BadInput: an expression cannot be computed.
    """
    rows = _measured("", "", itertools.repeat(0), measures) if samples is None else _rows(samples, measures)
    rows += [_row("", "", f"{STREAM}{words}", rows[0]["count"], count) for words, count in sorted(counts.items())]
    moment = pa.scalar(1000 * start, SCHEMA.field("start").type)
    names = SCHEMA.names[1:]
    columns = [pa.array([row[name] for row in rows], SCHEMA.field(name).type) for name in names]
    return pa.table([pa.array([moment] * len(rows), moment.type), *columns], schema=SCHEMA)


def _rows(samples: pa.Table, measures: Measures) -> list[dict[str, Any]]:
    connection = database().cursor()
    connection.register("samples", samples)
    try:
        found = connection.execute(_query(measures)).fetchall()
    except duckdb.Error as error:
        raise BadInput(f"--label, --score or --by: they cannot be computed ({short(error)}); correct them") from error
    finally:
        connection.unregister("samples")
    slices: dict[str, list[tuple[str, Sequence[Any]]]] = {by: [] for by in ("", *measures.by)}
    for row in found:
        figures = row[len(measures.by) :]
        of = ((by, value) for by, value in zip(measures.by, row, strict=False) if value is not None)
        by, value = next(of, ("", ""))  # a row of one way to slice has no values of the others
        slices[by].append((value, figures))
    return [
        row
        for by, parts in slices.items()
        for value, figures in _told_apart(parts)
        for row in _measured(by, value, iter(figures), measures)
    ]


def _query(measures: Measures) -> str:
    """Return what counts a minute in all ways at once: to plan a query takes longer than to go through the rows."""
    label = {name: f"CAST({alone(text)} AS DOUBLE)" for name, text in measures.labels.items()}
    score = {name: f"CAST({alone(text)} AS DOUBLE)" for name, text in measures.scores.items()}
    asked = ["count(*)"]
    for name, text in label.items():
        asked += [f"count({text})", f"sum({text})"]
        if name in score:
            both = f"FILTER ({text} IS NOT NULL AND {score[name]} IS NOT NULL)"
            asked += [f"count(*) {both}", f"sum({score[name]}) {both}", f"sum({text}) {both}"]
    for up, down in measures.per.values():
        both = f"FILTER ({label[up]} IS NOT NULL AND {label[down]} IS NOT NULL)"
        asked += [f"sum({label[down]}) {both}", f"sum({label[up]}) {both}"]
    slices = {f'"slice {k} "': text for k, text in enumerate(measures.by.values())}
    cut = ["*", *(f"coalesce(CAST({alone(text)} AS VARCHAR), '(none)') AS {name}" for name, text in slices.items())]
    return (
        f"SELECT {', '.join([*slices, *asked])} FROM (SELECT {', '.join(cut)} FROM samples) "
        f"GROUP BY GROUPING SETS ({', '.join(['()', *(f'({name})' for name in slices)])})"
    )


def _told_apart(parts: Sequence[tuple[str, Sequence[Any]]]) -> list[tuple[str, Sequence[Any]]]:
    """Return a slice's values with their figures, of which the first is a count: the MOST largest, the others added."""
    parts = sorted(parts, key=lambda part: (-part[1][0], part[0]))
    kept = dict(parts[:MOST])
    for _, figures in parts[MOST:]:
        both = zip(kept.get(OTHERS, [None] * len(figures)), figures, strict=True)
        kept[OTHERS] = [b if a is None else a if b is None else a + b for a, b in both]
    return sorted(kept.items())


def _measured(by: str, value: str, figures: Iterator[Any], measures: Measures) -> list[dict[str, Any]]:
    count = float(next(figures))
    rows = [_row(by, value, ROWS, count, count)]
    for name in measures.labels:
        of, total = float(next(figures) or 0), next(figures)
        scored = (next(figures), next(figures), next(figures)) if name in measures.scores else (0, None, None)
        rows.append(_row(by, value, name, of, total, *scored))
    for name in measures.per:
        rows.append(_row(by, value, name, float(next(figures) or 0), next(figures)))
    return rows


def _row(
    by: str, value: str, measure: str, count: float, total: float | None, scored: int | None = 0,
    score_sum: float | None = None, label_sum: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        **{"by": by, "value": value, "measure": measure, "count": count, "sum": total or 0.0},
        "mean": (total or 0.0) / count if count else None,
        **{"scored": scored or 0, "score_sum": score_sum or 0.0, "label_sum": label_sum or 0.0},
        "pcoc": score_sum / label_sum if score_sum is not None and label_sum else None,
    }
