"""Tasks of every loss in a run: trained, resumed, exported; and rows of a group reach a step together."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export.export import export
from tests import samples

TASKS = {
    "click": {"label": "label", "kind": "jrc", "negatives_kept": 0.9},
    "like": {"label": "like", "kind": "pairwise", "group": "user", "sample_weight": "worth"},
    "list": {"label": "like", "kind": "listwise", "group": "user"},
    "sharp": {"label": "label", "kind": "focal"},
    "watch": {"label": "watch", "kind": "ordinal", "thresholds": [2, 5, 10, 40]},
    "gift": {"label": "gift", "kind": "quantile", "unknown": True},
    "rough": {"label": "gift", "kind": "huber", "unknown": True},
}


@pytest.mark.slow
def test_every_loss_trains_and_is_exported(tmp_path):
    data = samples.write(tmp_path / "data", rows=1200)
    model = samples.MULTI_TASK["model"] | {"kind": "mmoe", "expert_units": [8]}
    recipe = samples.recipe(data, model=model, tasks=TASKS, train__epochs=3, train__evaluate_every=1)
    found = launch.train(recipe, tmp_path / "runs")
    for task in ("click", "sharp"):
        assert found[f"test.{task}.auc"] > 0.6
    for task in ("watch", "gift", "rough"):
        assert found[f"test.{task}.mae"] < 20
    of_order = {name.rpartition(".")[2] for name in found if name.startswith("test.like.")}
    assert of_order >= {"auc", "gauc", "uauc", "positives"}
    assert not of_order & {"log_loss", "ne", "pcoc"}  # a score is no probability
    parity = export(tmp_path / "runs/small")["parity"]
    assert parity["rows"] == 300
    assert parity["largest_difference"] < 1e-5
    scores = json.loads((tmp_path / "runs/small/export/golden.json").read_text())["scores"]
    assert set(scores) == set(TASKS)
    assert all(0 < score < 1 for task in ("click", "sharp") for score in scores[task])
    assert all(0 < score < 40 for score in scores["watch"])


def grouped(folder, **changes):
    """Runs of one to nine rows of a group, in a file whose row groups cut them."""
    data = samples.write(folder, rows=2000)
    file = data / "train/part-0.parquet"
    lengths = np.random.default_rng(0).integers(1, 10, 2000)
    request = np.repeat(np.arange(2000), lengths)[:2000] % 300
    pq.write_table(pq.read_table(file).append_column("request", pa.array(request)), file, row_group_size=128)
    for split in ("valid", "test"):
        file = data / split / "part-0.parquet"
        table = pq.read_table(file)
        pq.write_table(table.append_column("request", pa.array(np.zeros(len(table), np.int64))), file)
    tasks = {"click": {"label": "label", "kind": "pairwise", "group": "request"}}
    return samples.recipe(data, tasks=tasks, data__shards=4, **changes), np.concatenate([request, [-1]])


def test_rows_of_a_group_stay_together(tmp_path):
    recipe, request = grouped(tmp_path / "data")
    source = Source.open(recipe, "train")
    whole = list(Reader(source, recipe, rank=0, world=1, shuffle=True).batches(0))
    seen, together = [], 0
    for batch in whole:
        rows = batch.rows.numpy()
        assert np.array_equal(batch.task_groups[batch.weights > 0, 0].numpy(), request[rows[rows >= 0]])
        assert batch.groups is None
        seen += rows[rows >= 0].tolist()
        together += int(((np.diff(rows) == 1) & (request[rows[1:]] == request[rows[:-1]])).sum())
    assert sorted(seen) == list(range(2000))
    assert seen != sorted(seen)
    neighbours = int((request[1:-1] == request[:-2]).sum())
    assert together > 0.8 * neighbours  # the others are cut by steps, shards and row groups
    for rank in range(2):
        parts = list(Reader(source, recipe, rank=rank, world=2, shuffle=True).batches(0, 5))
        for one, other in zip(parts, whole[5:], strict=True):
            half = len(other.rows) // 2
            assert one.rows.tolist() == other.rows[rank * half : (rank + 1) * half].tolist()
    evaluated = next(iter(Reader(source, recipe, rank=0, world=1, shuffle=False, groups=True).batches(0)))
    assert evaluated.task_groups is None
    assert evaluated.groups is not None


def test_a_row_without_a_group_is_refused(tmp_path):
    recipe, _ = grouped(tmp_path / "data")
    file = tmp_path / "data/train/part-0.parquet"
    table = pq.read_table(file)
    column = pa.array(table["request"].to_numpy(), mask=np.arange(2000) % 7 == 0)
    pq.write_table(table.set_column(table.column_names.index("request"), "request", column), file)
    with pytest.raises(BadInput, match=r"'request' is null in 286 rows, and tasks.click.group needs it in every row"):
        launch.train(recipe, tmp_path / "runs")
