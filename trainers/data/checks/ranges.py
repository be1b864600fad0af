"""The values of every number column: nulls, what is not finite, the range; exact, but for the quantiles.

Thresholds. NULLS: half of the rows say nothing. SHIFT: a part whose share of nulls is 20 points from that of the parts
learned from has lost a join or gained a source. FAR: dense inputs are normalised with the training mean and deviation,
and a value 100 deviations away outweighs all other inputs of its row.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from livetrain.trainers.data.checks.dataset import Dataset
from livetrain.trainers.data.checks.findings import Finding, Verdict, listed, share
from livetrain.trainers.data.checks.schema import quoted

NULLS, SHIFT, FAR = 0.5, 0.2, 100.0
QUANTILES = (0.01, 0.5, 0.99)
_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Summary:
    """One column, over all rows; quantiles over the sample. A sequence's figures are those of its lengths.

    Args:
        nulls: share of null in each part that has rows.
        bad: rows that hold NaN, an infinite value, or what float32 cannot hold.
        least, most, mean, std: of the other values; None where there are none.
    """

    column: str
    rows: list[int]
    nulls: list[float]
    bad: int
    least: float | None
    most: float | None
    mean: float | None
    std: float | None
    quantiles: list[float]

    @property
    def null_share(self) -> float:
        return sum(n * share for n, share in zip(self.rows, self.nulls, strict=True)) / sum(self.rows)


def summarise(dataset: Dataset, sample: pa.Table) -> list[Summary]:
    """Return the summary of every number column, in the dataset's order; one pass over the files."""
    columns = [c.name for c in dataset.schema if is_number(c.type)]
    if not columns:
        return []
    parts = ", ".join(f for name in columns for f in _figures(name))
    rows = dataset.query(f"SELECT count(*), {parts} FROM rows GROUP BY _part ORDER BY _part")
    counts = [row[0] for row in rows]
    found = []
    for place, name in enumerate(columns):
        figures = [row[1 + 6 * place : 7 + 6 * place] for row in rows]
        nulls = [1 - figure[0] / count for figure, count in zip(figures, counts, strict=True)]
        least, most, mean, std = _pooled(figures)
        bad = sum(count for figure in figures for count in [figure[1]])
        found.append(Summary(name, counts, nulls, bad, least, most, mean, std, _quantiles(sample[name])))
    return found


def check(dataset: Dataset, summaries: list[Summary]) -> list[Finding]:
    """Return the findings: one for every column with something to say, one for all the others."""
    said: dict[tuple[Verdict, str], dict[str, _Odd]] = {}  # columns of one source often share what is odd in them
    for summary in summaries:
        for odd in _judged(dataset, summary):
            said.setdefault((odd.verdict, odd.kind), {})[summary.column] = odd
    findings = []
    for (verdict, _), columns in said.items():
        worst = max(columns, key=lambda name: columns[name].much)
        alike = len({odd.text for odd in columns.values()}) == 1
        text = columns[worst].text if alike else f"most of all {worst}: {columns[worst].text}"
        findings.append(Finding("ranges", listed([*columns], 3), verdict, text))
    fine = len(summaries) - len({name for columns in said.values() for name in columns})
    if fine:
        text = "finite, not mostly null, no part apart, nothing far out"
        findings.append(Finding("ranges", f"{fine} columns", Verdict.ok, text))
    return findings


@dataclass(frozen=True)
class _Odd:
    """Something odd in a column: of what kind, in words, and how much, to compare columns that are odd alike."""

    verdict: Verdict
    kind: str
    text: str
    much: float = 0.0


def _judged(dataset: Dataset, summary: Summary) -> list[_Odd]:
    name, said = summary.column, []
    names = [part.name for part in dataset.parts if part.rows]
    feature = name in dataset.roles.dense or name in dataset.roles.labels
    if summary.bad:
        verdict = Verdict.wrong if feature else Verdict.look
        text = f"{summary.bad:,} rows hold NaN, infinity or more than float32 can; store null where there is no number"
        said.append(_Odd(verdict, "bad", text, summary.bad))
    if summary.null_share == 1:
        said.append(_Odd(Verdict.look, "empty", "null in every row: it says nothing"))
    elif name not in dataset.roles.labels:  # for those `labels` speaks
        if summary.null_share > NULLS:
            text = f"null in {share(summary.null_share)} of rows"
            said.append(_Odd(Verdict.look, "nulls", text, summary.null_share))
        learned = _mean(summary, slice(dataset.learned))
        apart = [n for n, value in zip(names, summary.nulls, strict=True) if abs(value - learned) > SHIFT]
        if apart:
            worst = max(zip(names, summary.nulls, strict=True), key=lambda pair: abs(pair[1] - learned))
            text = f"null in {share(worst[1])} of {worst[0]}, in {share(learned)} of the rows to learn from"
            said.append(_Odd(Verdict.look, "apart", f"{text} ({listed(apart)})", abs(worst[1] - learned)))
    least, most, mean, std = summary.least, summary.most, summary.mean, summary.std
    if name not in dataset.roles.dense or least is None or most is None or mean is None or std is None:
        return said
    if least == most:
        said.append(_Odd(Verdict.look, f"always {least:g}", f"always {least:g}: it says nothing"))
    if std:
        far = max(most - mean, mean - least) / std
        if far > FAR:
            text = f"reaches {far:,.0f} deviations from its mean; a logarithm or a cap when preparing would help"
            said.append(_Odd(Verdict.look, "far", text, far))
    return said


def _mean(summary: Summary, chosen: slice) -> float:
    rows = summary.rows[chosen]
    return sum(n * x for n, x in zip(rows, summary.nulls[chosen], strict=True)) / max(sum(rows), 1)


def _figures(name: str) -> list[str]:
    """Return a part's six figures of a column: known, bad, least, most, mean, variance."""
    number = f"CAST({quoted(name)} AS DOUBLE)"
    # isfinite besides: a Parquet footer's maximum leaves out NaN, and DuckDB simplifies comparisons by it.
    good = f"isfinite({number}) AND abs({number}) <= {_FLOAT32!r}"
    figures = [f"{figure}({number}) FILTER ({good})" for figure in ("min", "max", "avg", "var_pop")]
    return [f"count({quoted(name)})", f"count(*) FILTER (NOT ({good}))", *figures]


def _pooled(figures: list[tuple]) -> tuple[float | None, float | None, float | None, float | None]:
    """Return least, most, mean and deviation over all parts (Chan, Golub and LeVeque 1979)."""
    good = [(known - bad, *rest) for known, bad, *rest in figures if known - bad]
    if not good:
        return None, None, None, None
    count, least, most, mean, variance = (np.array(x, float) for x in zip(*good, strict=True))
    middle = np.average(mean, weights=count)
    spread = np.average(variance + (mean - middle) ** 2, weights=count)
    return float(least.min()), float(most.max()), float(middle), math.sqrt(spread)


def _quantiles(column: pa.ChunkedArray) -> list[float]:
    values = column.drop_null().cast(pa.float64(), safe=False).to_numpy()
    values = values[np.isfinite(values)]
    return np.quantile(values, QUANTILES, method="lower").tolist() if len(values) else []


def is_number(kind: pa.DataType) -> bool:
    """Say whether a column of this type has a range."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
