"""Lengths of the sequences, on a sample of each part.

Thresholds. Sequences of one domain (`live_streamer`, `live_action`: the name up to the first _) that are equally long
in most rows are meant to be parallel, so a row in which they are not pairs events with other events' actions: wrong.
FALL: a part whose mean length is less than half that of the part before has lost events. Growth is no sign of anything:
histories fill in a log's first days.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livetrain.trainers.data.checks.dataset import Dataset
from livetrain.trainers.data.checks.findings import Finding, Verdict, listed, share

SAMPLE = 65_536  # rows of a part
FALL = 0.5


@dataclass(frozen=True)
class Lengths:
    """A sequence column: (n,) lengths of the sampled rows of each part that has rows; a null list has none."""

    column: str
    parts: list[np.ndarray]


def measure(dataset: Dataset) -> list[Lengths]:
    """Return the lengths of all sequences."""
    names = dataset.roles.sequences
    filled = [part for part in dataset.parts if part.rows] if names else []
    most = max(SAMPLE // max(len(filled), 1), 4096)
    found = [_lengths(dataset.sample(names, [part], most)) for part in filled]
    return [Lengths(name, [part[name] for part in found]) for name in names]


def check(dataset: Dataset, lengths: list[Lengths]) -> list[Finding]:
    """Return the findings: one for every sequence with something to say, one for all the others."""
    names = [part.name for part in dataset.parts if part.rows]
    said: dict[str, list[str]] = {}  # parallel sequences share what is odd in them
    for column in lengths:
        means = [part.mean() for part in column.parts]
        falls = [place for place in range(1, len(means)) if means[place] < FALL * means[place - 1]]
        if not any(means):
            said.setdefault("empty in every sampled row", []).append(column.column)
        elif falls:
            first = falls[0]
            text = f"mean length {means[first - 1]:.1f} in {names[first - 1]}, {means[first]:.1f} in {names[first]}"
            said.setdefault(text, []).append(column.column)
    findings = [Finding("lengths", listed(columns, 3), Verdict.look, text) for text, columns in said.items()]
    odd = {name for columns in said.values() for name in columns}
    apart = _parallel(lengths)
    findings += apart
    fine = len(lengths) - len(odd | {finding.subject for finding in apart})
    if fine:
        text = "parallel where they are meant to be, and no part much shorter than the one before"
        findings.append(Finding("lengths", f"{fine} sequences", Verdict.ok, text))
    return findings


def _lengths(sample: pa.Table) -> dict[str, np.ndarray]:
    columns = zip(sample.column_names, sample.columns, strict=True)
    return {name: pc.fill_null(pc.list_value_length(column), 0).to_numpy() for name, column in columns}


def _parallel(lengths: list[Lengths]) -> list[Finding]:
    domains: dict[str, tuple[str, np.ndarray]] = {}
    findings = []
    for column in lengths:
        whole = np.concatenate(column.parts)
        name, first = domains.setdefault(column.column.partition("_")[0], (column.column, whole))
        filled = (first > 0) | (whole > 0)
        apart = float((first != whole)[filled].mean()) if filled.any() else 0.0
        if 0 < apart <= 0.5:
            text = f"in {share(apart)} of the sampled rows it is not as long as {name}, in the others it is"
            findings.append(Finding("lengths", column.column, Verdict.wrong, text))
    return findings
