"""Leakage probes: planted leaks are found by name, honest columns are not, and every AUC is scikit-learn's."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from livetrain.trainers.data.checks import leaks, whole
from livetrain.trainers.data.checks.findings import Verdict
from tests.trainers.data.checks.prepared import ROLES, only, sequence, write


def plant(rows, values):
    rows["planted"] = values


def _history(rows, newest):
    """Histories of three events, of which the last is given."""
    offsets = np.arange(0, 3 * len(newest) + 1, 3)
    values = np.random.default_rng(0).integers(200, 225, (len(newest), 3))
    values[:, 2] = newest
    return sequence(offsets, values.ravel())


def strings(rows):
    return [f"user {number}" for number in rows["user"]]


def with_ids(rows):
    """Add ids of other types, which no int64 is equal to."""
    rows["name"] = pa.array(strings(rows))
    rows["large"] = pa.array([2**63 + n for n in rows["user"].tolist()], pa.uint64())


LEAKS = {
    "copy": lambda rows: rows["click"].astype(np.float32),
    "inverse": lambda rows: -rows["click"].astype(np.int64),
    "null where there is no click": lambda rows: pa.array(rows["viewers"], mask=rows["click"] == 0),
    "a time where there is a click": lambda rows: pa.array(
        np.arange(len(rows["click"])), pa.timestamp("ms"), mask=rows["click"] == 0
    ),
    "string": lambda rows: pa.array(np.where(rows["click"], "yes", "no")),
    "unordered codes": lambda rows: np.where(rows["click"], 5, np.where(rows["user"] % 3, 1, 9)),
    "length": lambda rows: sequence(np.concatenate([[0], np.cumsum(rows["click"])]), np.ones(rows["click"].sum())),
    "newest action": lambda rows: _history(rows, np.where(rows["click"], 3, 2)),
    "own string in a history of strings": lambda rows: pa.array(
        [["a", text if click else "b"] for text, click in zip(strings(rows), rows["click"], strict=True)]
    ),
    "large id in the history": lambda rows: pa.array(
        [[1, (2**63 + n) if click else 3] for n, click in zip(rows["user"].tolist(), rows["click"], strict=True)],
        pa.list_(pa.uint64()),
    ),
    "float16 copy": lambda rows: pa.array(rows["click"].astype(np.float16)),
    "one number of a vector": lambda rows: pa.array(
        [[0.5, click + 0.25, k % 7] for k, click in enumerate(rows["click"].tolist())], pa.list_(pa.float32(), 3)
    ),
    "one number of the newest event's vector": lambda rows: pa.array(
        [[[k % 7, 1.0], [-click, 1.0]] for k, click in enumerate(rows["click"].tolist())],
        pa.list_(pa.list_(pa.float32(), 2)),
    ),
    "own event in the history": lambda rows: _history(rows, np.where(rows["click"], rows["streamer"], -1)),
}


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.some(6)
def test_a_planted_leak_is_named(tmp_path, leak):
    folder = write(tmp_path, spoil=lambda number, rows: (with_ids(rows), plant(rows, LEAKS[leak](rows))))
    found = only(folder, "leakage", "click")
    assert found.verdict == Verdict.wrong
    assert found.text.startswith("predicted too well by planted (AUC")
    assert whole.check(folder).worst == Verdict.wrong


def test_a_strong_but_imperfect_column_is_worth_a_look(tmp_path):
    def spoil(number, rows):
        plant(rows, rows["click"] + np.random.default_rng(number).normal(0, 0.45, 1500))

    found = only(write(tmp_path, spoil=spoil), "leakage", "click")
    assert found.verdict == Verdict.look
    assert "planted" in found.text


def test_an_honest_column_and_another_label_are_not_leaks(tmp_path):
    """watch_time tells click exactly, and is a label too."""
    found = only(write(tmp_path), "leakage", "click")
    assert found.verdict == Verdict.ok
    assert found.text.startswith("best single column: user (AUC 0.6")
    assert "watch_time" not in found.text


def test_an_outcome_without_a_role_is_named(tmp_path):
    found = only(write(tmp_path, roles=ROLES | {"labels": ["click"]}), "leakage", "click")
    assert found.verdict == Verdict.wrong
    assert "watch_time" in found.text


def test_a_label_with_few_positives_is_said_not_to_be_probed(tmp_path):
    def spoil(number, rows):
        rows["click"][:] = 0
        rows["click"][:5] = 1

    found = only(write(tmp_path, spoil=spoil), "leakage", "click")
    assert found.text.startswith("not probed: fewer than 30")


def test_scores_are_ranked_as_scikit_learn_ranks_them():
    rng = np.random.default_rng(1)
    label = rng.random(3000) < 0.3
    number = np.round(rng.normal(size=3000) + label, 1)
    missing = rng.random(3000) < 0.2
    column = pa.array(label.astype(np.int8), mask=rng.random(3000) < 0.1)
    sample = pa.table({"number": pa.array(number, mask=missing), "label": column})
    (found,) = leaks.probe(sample, ["number"], ["label"])
    known = np.array([value is not None for value in sample["label"].to_pylist()])
    wanted = roc_auc_score(label[known], np.where(missing, -99, number)[known])
    assert found.auc == pytest.approx(wanted, abs=1e-12)


def test_each_number_of_a_vector_is_probed_on_the_same_rows_as_its_label(monkeypatch):
    monkeypatch.setattr(leaks, "CELLS", 2000)  # every fourth row
    rng = np.random.default_rng(1)
    label = rng.random(2345) < 0.3
    numbers = rng.normal(size=(2345, 3)) + np.stack([label * 0, label * 2, label * 0], 1)
    vectors = pa.array([None if n % 9 == 0 else row.tolist() for n, row in enumerate(numbers)])
    (found,) = leaks.probe(pa.table({"v": vectors, "y": label}), ["v"], ["y"])
    some = np.arange(0, 2345, 4)
    wanted = roc_auc_score(label[some], np.where(some % 9 == 0, -99, numbers[some, 1]))
    assert (found.how, found.auc) == ("number 2", pytest.approx(wanted, abs=1e-12))


def test_rates_are_taken_out_of_fold():
    """A loop over rows as twin; and an id of its own for every row says nothing, where rates within fold would leak."""
    rng = np.random.default_rng(2)
    code = rng.zipf(1.5, 400) % 37
    label = rng.random(400) < np.where(code % 2, 0.6, 0.2)
    fold, score = np.random.default_rng(0).integers(0, leaks.FOLDS, 400), []
    for row in range(400):
        other = (code == code[row]) & (fold != fold[row])
        score.append((label[other].sum() + leaks.SMOOTH * label.mean()) / (other.sum() + leaks.SMOOTH))
    sample = pa.table({"code": pa.array(code.astype(str)), "own": pa.array(np.arange(400).astype(str)), "y": label})
    by_name = {found.column: found for found in leaks.probe(sample, ["code", "own"], ["y"])}
    assert by_name["code"].auc == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert by_name["own"].auc == 0.5


def test_an_amount_is_ranked_above_its_median():
    amount = np.arange(1000, dtype=np.float32) % 100
    (found,) = leaks.probe(pa.table({"x": amount, "amount": amount}), ["x"], ["amount"])
    assert found.auc == 1.0
