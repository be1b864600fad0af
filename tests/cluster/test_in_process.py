"""cluster.workers: 0, the whole way in this process."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from cluster import launch
from configs.errors import BadInput


def test_a_finished_run_holds_its_parts(small_run):
    names = {path.name for path in small_run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "result.json", "report.png", "checkpoints"} <= names
    result = json.loads((small_run / "result.json").read_text())
    assert result["name"] == "small"
    assert result["test.click.auc"] > 0.7
    assert result["rows_per_s"] > 0
    assert result["wall_s"] > 0
    assert set(result["tables"]) == {"user", "movie", "rating"}


def test_lists_over_their_limit_are_cut_and_counted(small_run):
    train = pq.read_table(small_run.parents[1] / "data/train")
    long = sum(len(events) > 6 for events in train["history"].to_pylist())
    assert 0 < long < len(train)
    epochs = 2
    assert json.loads((small_run / "result.json").read_text())["cut"] == {
        "history": epochs * long,
        "rating": epochs * long,
    }


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluate_repeats_the_runs_own_figures(small_run, tmp_path, split):
    shutil.copytree(small_run, tmp_path / "small")
    result = json.loads((small_run / "result.json").read_text())
    found = launch.evaluate(tmp_path / "small", split, "best")
    assert set(found) == {key for key in result if key.startswith(f"{split}.")}
    assert found == {key: pytest.approx(result[key], rel=1e-6) for key in found}


def test_evaluate_takes_the_checkpoint_it_is_told(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "small")
    last = launch.evaluate(tmp_path / "small", "valid", "last")
    log = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    own = [line for line in log if line["kind"] == "eval" and line["split"] == "valid"][-1]
    assert last["valid.click.auc"] == pytest.approx(own["click.auc"], rel=1e-6)


def test_evaluate_refuses_an_unknown_split(small_run):
    with pytest.raises(BadInput, match="--split: 'tests' is none of train, valid, test"):
        launch.evaluate(small_run, "tests", "best")
