"""Rows that stand twice, and rows out of time order. Exact."""

import numpy as np

from livetrain.trainers.data.checks.dataset import Dataset
from livetrain.trainers.data.checks.findings import Finding, Verdict, listed, share
from livetrain.trainers.data.checks.schema import quoted

STRAGGLERS = 0.01  # share of rows that may lie outside their day


def duplicates(dataset: Dataset) -> list[Finding]:
    """Look for rows with the same (user, item, time).

    Within a part they are worth a look: one row counts twice. In two parts the model is measured on rows that it has
    learned from, which is wrong. Rows with a null in the key are left out.
    """
    roles = dataset.roles
    known = {"group": roles.group, "item": roles.item, "time": roles.time}
    key = [column for column in known.values() if column is not None]
    if len(key) < len(known):
        missing = [name for name, column in known.items() if column is None]
        text = f"not checked: no {' and no '.join(missing)} column; name it in dataset.json under roles"
        return [Finding("duplicates", "rows", Verdict.look, text)]
    names = ", ".join(key)
    again, across = count_duplicates(dataset, key)
    if across:
        text = f"{across:,} keys stand in two parts: rows learned from are measured on; drop them when preparing"
        return [Finding("duplicates", names, Verdict.wrong, text)]
    if again:
        text = f"{again:,} rows ({share(again / dataset.rows)}) repeat an earlier row's key"
        return [Finding("duplicates", names, Verdict.look, text)]
    return [Finding("duplicates", names, Verdict.ok, f"{dataset.rows:,} rows, no key twice")]


def count_duplicates(dataset: Dataset, key: list[str]) -> tuple[int, int]:
    """Return how many rows repeat a key of an earlier row, and how many keys stand in more than one part."""
    columns = ", ".join(map(quoted, key))
    known = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in key)
    ((again, across),) = dataset.query(
        f"""SELECT sum(n - 1), count(*) FILTER (first <> last) FROM (
            SELECT count(*) AS n, min(_part) AS first, max(_part) AS last FROM rows WHERE {known} GROUP BY {columns})"""
    )
    return int(again or 0), int(across)


def order(dataset: Dataset) -> list[Finding]:
    """Check that splits follow one another; of days, that rows lie within their day and that none is missing."""
    time = dataset.roles.time
    if time is None:
        text = "not checked: no time column; name it in dataset.json under roles"
        return [Finding("time order", "parts", Verdict.look, text)]
    findings = _days(dataset, quoted(time)) if dataset.by_day else _splits(dataset, quoted(time))
    if not findings:
        findings.append(
            Finding("time order", time, Verdict.ok, f"{len(dataset.parts)} parts, each after the one before")
        )
    return findings


def _splits(dataset: Dataset, time: str) -> list[Finding]:
    spans = dataset.query(f"SELECT _part, min({time}), max({time}) FROM rows GROUP BY _part ORDER BY _part")
    spans = [span for span in spans if span[1] is not None]
    findings = []
    for before, (part, start, _) in zip(spans, spans[1:], strict=False):
        latest = max(span[2] for span in spans if span[0] <= before[0])
        if start <= latest:
            ((count,),) = dataset.query(f"SELECT count(*) FROM rows WHERE _part = {part} AND {time} <= {latest}")
            text = (
                f"{count:,} rows are no later than the last of {dataset.parts[before[0]].name}: their future is known"
            )
            findings.append(Finding("time order", dataset.parts[part].name, Verdict.wrong, text))
    return findings


def _days(dataset: Dataset, time: str) -> list[Finding]:
    """A day has 24 hours from midnight, by utc_offset_s of dataset.json or by the whole hour that suits most rows.

    STRAGGLERS may lie outside, worth a look: a source's day is often that of its log file, not of the row.
    """
    hour = f"CAST(floor(({time} / {dataset.unit} + {dataset.manifest.get('utc_offset_s', 0)}) / 3600) AS BIGINT)"
    counts = np.array(
        dataset.query(f"SELECT _day, {hour} - 24 * _day, count(*) FROM rows WHERE {time} IS NOT NULL GROUP BY ALL")
    ).reshape(-1, 3)
    shifts = [0] if "utc_offset_s" in dataset.manifest else range(-14, 15)
    inside = max(counts[(counts[:, 1] >= shift) & (counts[:, 1] < shift + 24), 2].sum() for shift in shifts)
    outside, rows = int(counts[:, 2].sum() - inside), int(counts[:, 2].sum())
    findings = []
    if outside:
        verdict = Verdict.wrong if outside > STRAGGLERS * rows else Verdict.look
        text = f"{outside:,} rows ({share(outside / rows)}) lie outside the day of their partition"
        findings.append(Finding("time order", "days", verdict, text))
    numbers = sorted(set(counts[:, 0].tolist()))
    absent = [dataset.day(n) for a, b in zip(numbers, numbers[1:], strict=False) for n in range(a + 1, b)]
    if absent:
        findings.append(Finding("time order", listed(absent), Verdict.look, "this day is missing between others"))
    return findings
