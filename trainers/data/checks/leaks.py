"""Leakage probes: how well one column alone ranks a label.

A feature that is known before the exposure says a little about its outcome. One that says nearly everything was
computed from the outcome. So each column is turned into scores, and their AUC against each label is its probe:

- a number or a time as it is, null below all (its being null may be what leaks);
- an id, a string or an integer by the label's rate among the rows of its value, taken out of fold;
- a sequence by its length, by its newest element (as an id), and by whether that element is one of the row's ids: a
  history that already holds the row's own event;
- a vector by each of its numbers, on fewer rows where it is wide; vectors that events carry by the newest one's.

AUC below .5 counts as its mirror image. Labels are not probed: one outcome may well tell another. An amount (watch
time, the value of a gift) is ranked as "above its median".

Thresholds, from benchmarks/results/checks.md: of KuaiRand's columns those known before the exposure reach .78 at most,
and a boosted-tree model on many of them .83; copies and re-encodings of an outcome lie above .98, weaker outcomes from
.85. Either is met only where the AUC less two standard errors (Hanley and McNeil, Radiology 1982) still is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livetrain.modules.metrics import binary as metrics
from livetrain.trainers.data.checks.findings import Finding, Verdict, listed
from livetrain.trainers.data.read.columns import is_list, is_text

LOOK, WRONG = 0.85, 0.98
SAMPLE = 100_000  # rows
LEAST = 30  # rows of each class, without which an AUC says nothing
CELLS = 2**22  # numbers of a vector that are probed, over all of its places
FOLDS, SMOOTH = 5, 5.0  # an id's rate counts SMOOTH rows of the overall rate besides its own


@dataclass(frozen=True)
class Probe:
    """How well `column` alone ranks `label`: AUC (at least .5), its standard error, and by what."""

    column: str
    label: str
    auc: float
    error: float
    how: str

    @property
    def verdict(self) -> Verdict:
        sure = self.auc - 2 * self.error
        return Verdict.wrong if sure > WRONG else Verdict.look if sure > LOOK else Verdict.ok


def probe(sample: pa.Table, columns: list[str], labels: list[str]) -> list[Probe]:
    """Return the best probe of every column against every label that has LEAST rows of both classes.

    Args:
        sample: rows, with all the columns.
        columns: to be probed: numbers, booleans, strings, times and lists of them.
        labels: numbers, null where unknown.
    """
    fold = np.random.default_rng(0).integers(0, FOLDS, len(sample))  # by chance: rows may follow a rhythm of their own
    targets = {label: target for label in labels if (target := _target(sample[label])) is not None}
    best: dict[tuple[str, str], Probe] = {}
    kinds = {name: sample.schema.field(name).type for name in columns}
    ids = [name for name, kind in kinds.items() if pa.types.is_integer(kind) or is_text(kind)]
    for column in columns:
        for how, codes, ordered, step in _scores(sample, column, ids):
            for label, (known, positive) in targets.items():
                known, positive = known[::step], positive[::step]
                if min(int(positive.sum()), int((known & ~positive).sum())) < LEAST:
                    continue
                found = _probe(
                    column, label, how, codes[known], positive[known], None if ordered else fold[::step][known]
                )
                if (column, label) not in best or found.auc > best[column, label].auc:
                    best[column, label] = found
    return list(best.values())


def check(probes: list[Probe], labels: list[str]) -> list[Finding]:
    """Return a finding for every label: the columns that predict it too well, or the best one."""
    findings = []
    for label in labels:
        found = sorted((p for p in probes if p.label == label), key=lambda p: -p.auc)
        if not found:
            text = f"not probed: fewer than {LEAST} sampled rows of one class"
            findings.append(Finding("leakage", label, Verdict.ok, text))
            continue
        flagged = [p for p in found if p.verdict != Verdict.ok]
        if flagged:
            worst = max((p.verdict for p in flagged), key=list(Verdict).index)
            text = f"predicted too well by {listed([str_of(p) for p in flagged])}; is it known before the exposure?"
            findings.append(Finding("leakage", label, worst, text))
        else:
            findings.append(Finding("leakage", label, Verdict.ok, f"best single column: {str_of(found[0])}"))
    return findings


def is_copy(column: pa.ChunkedArray, label: pa.ChunkedArray) -> bool:
    """Say whether a column equals a label on every row, or all elements of its lists do.

    Never of a label with less than LEAST rows, or elements, of a class.
    """
    if is_list(column.type):
        there = column.is_valid()
        lists = column.filter(there).combine_chunks()
        return is_copy(pa.chunked_array([lists.flatten()]), label.filter(there).take(pc.list_parent_indices(lists)))
    target = _target(label)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if target is None or not any(fits(column.type) for fits in numbers):
        return False
    values = pc.fill_null(column.cast(pa.float64(), safe=False), math.nan).to_numpy()
    return bool((values == label.cast(pa.float64(), safe=False).to_numpy())[target[0]].all())


def str_of(found: Probe) -> str:
    """Return a probe in words."""
    return f"{found.column} (AUC {found.auc:.3f}, {found.how})"


def _target(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (n,) bool which rows are known, and which are positive; None where one class is too small."""
    values = pc.fill_null(column.cast(pa.float64(), safe=False), math.nan).to_numpy()
    known = np.isfinite(values)
    binary = np.isin(values[known], (0.0, 1.0)).all()
    cut = 0.5 if binary or not known.any() else np.median(values[known])
    positive = known & (values > cut)
    enough = min(int(positive.sum()), int(known.sum() - positive.sum())) >= LEAST
    return (known, positive) if enough else None


def _scores(sample: pa.Table, name: str, ids: list[str]) -> Iterator[tuple[str, np.ndarray, bool, int]]:
    """Yield (how, codes from 0, whether their order is the score, of which rows: every so many) of a column."""
    column, kind = sample[name].combine_chunks(), sample.schema.field(name).type
    if is_list(kind) and is_list(kind.value_type):
        yield "length", _codes(pc.fill_null(pc.list_value_length(column), 0)), True, 1
        yield from _of_vectors(_newest(column), "of the newest")
        return
    if is_list(kind) and pa.types.is_floating(kind.value_type) and _width(column) > 1:
        yield from _of_vectors(column, "")
        return
    if is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        yield "length", _codes(lengths), True, 1
        newest = _newest(column)
        yield "newest element", _codes(newest), False, 1
        for other in ids:
            same = _equal(newest, sample[other].combine_chunks())
            if same is not None:
                yield f"newest element = {other}", same.astype(np.int64), True, 1
        return
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_timestamp(kind):
        yield "as it is", _codes(column), True, 1
    if not pa.types.is_floating(kind):
        yield "rate of its value", _codes(column), False, 1


def _width(column: pa.Array) -> int:
    """Return how many elements all lists of a column have; 0 where they differ, or there are none."""
    lengths = pc.unique(pc.list_value_length(column).drop_null())
    return lengths[0].as_py() if len(lengths) == 1 else 0


def _of_vectors(column: pa.Array, which: str) -> Iterator[tuple[str, np.ndarray, bool, int]]:
    """Yield what `_scores` does of each number of vectors of one width; nothing where they have several."""
    width = _width(column)
    if not width:
        return
    step = max(-(-len(column) * width // CELLS), 1)
    column = column.take(pa.array(np.arange(0, len(column), step)))
    there = column.is_valid().to_numpy(zero_copy_only=False)
    numbers = np.full((len(column), width), np.nan)
    flat = column.flatten().cast(pa.float64(), safe=False)
    numbers[there] = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
    for place in range(width):
        yield f"number {place + 1} {which}".rstrip(), _codes(pa.array(numbers[:, place])), True, step


def _newest(column: pa.Array) -> pa.Array:
    """Return the last element of each list, null where there is none."""
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    offsets = column.offsets.to_numpy()
    filled = np.diff(offsets) > 0
    filled &= column.is_valid().to_numpy(zero_copy_only=False)
    return column.values.take(pa.array(np.maximum(offsets[1:] - 1, 0), mask=~filled))


def _equal(one: pa.Array, other: pa.Array) -> np.ndarray | None:
    """Return (n,) where two columns hold the same id; None where one holds strings or numbers, the other none."""
    if is_text(one.type) and is_text(other.type):
        one, other = one.cast(pa.large_string()), other.cast(pa.large_string())
    elif not (pa.types.is_integer(one.type) and pa.types.is_integer(other.type)):
        return None
    elif one.type != other.type:
        one, other = _signed(one), _signed(other)
    return pc.fill_null(pc.equal(one, other), False).to_numpy(zero_copy_only=False)


def _signed(ids: pa.Array) -> pa.Array:
    """Return integers as int64; null where that does not hold them, for then no int64 is equal to them."""
    if pa.types.is_uint64(ids.type):
        ids = pc.if_else(pc.less_equal(ids, pa.scalar(2**63 - 1, pa.uint64())), ids, None)
    return ids.cast(pa.int64())


def _codes(column: pa.Array) -> np.ndarray:
    """Return (n,) the rank of each value among the distinct ones; null and NaN come first."""
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    if pa.types.is_floating(column.type):
        column = pc.add(pc.if_else(pc.is_nan(column), None, column), 0.0)  # -0.0 and 0.0 are one value
    words = column.dictionary_encode()
    order = pc.array_sort_indices(words.dictionary).to_numpy()
    rank = np.empty(len(order) + 1, np.int64)
    rank[order], rank[-1] = np.arange(1, len(order) + 1), 0
    places = pc.fill_null(words.indices, -1).to_numpy()
    return rank[places]


def _probe(
    column: str, label: str, how: str, codes: np.ndarray, positive: np.ndarray, fold: np.ndarray | None
) -> Probe:
    if fold is None:
        total = np.bincount(codes)
        ones = np.bincount(codes, weights=positive, minlength=len(total))
        auc = metrics.auc_from_counts(ones, total - ones)
    else:
        auc = _out_of_fold(codes, positive, fold)
    auc = max(auc, 0.5 if fold is not None else 1 - auc)
    return Probe(column, label, auc, _error(auc, int(positive.sum()), int((~positive).sum())), how)


def _out_of_fold(codes: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> float:
    """Return the AUC of each row's score: the smoothed rate of its value in the other folds.

    score = (positives of the value elsewhere + SMOOTH p) / (rows of the value elsewhere + SMOOTH), p the overall rate.
    All rows of a value and fold share one score, so the AUC follows from the counts of these cells.
    """
    width = int(codes.max(initial=0)) + 1
    cell = codes * FOLDS + fold
    total = np.bincount(cell, minlength=width * FOLDS).reshape(width, FOLDS)
    ones = np.bincount(cell, weights=positive, minlength=width * FOLDS).reshape(width, FOLDS)
    elsewhere, ones_elsewhere = (x.sum(1, keepdims=True) - x for x in (total, ones))
    score = (ones_elsewhere + SMOOTH * positive.mean()) / (elsewhere + SMOOTH)
    used = total > 0
    _, place = np.unique(score[used], return_inverse=True)
    positives, rows = (np.bincount(place, weights=x[used]) for x in (ones, total))
    return metrics.auc_from_counts(positives, rows - positives)


def _error(auc: float, positives: int, negatives: int) -> float:
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (positives - 1) * (one - auc**2) + (negatives - 1) * (two - auc**2)
    return math.sqrt(max(spread, 0.0) / (positives * negatives))
