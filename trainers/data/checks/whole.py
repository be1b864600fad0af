"""All checks of a prepared dataset: `livetrain data check`."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text

from livetrain.trainers.data.checks import ids, keys, labels, leaks, lengths, ranges
from livetrain.trainers.data.checks.dataset import Dataset, open_dataset
from livetrain.trainers.data.checks.findings import Finding, Verdict, called, runs, share
from livetrain.trainers.data.read.columns import is_list, is_text, worded

FIGURES = ("null", "least", "1 %", "median", "99 %", "most")
FULL = 100  # letters of a line without which it has no room for all figures
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


def columns_table(checked: Checked, width: int = FULL) -> Table:
    """Return a line per column: role, nulls, least, quantiles, most; of sequences the lengths, of ids no quantiles.

    Columns that count up and are alike otherwise (v_0 .. v_63) have one line: what is least and most of all of them,
    and the median of each quantile.

    Args:
        checked: what `check` returned.
        width: of the page, in letters; where it is less than FULL, the quantiles are the median alone.
    """
    table = _table("columns")
    table.add_column("column", overflow="fold")
    table.add_column("role")
    table.add_column("type")
    shown = [place for place in range(len(FIGURES)) if width >= FULL or FIGURES[place] not in ("1 %", "99 %")]
    for place in shown:
        table.add_column(FIGURES[place], justify="right", no_wrap=True)
    roles, figures = checked.dataset.roles, _figures(checked)
    kinds = {column.name: _kind(column.type) for column in checked.dataset.schema}
    for _, alike in groupby(kinds, key=lambda name: (roles.of(name), kinds[name], name in figures)):
        for run in runs(list(alike)):
            kind = kinds[run[0]] if len(run) == 1 else f"{len(run)} x {kinds[run[0]]}"
            cells = _cells(checked, run, figures)
            table.add_row(Text(called(run)), roles.of(run[0]), Text(kind), *(cells[place] for place in shown if cells))
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    table.pad_edge, table.collapse_padding = False, True
    return table


def _figures(checked: Checked) -> dict[str, list[float | None]]:
    """Return each column's FIGURES. A sequence has no share of nulls, and quantiles of ids say nothing."""
    found: dict[str, list[float | None]] = {column.column: [None, *_spread(column)] for column in checked.lengths}
    for summary in checked.summaries:
        known = summary.quantiles and checked.dataset.roles.of(summary.column) not in ("id", "time")
        between = summary.quantiles if known else [None] * len(ranges.QUANTILES)
        found[summary.column] = [summary.null_share, summary.least, *between, summary.most]
    return found


def _cells(checked: Checked, run: list[str], figures: dict[str, list[float | None]]) -> list[str]:
    """Return the FIGURES of one column, or of several that are alike, as text."""
    if run[0] not in figures:
        return []
    merge = {"null": max, "least": min, "most": max}
    columns = zip(FIGURES, zip(*(figures[name] for name in run), strict=True), strict=True)
    known = [(name, [value for value in values if value is not None]) for name, values in columns]
    null, *merged = (merge.get(name, statistics.median)(values) if values else None for name, values in known)
    number = checked.dataset.date if run[0] == checked.dataset.roles.time else _compact
    first = "length" if null is None else share(null) if null else "0"
    return [first, *("" if value is None else number(value) for value in merged)]


def findings_table(checked: Checked) -> Table:
    """Return a line per finding, with its verdict."""
    table = _table("findings")
    for name in ("check", "of", "verdict", "what was found"):
        table.add_column(name, no_wrap=name in ("check", "verdict"), overflow="fold")
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


def _compact(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.3g}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")


def _numbers(schema: pa.Schema) -> list[str]:
    return [column.name for column in schema if _usable(column.type) and ranges.is_number(column.type)]


def _usable(kind: pa.DataType) -> bool:
    if is_list(kind):
        return _usable(kind.value_type)
    return ranges.is_number(kind) or is_text(kind)
