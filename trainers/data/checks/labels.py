"""Labels by day: how often positive, how often not known yet, and on which days otherwise than before. Exact.

Thresholds. A day drifts where its odds (of an amount: its mean) are DRIFT times those of the rows to learn from, or one
DRIFT-th, and chance does not explain it (ERRORS standard errors). One day in two hundred of a steady label would pass
three errors, none passes five; and odds that move by less than half are what weekdays do. A day with no positive (or no
negative) where EXPECTED were due is a broken join: chance leaves one in e^50.
"""

import math
from dataclasses import dataclass

import pyarrow as pa

from livetrain.trainers.data.checks.dataset import Dataset
from livetrain.trainers.data.checks.findings import Finding, Verdict, listed, share
from livetrain.trainers.data.checks.schema import quoted

DRIFT, ERRORS, EXPECTED, UNKNOWN = 1.5, 5.0, 50, 0.01


@dataclass(frozen=True)
class Day:
    """A label on one day: rows, rows where it is known, and the mean and variance of the known ones."""

    day: int
    part: int
    rows: int
    known: int
    mean: float
    variance: float


@dataclass(frozen=True)
class Label:
    """A label on every day, in time order. `binary`: all its values are 0 or 1."""

    column: str
    binary: bool
    strange: int  # values other than 0 and 1 in a column whose type promises those
    days: list[Day]


def measure(dataset: Dataset) -> list[Label]:
    """Return every label by day."""
    found = []
    for name in dataset.roles.labels:
        number = f"CAST({quoted(name)} AS DOUBLE)"
        good = f"FILTER (isfinite({number}))"
        rows = dataset.query(
            f"""SELECT _day, _part, count(*), count({number}) {good}, avg({number}) {good}, var_pop({number}) {good},
                count(*) FILTER ({number} NOT IN (0, 1)) FROM rows WHERE _day IS NOT NULL
                GROUP BY _day, _part ORDER BY _part, _day"""
        )
        strange = sum(row[6] for row in rows)
        promised = not pa.types.is_floating(dataset.schema.field(name).type)
        days = [
            Day(day, part, count, known, mean or 0.0, variance or 0.0)
            for day, part, count, known, mean, variance, _ in rows
        ]
        found.append(Label(name, promised or not strange, strange if promised else 0, days))
    return found


def check(dataset: Dataset, labels: list[Label]) -> list[Finding]:
    """Return a finding on the rate of every label, and one on what is unknown of each that has unknown rows."""
    if not labels:
        return [
            Finding("label rates", "labels", Verdict.look, "no label column; name them in dataset.json under roles")
        ]
    findings = [_rate(dataset, label) for label in labels] + [_unknown(dataset, label) for label in labels]
    return [finding for finding in findings if finding is not None]


def drifted(dataset: Dataset, label: Label) -> list[Day]:
    """Return the days whose rate is off, by the thresholds above."""
    base = _pooled([day for day in label.days if day.part < dataset.learned])
    return [day for day in label.days if base is not None and _off(day, base, label.binary)]


def _rate(dataset: Dataset, label: Label) -> Finding:
    def finding(verdict: Verdict, text: str) -> Finding:
        return Finding("label rates", label.column, verdict, text)

    if label.strange:
        return finding(
            Verdict.wrong, f"{label.strange:,} rows hold something other than 0 and 1; a label is 0, 1 or null"
        )
    base = _pooled([day for day in label.days if day.part < dataset.learned])
    if base is None:
        return finding(Verdict.wrong, "null in every row to learn from: there is nothing to learn")
    if base.variance == 0:
        return finding(Verdict.wrong, f"{base.mean:g} in every row to learn from: there is nothing to learn")
    word, shown = ("rate", _rate_text) if label.binary else ("mean", _amount_text)
    seen = [day for day in label.days if day.known]
    large = [day for day in seen if day.known >= EXPECTED] or seen
    least, most = (pick(large, key=lambda day: day.mean) for pick in (min, max))
    text = f"{word} {shown(base.mean)}, by day {shown(least.mean)} to {shown(most.mean)}"
    broken = [day for day in seen if label.binary and day.mean in (0, 1) and day.known * _rarer(base, day) >= EXPECTED]
    if broken:
        names = listed([dataset.day(day.day) for day in broken])
        text = f"always {broken[0].mean:g} on {names}, {shown(base.mean)} in the rows to learn from: a join failed"
        return finding(Verdict.wrong, text)
    off = drifted(dataset, label)
    if off:
        worst = max(off, key=lambda day: abs(math.log(_ratio(day, base, label.binary))))
        where = f"{dataset.day(worst.day)} ({shown(worst.mean)} of {worst.known:,} rows)"
        return finding(Verdict.look, f"{text}; drifts on {len(off)} of {len(seen)} days, most on {where}")
    return finding(Verdict.ok, text)


def _unknown(dataset: Dataset, label: Label) -> Finding | None:
    """Say where a label is not known yet: right for delayed labels, and such rows teach nothing of this label."""
    rows, known = sum(day.rows for day in label.days), sum(day.known for day in label.days)
    if not known or rows == known:
        return None
    worst = max(label.days, key=lambda day: 1 - day.known / day.rows)
    text = f"{share(1 - known / rows)} of rows; most on {dataset.day(worst.day)}, {share(1 - worst.known / worst.rows)}"
    verdict = Verdict.ok if 1 - worst.known / worst.rows <= UNKNOWN else Verdict.look
    return Finding("unknown labels", label.column, verdict, text)


def _pooled(days: list[Day]) -> Day | None:
    known = sum(day.known for day in days)
    if not known:
        return None
    mean = sum(day.known * day.mean for day in days) / known
    variance = sum(day.known * (day.variance + (day.mean - mean) ** 2) for day in days) / known
    return Day(-1, -1, sum(day.rows for day in days), known, mean, variance)


def _rarer(base: Day, day: Day) -> float:
    """Return the usual share of the class that a constant day lacks."""
    return base.mean if day.mean == 0 else 1 - base.mean


def _off(day: Day, base: Day, binary: bool) -> bool:
    if not day.known or not base.variance:
        return False
    errors = abs(day.mean - base.mean) / math.sqrt(base.variance / day.known)
    return errors > ERRORS and abs(math.log(_ratio(day, base, binary))) > math.log(DRIFT)


def _ratio(day: Day, base: Day, binary: bool) -> float:
    """Return the odds (or the mean) of a day over the usual; a day of one class counts half a row of the other."""
    half = 0.5 / day.known
    if binary:
        mean = min(max(day.mean, half), 1 - half)
        usual = min(max(base.mean, 1e-12), 1 - 1e-12)
        return mean / (1 - mean) * (1 - usual) / usual
    return max(day.mean / base.mean, 1e-12) if base.mean > 0 else 1.0


def _rate_text(value: float) -> str:
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def _amount_text(value: float) -> str:
    return f"{value:,.3g}"
