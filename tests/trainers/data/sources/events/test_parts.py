"""What lies beside KuaiLive's files: vectors of titles and streamers, people and interests, as samples have them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livetrain.cli import main as cli
from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.event_spec import EventSpec
from livetrain.configs.schema import Recipe
from livetrain.configs.spec import load_spec
from livetrain.trainers.data.sources.events import kuailive, raw
from livetrain.trainers.data.sources.events.prepare import prepare
from livetrain.trainers.data.sources.table.events import prepare_events
from livetrain.trainers.export.prediction import Predictor, weights_of
from livetrain.trainers.recall.origin import vectors
from tests.trainers.data.sources.events.logs import HOUR, START, Visit, prepared, samples, write
from tests.trainers.data.sources.table.test_events import SPEC

LOG = [Visit(hour * HOUR + 20 * n, 1 + n % 3, 1 + n % 4) for n, hour in enumerate([1, 2, 23, 25, 30, 47, 48, 50])]
DAYS = ["2025-05-25..2025-05-25", "2025-05-26..2025-05-26", "2025-05-27..2025-05-27"]
TITLES = np.random.default_rng(0).normal(size=(4, 128)).astype(np.float32)  # rows 1 to 3; the fourth room's is none


def beside(folder: Path) -> Path:
    """Write a log with everything that may lie beside it."""
    write("kuailive", folder, LOG)
    np.save(folder / "title_embeddings.npy", TITLES)
    vectors = pa.array([[0.5, -1.0], [2.0, None]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"streamer_id": [100, 101], "embedding": vectors}), folder / "streamer_emb_64.parquet")
    (folder / "interest.csv").write_text("user_id,topics\n1,game+music\n2,\n")
    rows = [f"1,100,{START - 1}", f"1,101,{START + 24 * HOUR * 1000}"]
    (folder / "follow.csv").write_text("\n".join(["user_id,streamer_id,timestamp", *rows]) + "\n")
    (folder / "friend.csv").write_text(f"user_id,friend_id,timestamp\n2,1,{START - 1}\n")
    return folder


def test_every_part_is_a_column_and_changes_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "_ROWS", 3)  # vectors of an array in memory at a time
    folder = beside(tmp_path / "raw")
    command = ["data", "kuailive", "--raw", str(folder), "--out", str(tmp_path / "out")]
    parts = [word for part in kuailive.PARTS for word in ("--with", part)]
    assert not cli.app([*command, *parts], standalone_mode=False)
    found, plain = samples(tmp_path / "out"), prepared("kuailive", tmp_path, LOG, "plain")
    assert found.select(plain.column_names).equals(plain)
    for row in found.to_pylist():
        title = TITLES[row["room"]].tolist() if row["room"] < 4 else None
        assert row["title_vector"] == title
        assert row["streamer_vector"] == {100: [0.5, -1.0], 101: [2.0, None]}.get(row["streamer"])
        assert len(row["user_topics"] or []) == {1: 2}.get(row["user"], 0)
        followed = [100, 101][: 1 + (row["timestamp"] > START + 24 * HOUR * 1000)] if row["user"] == 1 else []
        assert row["followed_user"] == followed
        assert row["friends_user"] == {1: [2], 2: [1]}.get(row["user"], [])
        earlier = [
            one for one in found.to_pylist() if one["user"] == row["user"] and one["timestamp"] < row["timestamp"]
        ]
        assert row["shown_streamer"] == [one["streamer"] for one in sorted(earlier, key=lambda one: one["timestamp"])]
        assert len(row["shown_action"]) == len(row["shown_gap"]) == len(row["shown_category"]) == len(earlier)
    with pytest.raises(BadInput, match="was prepared with dataset kuailive-interests-people-titles-vectors-visits, "):
        prepare(kuailive.ADAPTER, folder, tmp_path / "out")


def test_a_spec_reads_an_array_of_title_vectors(tmp_path):
    folder = beside(tmp_path / "raw")
    table = "  titles: {files: [title_embeddings.npy], columns: {row: BIGINT, vector: 'FLOAT[]'}}\n"
    spec = SPEC.replace("tables:\n", "tables:\n" + table, 1).replace(
        "columns: {live_id: BIGINT, live_content_category: VARCHAR}",
        "columns: {live_id: BIGINT, live_content_category: VARCHAR, live_name_id: BIGINT}",
    )
    joined = "'+') AS tags, vector AS title\n      FROM rooms LEFT JOIN titles ON live_name_id = row"
    spec = spec.replace("'+') AS tags\n      FROM rooms", joined)
    (folder / "spec.yaml").write_text(spec.replace("    bags: [tags]\n", "    bags: [tags]\n    vectors: [title]\n", 1))
    prepare_events(load_spec(folder / "spec.yaml", EventSpec), tmp_path / "out", lambda what, done, days: None)
    for row in samples(tmp_path / "out").to_pylist():
        assert row["title"] == (TITLES[row["room"]].tolist() if row["room"] < 4 else None)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(5, np.float32), r"title_embeddings.npy is an array \(5,\) of float32; write vectors of floats"),
        (np.zeros((5, 2), np.int64), r"title_embeddings.npy is an array \(5, 2\) of int64"),
        (None, "title_embeddings.npy cannot be read"),
    ],
)
def test_an_array_that_holds_no_vectors_is_named(tmp_path, array, words):
    folder = beside(tmp_path / "raw")
    if array is None:
        (folder / "title_embeddings.npy").write_text("vectors")
    else:
        np.save(folder / "title_embeddings.npy", array)
    with pytest.raises(BadInput, match=words):
        prepare(kuailive.with_parts(["titles"]), folder, tmp_path / "out")


def test_a_part_that_is_not_there_is_named(tmp_path):
    write("kuailive", tmp_path / "raw", LOG)
    with pytest.raises(BadInput, match=r"there is no follow.csv; --raw needs .*friend.csv"):
        prepare(kuailive.with_parts(["people"]), tmp_path / "raw", tmp_path / "out")


def test_title_vectors_reach_the_item_tower_of_a_room_that_nobody_has_seen(tmp_path):
    folder = beside(tmp_path / "raw")
    prepare(kuailive.with_parts(["titles"]), folder, tmp_path / "out")
    recipe = Recipe.model_validate(
        {
            "name": "titles",
            "data": {"path": str(tmp_path / "out"), "batch_size": 4, "shards": 2}
            | {"days": dict(zip(("train", "valid", "test"), DAYS, strict=True))},
            "features": {
                "user": {"type": "id", "table": "user"},
                "room": {"type": "id", "table": "room"},
                "title_vector": {"type": "vector", "width": 128, "normalise": True, "projection": 8},
            },
            "tables": {"user": {"rows": 16, "dim": 8}, "room": {"rows": 64, "dim": 8}},
            "model": {"kind": "dssm", "key": "room", "item": ["title_vector"], "units": [], "width": 8},
            "tasks": {"click": {"label": "click", "kind": "retrieval"}},
            "cluster": {"workers": 0, "device": "cpu"},
            "export": {"after_training": False},
        }
    )
    launch.train(recipe, tmp_path / "runs")
    rooms = pa.table({"room": [77, 77, 77], "title_vector": [TITLES[1].tolist(), TITLES[2].tolist(), None]})
    found = vectors(Predictor(weights_of(tmp_path / "runs/titles", vectors="item")), rooms)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert found[0] @ found[1] < 0.99
