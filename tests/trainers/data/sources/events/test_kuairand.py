"""KuaiRand-Pure as published: both of its forms, and the real files where they are."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from livetrain.trainers.data.sources.events.prepare import prepare
from livetrain.trainers.data.sources.events.sources import ADAPTERS
from livetrain.trainers.data.write.ids import string_id
from tests.trainers.data.sources.events.logs import HOUR, Visit, prepared, samples, write

DATA = os.environ.get("LIVETRAIN_DATA")


def test_outcomes_are_known_when_the_play_ends(tmp_path):
    log = [Visit(HOUR, 1, 1, True, 60, (1,)), Visit(HOUR + 40, 1, 2, False, 0), Visit(HOUR + 80, 1, 3, True, 5)]
    first, second, third = prepared("kuairand", tmp_path, log).to_pylist()
    assert (first["click"], first["long_view"], first["like"], first["watch_time"]) == (1, 1, 1, 60.0)
    assert (second["video_id"], second["video_action"], second["like_video"]) == ([1], [1], [])
    assert (third["video_id"], third["video_action"], third["like_video"]) == ([1, 2], [1 + 2 + 4, 0], [1])
    assert (second["user_seen_click_rate"], second["user_seen_long_view_rate"]) == (1.0, 0.0)
    assert (third["user_seen_click_rate"], third["user_seen_long_view_rate"]) == (0.5, 0.5)


def test_tags_are_a_list(tmp_path):
    shown = prepared("kuairand", tmp_path, [Visit(HOUR + 20 * n, 1, n) for n in (1, 2, 3)])
    assert shown["tags"].to_pylist() == [[string_id("1")], [string_id("1"), string_id("7")], []]
    assert shown["tag"].to_pylist() == [string_id("1"), string_id("7,1"), None]
    assert shown["server_width"].to_pylist() == [720.0] * 3


def test_a_pair_with_a_tag_is_counted_and_one_with_none_is_not(tmp_path):
    shown = prepared("kuairand", tmp_path, [Visit(HOUR + 20 * n, 1, video) for n, video in enumerate([1, 4, 3, 3])])
    assert shown["user_tag_count"].to_pylist() == pytest.approx([0, np.log(2), 0, 0])
    assert shown["user_tag_ago"].to_pylist() == [None, pytest.approx(np.log(21)), None, None]
    assert shown["user_video_count"].to_pylist() == pytest.approx([0, 0, 0, np.log(2)])


def test_histories_from_before_the_log(tmp_path):
    raw = write("kuairand", tmp_path / "raw", [Visit(26 * HOUR, 1, 1)])
    sequences = {
        "user_id": [1, 3],
        "history_len": [3, 1],
        "last_time_ms": [1_748_000_000_000] * 2,
        "watch_seq": [[4, 2, 3], [1]],
        "like_seq": [[2], []],
        "long_watch_seq": [[2, 3], []],
    }
    pq.write_table(pa.table(sequences), raw / "user_sequences.parquet")
    prepare(ADAPTERS["kuairand"], raw, tmp_path / "out")
    (row,) = samples(tmp_path / "out").to_pylist()
    assert (row["video_id"], row["video_action"]) == ([4, 2, 3], [0, 1 + 2 + 4, 1 + 2])
    assert (row["like_video"], row["video_gap"]) == ([2], [17, 17, 17])
    assert row["user_seen_count"] == 0


@pytest.mark.slow
@pytest.mark.skipif(DATA is None or not Path(DATA, "kuairand").is_dir(), reason="LIVETRAIN_DATA holds no kuairand/")
def test_the_real_log(tmp_path):
    found = prepare(ADAPTERS["kuairand"], Path(DATA, "kuairand"), tmp_path / "out")
    rows = {day: content["rows"] for day, content in found["days"].items()}
    assert sum(count for day, count in rows.items() if day <= "2022-05-05") == 180_022
    assert sum(count for day, count in rows.items() if day > "2022-05-05") == 42_422
    assert found["report"]["days"]["exposures of the same user, item and time: one kept"] == 5_885
    table = samples(tmp_path / "out")
    days = [path for day in (6, 7, 8) for path in (tmp_path / "out").glob(f"date=2022-05-0{day}/*.parquet")]
    tested = pa.concat_tables(pq.read_table(path, partitioning=None) for path in days)
    tasks = ("click", "long_view", "like", "profile_enter")
    positives = {name: int(np.sum(tested[name].to_numpy())) for name in tasks}
    assert positives == {"click": 18_863, "long_view": 13_289, "like": 724, "profile_enter": 788}
    lengths = pc.list_value_length(table["video_id"]).to_numpy()
    assert lengths.max() == 50
    assert (lengths == pc.list_value_length(table["video_action"]).to_numpy()).all()
