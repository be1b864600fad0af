"""Predictions for rows: those that were evaluated, in order, resumable, and only where the rows can be scored."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.api import Run
from livetrain.cli import main as cli
from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.modules.metrics import binary
from livetrain.trainers.export import prediction
from livetrain.trainers.export.export import export
from livetrain.trainers.export.prediction import Predictor
from livetrain.trainers.export.prediction_files import Best, Neighbours, predict
from livetrain.trainers.runtime import manifest
from tests import samples
from tests.trainers.evaluate.test_retrieval import changes


@pytest.fixture(scope="module")
def data(small_run, tmp_path_factory) -> Path:
    """The test split in three files of two partitions."""
    table = pq.read_table(small_run.parents[1] / "data/test")
    folder = tmp_path_factory.mktemp("rows")
    for name, start, rows in (
        ("date=2026-01-01/a", 0, 200),
        ("date=2026-01-01/b", 200, 130),
        ("date=2026-01-02/a", 330, 170),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(table.slice(start, rows), folder / f"{name}.parquet", row_group_size=64)
    (folder / "_notes.parquet").write_text("hidden")
    return folder


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "first"
    export(small_run, out=out)
    return out


@pytest.fixture(scope="module")
def predictor(small_run) -> Predictor:
    return Predictor(small_run)


def read(out: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path, partitioning=None) for path in sorted(out.glob("*.parquet")))


def test_it_predicts_what_was_evaluated(small_run, data, tmp_path):
    found = predict(small_run, str(data), tmp_path / "out")
    table, result = read(tmp_path / "out"), json.loads((small_run / "result.json").read_text())
    assert found["rows"] == len(table) == 500
    assert table.column_names == ["user", "movie", "rate", "label", "like", "watch", "gift", "worth", "click_score"]
    scores, labels = table["click_score"].to_numpy(), table["label"].to_numpy()
    assert binary.auc(labels, scores) == pytest.approx(result["test.click.auc"], abs=1e-6)
    logits = np.log(scores / (1 - scores))
    assert binary.log_loss(labels, logits) == pytest.approx(result["test.click.log_loss"], abs=1e-6)
    whole = pq.read_table(small_run.parents[1] / "data/test")
    assert table["movie"].to_pylist() == whole["movie"].to_pylist()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        *(f"part-0000{n}.parquet" for n in range(3)),
    ]
    assert manifest.damage(tmp_path / "out", found) is None


def test_an_export_predicts_alike(small_run, exported, data, tmp_path):
    predict(small_run, str(data), tmp_path / "by_run", keep=["user"])
    predict(small_run, str(data), tmp_path / "by_file", keep=["user"], source=str(exported))
    one, other = (read(tmp_path / name) for name in ("by_run", "by_file"))
    assert one.column_names == other.column_names == ["user", "click_score"]
    np.testing.assert_allclose(one["click_score"], other["click_score"], atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 80), st.integers(0, 120))
def test_chunks_change_nothing(small_run, predictor, chunk, rows):
    table = pq.read_table(small_run.parents[1] / "data/test").slice(17, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "CHUNK", chunk)
        found = predictor.predict(table)["click_score"]
    assert len(found) == rows
    np.testing.assert_allclose(found, predictor.predict(table)["click_score"], atol=1e-6)


def test_a_killed_call_goes_on_with_what_is_left(small_run, data, tmp_path):
    worked = []

    def dies(work, numbers):
        for number in numbers:
            if len(worked) == 2:
                raise KeyboardInterrupt
            worked.append(number)
            yield work(number)

    def goes_on(work, numbers):
        for number in numbers:
            worked.append(number)
            yield work(number)

    with pytest.raises(KeyboardInterrupt):
        predict(small_run, str(data), tmp_path / "out", run_all=dies)
    assert manifest.read(tmp_path / "out") is None
    with pytest.raises(BadInput, match="holds predictions with another keep; name a new folder"):
        predict(small_run, str(data), tmp_path / "out", keep=["user"])
    said = []
    predict(small_run, str(data), tmp_path / "out", run_all=goes_on, progress=lambda *at: said.append(at))
    assert worked == [0, 1, 2]
    assert said == [(2, 3), (3, 3)]
    predict(small_run, str(data), tmp_path / "whole")
    assert read(tmp_path / "out").equals(read(tmp_path / "whole"))
    again = predict(small_run, str(data), tmp_path / "out", run_all=None)  # all is done
    assert again["rows"] == 500


def test_a_kill_between_two_parts_moves_is_finished(small_run, data, tmp_path, monkeypatch):
    real = manifest.commit
    monkeypatch.setattr(manifest, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        predict(small_run, str(data), tmp_path / "out")
    monkeypatch.setattr(manifest, "commit", real)
    (tmp_path / "out/part-00002.parquet").rename(tmp_path / "out/.parts/part-00002.parquet")
    left = []
    found = predict(small_run, str(data), tmp_path / "out", run_all=lambda work, numbers: left.extend(numbers) or [])
    assert (found["rows"], left) == (500, [])


def test_only_the_best_rows_of_each_group(small_run, data, tmp_path):
    predict(small_run, str(data), tmp_path / "all")
    found = predict(small_run, str(data), tmp_path / "top", best=Best(2, "user"), keep=["movie"])
    assert list(found["files"]) == ["top.parquet"]
    top, rows = read(tmp_path / "top").to_pandas(), read(tmp_path / "all").to_pandas()
    wanted = rows.sort_values(["user", "click_score"], ascending=[True, False]).groupby("user").head(2)
    assert list(top.columns) == ["user", "movie", "click_score"]
    assert top["user"].tolist() == wanted["user"].tolist()
    np.testing.assert_allclose(top["click_score"], wanted["click_score"], atol=1e-6)


def test_frames_and_tables_in_memory(small_run):
    table = pq.read_table(small_run.parents[1] / "data/test").drop_columns(["label"]).slice(3, 40)
    scored = Run(small_run).predict(table)
    frame = Run(small_run).predict(table.to_pandas(types_mapper=pd.ArrowDtype))
    assert scored.column_names == [*table.column_names, "click_score"]
    assert isinstance(frame, pd.DataFrame)
    np.testing.assert_allclose(scored["click_score"], frame["click_score"], atol=1e-6)
    assert len(Run(small_run).predict(table.slice(0, 0))) == 0
    with pytest.raises(BadInput, match="has a column 'click_score' already"):
        Run(small_run).predict(scored)


def _drop(name):
    return lambda table: table.drop_columns([name])


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (_drop("movie"), {}, r"features.movie: .*b.parquet has no column 'movie'"),
        (lambda t: t.set_column(0, "user", pc.cast(t["user"], pa.string())), {}, "column 'user' of .* is string"),
        (_drop("gift"), {}, "has no column 'gift' .*; correct --keep or --group"),
        (lambda t: t.set_column(6, "like", pc.cast(t["like"], pa.int32())), {}, "is int32 here and int8 in"),
        (None, {"keep": ["usr"]}, r"no column 'usr' \(did you mean 'user'\?\)"),
        (None, {"best": Best(3, "usr")}, "no column 'usr'"),
        (None, {"best": Best(3, "user", "clik")}, r"there is no task 'clik' \(did you mean 'click'\?\)"),
        (None, {"vectors": "user"}, "model.kind 'din' has no towers"),
        (None, {"source": "nowhere"}, "nowhere: holds no export with model.pt"),
    ],
)
def test_what_cannot_be_scored_is_said_before_anything_is_written(small_run, data, tmp_path, spoil, options, said):
    rows = tmp_path / "rows"
    shutil.copytree(data, rows)
    if spoil:
        part = rows / "date=2026-01-01/b.parquet"
        pq.write_table(spoil(pq.read_table(part, partitioning=None)), part)
    with pytest.raises(BadInput, match=said):
        predict(small_run, str(rows), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_other_folders_are_left_alone(small_run, data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("")
    with pytest.raises(BadInput, match="holds something that is no prediction"):
        predict(small_run, str(data), tmp_path / "mine")
    with pytest.raises(BadInput, match=r"there is no \*.parquet file here; correct --data"):
        predict(small_run, str(tmp_path / "mine"), tmp_path / "out")


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> Path:
    """A finished run of a model with two towers."""
    folder = tmp_path_factory.mktemp("towers")
    launch.train(samples.recipe(samples.write(folder / "data", rows=600), **changes()), folder / "runs")
    return folder / "runs/small"


def test_vectors_and_neighbours_are_the_models(towers, tmp_path):
    data = str(towers.parents[1] / "data/test")
    for side in ("user", "item"):
        predict(towers, data, tmp_path / side, vectors=side, keep=["movie"])
    predict(towers, data, tmp_path / "scores", keep=["movie"])
    user, item = (
        np.array(read(tmp_path / side)[f"{side}_vector"].to_pylist(), np.float32) for side in ("user", "item")
    )
    scale = read(tmp_path / "scores")["click_score"].to_numpy() / (user * item).sum(1)
    assert scale == pytest.approx(np.full(len(user), scale[0]), rel=1e-3)
    predict(towers, data, tmp_path / "near", neighbours=Neighbours(3, data, "movie"), keep=["user"])
    near = read(tmp_path / "near")
    assert near.column_names == ["user", "neighbours", "neighbour_scores"]
    product = user @ item.T
    np.testing.assert_allclose(near["neighbour_scores"].to_pylist(), -np.sort(-product, axis=1)[:, :3], atol=1e-5)
    keys = read(tmp_path / "item")["movie"]
    first = [keys[int(place)].as_py() for place in product.argmax(axis=1)]
    chosen = [row[0] for row in near["neighbours"].to_pylist()]
    assert [
        a == b or product[n].max() == pytest.approx(product[n][keys.to_pylist().index(a)], abs=1e-5)
        for n, (a, b) in enumerate(zip(chosen, first, strict=True))
    ] == [True] * len(first)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--top", "2", "--group", "user"), 0, "194 rows in 1 files"),
        (("--keep", "user,movie"), 0, "500 rows in 3 files"),
        (("--top", "2"), 2, "--top, --group: one needs the other"),
        (("--neighbours", "2"), 2, "--neighbours, --items, --key: give all three"),
        (("--vectors", "user", "--top", "2", "--group", "user"), 2, "one at a time"),
    ],
)
def test_the_command(small_run, data, tmp_path, monkeypatch, capfd, words, code, said):
    arguments = ["predict", str(small_run), "--data", str(data), "--out", str(tmp_path / "out"), *words]
    monkeypatch.setattr("sys.argv", ["livetrain", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (end.value.code or 0) == code
    assert said in "".join(capfd.readouterr())


@pytest.mark.slow
def test_workers_of_a_cluster_write_the_same(small_run, data, tmp_path):
    from livetrain.cluster.on_ray import on_ray

    predict(small_run, str(data), tmp_path / "here")
    with on_ray("local") as run_all:
        predict(small_run, str(data), tmp_path / "there", run_all=run_all)
    assert read(tmp_path / "here").equals(read(tmp_path / "there"))
