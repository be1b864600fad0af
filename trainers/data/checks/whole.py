"""All checks of a prepared dataset: `livetrain data check`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from rich.table import Table
from rich.text import Text

from livetrain.trainers.data.checks import ids, keys, labels, leaks, lengths, ranges
from livetrain.trainers.data.checks.dataset import Dataset, open_dataset
from livetrain.trainers.data.checks.findings import Finding, Verdict, share
from livetrain.trainers.data.read.columns import is_list, is_text, worded

STYLES = {Verdict.ok: "green", Verdict.look: "yellow", Verdict.wrong: "bold red"}


@dataclass(frozen=True)
class Checked:
    """What the checks have measured of a dataset, and what they say of it. Names of days and parts are in `dataset`."""

    dataset: Dataset
    findings: list[Finding]
    summaries: list[ranges.Summary]
    labels: list[labels.Label]
    unseen: list[ids.Unseen]
    lengths: list[lengths.Lengths]
    probes: list[leaks.Probe]

    @property
    def worst(self) -> Verdict:
        return max((finding.verdict for finding in self.findings), key=list(Verdict).index)


def check(folder: Path, progress: Callable[[str], None] = lambda text: None) -> Checked:
    """Check a dataset of train/, valid/ and test/, or of days date=YYYY-MM-DD/.

    Counts, ranges, rates, duplicates and unseen ids are exact, in DuckDB with 2 GB of memory at most. Quantiles and
    probes take a sample of the parts learned from, lengths one of each part: rows at the start of evenly spaced row
    groups, the same ones every time.

    Args:
        folder: what `livetrain data` has written; without roles in its dataset.json they are inferred, a finding.
        progress: told what is being done, a line at a time.

    Raises:
        BadInput: no dataset is there, or a file cannot be read.
    """
    with open_dataset(folder) as dataset:
        progress(f"{dataset.rows:,} rows in {len(dataset.parts)} {'days' if dataset.by_day else 'splits'}")
        columns = probed(dataset)
        filled = [part for part in dataset.parts[: dataset.learned] if part.rows]
        names = [*dict.fromkeys([*columns, *dataset.roles.labels, *_numbers(dataset.schema)])]
        sample = dataset.sample(names, filled, leaks.SAMPLE)
        progress("values of every column")
        summaries = ranges.summarise(dataset, sample)
        progress("labels, keys and ids")
        by_day, unseen = labels.measure(dataset), ids.measure(dataset)
        found = [*dataset.findings, *ranges.check(dataset, summaries), *keys.duplicates(dataset), *keys.order(dataset)]
        found += [*labels.check(dataset, by_day), *ids.check(dataset, unseen)]
        progress("sequences")
        measured = lengths.measure(dataset)
        found += lengths.check(dataset, measured)
        progress(f"leakage: {len(columns)} columns against {len(dataset.roles.labels)} labels")
        probes = leaks.probe(sample, columns, dataset.roles.labels)
        found += leaks.check(probes, dataset.roles.labels)
        return Checked(dataset, found, summaries, by_day, unseen, measured, probes)


def probed(dataset: Dataset) -> list[str]:
    """Return the columns to probe for leakage: all that could become features, those without a role included."""
    roles = dataset.roles
    out = {*roles.labels, roles.time}
    return [
        column.name
        for column in dataset.schema
        if column.name not in out and (_usable(column.type) or pa.types.is_timestamp(column.type))
    ]


def columns_table(checked: Checked) -> Table:
    """Return a line per column: role, nulls, least, quantiles, most; of sequences the lengths."""
    table = Table(title="columns", title_justify="left", header_style="bold")
    for name in ("column", "role", "type"):
        table.add_column(name, no_wrap=True)
    for name in ("null", "least", "1 %", "median", "99 %", "most"):
        table.add_column(name, justify="right", no_wrap=True)
    summaries = {summary.column: summary for summary in checked.summaries}
    lists = {column.column: column for column in checked.lengths}
    for column in checked.dataset.schema:
        cells: list[str | Text] = [
            Text(column.name),
            checked.dataset.roles.of(column.name),
            Text(_kind(column.type)),
        ]
        if column.name in summaries:
            found = summaries[column.name]
            between: Sequence[float | None] = found.quantiles or [None] * 3
            values = [found.least, *between, found.most]
            cells += [share(found.null_share), *map(_compact, values)]
        elif column.name in lists:
            cells += ["length", *map(_compact, _spread(lists[column.name]))]
        table.add_row(*cells)
    return table


def findings_table(checked: Checked) -> Table:
    """Return a line per finding, with its verdict."""
    table = Table(title="findings", title_justify="left", header_style="bold")
    for name in ("check", "of", "verdict", "what was found"):
        table.add_column(name, no_wrap=name == "verdict")
    for finding in checked.findings:
        verdict = Text(finding.verdict.value, STYLES[finding.verdict])
        table.add_row(finding.check, Text(finding.subject), verdict, Text(finding.text))
    return table


def _spread(column: lengths.Lengths) -> list[float]:
    merged = pa.chunked_array(column.parts).to_numpy()
    merged.sort()
    last = len(merged) - 1
    return [float(merged[int(last * quantile)]) for quantile in (0, *ranges.QUANTILES, 1)]


def _kind(kind: pa.DataType) -> str:
    return f"{worded(kind.value_type)} list" if is_list(kind) else worded(kind)


def _compact(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.3g}".replace("e+", "e")


def _numbers(schema: pa.Schema) -> list[str]:
    return [column.name for column in schema if _usable(column.type) and ranges.is_number(column.type)]


def _usable(kind: pa.DataType) -> bool:
    if is_list(kind):
        return _usable(kind.value_type)
    return ranges.is_number(kind) or is_text(kind)
