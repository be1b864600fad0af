"""Predictions for rows: those that were evaluated, in order, resumable, and only where the rows can be scored."""

import json
import os
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

import livetrain
from livetrain.api import Run
from livetrain.cli import main as cli
from livetrain.cluster import launch
from livetrain.cluster.alone import alone
from livetrain.configs.errors import BadInput, NotNow
from livetrain.modules.metrics import binary
from livetrain.trainers.export import prediction, prediction_files
from livetrain.trainers.export.export import export
from livetrain.trainers.export.prediction import Predictor, weights_of
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
    return Predictor(weights_of(small_run))


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
    predict(small_run, str(data), tmp_path / "alone", keep=[])
    assert read(tmp_path / "alone").equals(one.select(["click_score"]))


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
        (lambda t: t.set_column(0, "user", pc.cast(t["user"], pa.float64())), {}, "column 'user' of .* is double"),
        (
            lambda t: t.set_column(0, "user", pc.cast(t["user"], pa.string())),
            {},
            "features.user: column 'user' of .*b.parquet holds strings, but integers in training",
        ),
        (_drop("gift"), {}, "has not one column 'gift' .*; correct --keep or --group"),
        (lambda t: t.set_column(6, "like", pc.cast(t["like"], pa.int32())), {}, "is int32 here and int8 in"),
        (None, {"keep": ["usr"]}, r"not one column 'usr' \(did you mean 'user'\?\)"),
        (None, {"best": Best(3, "usr")}, "not one column 'usr'"),
        (None, {"best": Best(3, "history")}, "--group: 'history' is a list"),
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
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds something that is no prediction"):
        predict(small_run, str(data), tmp_path / "mine")
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]
    with pytest.raises(BadInput, match=r"there is no \*.parquet file here; correct --data"):
        predict(small_run, str(tmp_path / "mine"), tmp_path / "out")
    (tmp_path / "mine/more.parq").write_text("")
    with pytest.raises(BadInput, match=r"more.parq: no file NAME.parquet, so it is not read"):
        predict(small_run, str(tmp_path / "mine"), tmp_path / "out")
    with pytest.raises(BadInput, match="--out: .* lies within --data"):
        predict(small_run, str(data), data / "scores")
    with pytest.raises(BadInput, match="--out: .* is no folder"):
        predict(small_run, str(data), Path("s3://bucket/scores"))
    assert not (data / "scores").exists()
    (tmp_path / "begun/.parts").mkdir(parents=True)  # as a kill leaves it
    assert predict(small_run, str(data), tmp_path / "begun")["rows"] == 500


def test_a_folder_of_one_process_at_a_time(small_run, data, tmp_path):
    with (
        alone(tmp_path / ".out.lock", "unused"),
        pytest.raises(NotNow, match="another process predicts into this folder"),
    ):
        livetrain.predict(small_run, data, tmp_path / "out")
    livetrain.predict(small_run, data, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # and no lock


def test_an_address_in_the_place_of_a_folder_leaves_nothing(small_run, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="--out: .* is no folder"):
        livetrain.predict(small_run, data, "s3://bucket/scores")
    assert not list(tmp_path.iterdir())


def test_other_data_of_the_same_size_are_others(small_run, tmp_path):
    table = pq.read_table(small_run.parents[1] / "data/test")
    for number, rows in enumerate((table, table.take(pa.array(np.arange(len(table))[::-1])))):
        pq.write_table(rows, tmp_path / "rows.parquet", compression="none", use_dictionary=False)
        os.utime(tmp_path / "rows.parquet", (1_700_000_000 + number,) * 2)
        if number:
            with pytest.raises(BadInput, match="holds predictions with another data"):
                predict(small_run, str(tmp_path / "rows.parquet"), tmp_path / "out")
        else:
            predict(small_run, str(tmp_path / "rows.parquet"), tmp_path / "out")


def test_another_model_in_the_same_place_predicts_itself(small_run, data, tmp_path):
    """What a process has loaded counts for these weights alone."""
    export(small_run, out=tmp_path / "file", quantize="none")
    first = predict(small_run, str(data), tmp_path / "one", source=str(tmp_path / "file"))
    export(small_run, out=tmp_path / "file", quantize="int8")
    second = predict(small_run, str(data), tmp_path / "two", source=str(tmp_path / "file"))
    assert first["asked"]["model"] != second["asked"]["model"]
    assert not read(tmp_path / "one")["click_score"].equals(read(tmp_path / "two")["click_score"])


def test_an_export_of_another_run_is_refused(towers, exported, data, tmp_path):
    with pytest.raises(BadInput, match="is the export of another run, with another model"):
        predict(towers, str(data), tmp_path / "out", source=str(exported))


@pytest.mark.parametrize("best", [None, Best(2, "user")])
def test_files_without_rows_have_the_columns_too(small_run, data, tmp_path, best):
    shutil.copytree(data, tmp_path / "rows")
    for name in ("date=2026-01-01/0", "date=2026-01-02/z"):
        schema = pq.read_schema(tmp_path / "rows/date=2026-01-01/a.parquet")
        pq.write_table(schema.empty_table(), tmp_path / f"rows/{name}.parquet")
    found = predict(small_run, str(tmp_path / "rows"), tmp_path / "out", best=best)
    plain = predict(small_run, str(data), tmp_path / "plain", best=best)
    assert found["rows"] == plain["rows"]
    assert len({str(pq.read_schema(path)) for path in (tmp_path / "out").glob("*.parquet")}) == 1
    assert read(tmp_path / "out").equals(read(tmp_path / "plain"))


def test_columns_that_nobody_asked_for_do_no_harm(small_run, data, tmp_path):
    """Null throughout on one day, a dictionary on another, twice in a file, alike but for capitals."""
    shutil.copytree(data, tmp_path / "rows")
    for number, path in enumerate(sorted((tmp_path / "rows").glob("*/*.parquet"))):
        table = pq.read_table(path, partitioning=None)
        names = [pa.nulls(len(table)), pa.array(["a"] * len(table)), pa.array(["b"] * len(table)).dictionary_encode()]
        table = table.append_column("note", names[number]).append_column("USER", table["gift"])
        table = table.append_column("twice", table["gift"]).append_column("twice", table["gift"])
        pq.write_table(table, path)
    predict(
        small_run, str(tmp_path / "rows"), tmp_path / "date=2026-01-03", best=Best(1, "USER"), keep=["user", "note"]
    )
    top = pq.read_table(tmp_path / "date=2026-01-03/top.parquet", partitioning=None)
    assert top.column_names == ["USER", "user", "note", "click_score"]
    gifts = {gift for gift in pq.read_table(small_run.parents[1] / "data/test")["gift"].to_pylist() if gift is not None}
    assert top["USER"].to_pylist() == sorted(gifts)  # null is no group
    assert set(top["note"].to_pylist()) <= {None, "a", "b"}


def test_equal_rows_keep_their_order(tmp_path):
    rows = pa.table({"group": [1, 2, 1, 2, 1], "row": [0, 1, 2, 3, 4], "click_score": [0.5, 0.1, 0.5, 0.1, 0.5]})
    parts = [rows.slice(0, 3), rows.slice(3)]
    best = prediction_files._best_of(parts, Best(2, "group", "click"))
    assert best["row"].to_pylist() == [0, 2, 1, 3]


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
    keys, first = np.unique(read(tmp_path / "item")["movie"].drop_null().to_numpy(), return_index=True)
    known = np.flatnonzero(read(tmp_path / "item")["movie"].is_valid().to_numpy())[first]
    product = user @ item[known].T  # of each item once
    np.testing.assert_allclose(near["neighbour_scores"].to_pylist(), -np.sort(-product, axis=1)[:, :3], atol=1e-5)
    found = near["neighbours"].to_pylist()
    assert all(len(set(row)) == 3 for row in found)
    places = np.searchsorted(keys, found)
    np.testing.assert_allclose(np.take_along_axis(product, places, 1), near["neighbour_scores"].to_pylist(), atol=1e-5)


@pytest.mark.parametrize(
    ("items", "key", "said"),
    [
        ("test", "mvie", r"not one column 'mvie' \(did you mean 'movie'\?\); correct --key"),
        ("none", "x", "correct --items"),
    ],
)
def test_items_are_looked_at_before_anything_is_written(towers, tmp_path, items, key, said):
    data = towers.parents[1] / "data"
    with pytest.raises(BadInput, match=said):
        predict(towers, str(data / "test"), tmp_path / "out", neighbours=Neighbours(3, str(data / items), key))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--top", "2", "--group", "user"), 0, "194 rows in 1 files"),
        (("--keep", "user,movie"), 0, "500 rows in 3 files"),
        (("--top", "2"), 2, "--top, --group: one needs the other"),
        (("--task", "click"), 2, "--task: says by which predictions rows are the best, so it goes with --top"),
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
def test_workers_of_a_cluster_write_the_same(small_run, data, tmp_path, monkeypatch):
    from livetrain.cluster.on_ray import on_ray

    predict(small_run, str(data), tmp_path / "here")
    monkeypatch.chdir(data.parent)
    with on_ray("local", Run(small_run).recipe) as run_all:
        predict(small_run, data.name, tmp_path / "there", run_all=run_all)
    assert read(tmp_path / "here").equals(read(tmp_path / "there"))
