"""Features of requests from a store are those of the samples."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput, NotNow
from livetrain.trainers.data.sources.events.model import Adapter
from livetrain.trainers.data.sources.events.plan import columns_of
from livetrain.trainers.data.store.fill import read_meta
from livetrain.trainers.data.store.kv import open_store
from livetrain.trainers.export.prediction import Predictor, weights_of
from livetrain.trainers.online.features import Features
from tests.trainers.online import worlds


def same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or math.isclose(one, other, rel_tol=1e-6)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


LASTING = ("user", "item", "author", "time", "hour", "weekday", "ids", "bags", "dense", "vectors", "age")


def compare(features: Features, samples: pa.Table, adapter: Adapter, only: set[str] | None = None) -> int:
    """Ask for each row's features at its time; return how many values were compared."""
    labels, compared = set(adapter.outcomes), 0
    for row in samples.to_pylist():
        asked = {adapter.item: [row[adapter.item]], adapter.author: [row[adapter.author]]}
        (found,) = features.columns(row["user"], asked, row["timestamp"])[0].to_pylist()
        assert set(found) == set(row) - labels
        for name in only or found:
            assert same(found[name], row[name]), (name, found[name], row[name], row["user"], row["timestamp"])
            compared += 1
    return compared


def test_a_user_of_whom_the_day_has_no_event_keeps_her_history(tmp_path):
    days = worlds.prepared(tmp_path, 5)
    store = open_store(str(tmp_path / "store"), create=True)
    worlds.filled(store, days[-1])
    every = pa.concat_tables(map(worlds.samples, days)).sort_by("timestamp").to_pylist()
    for user in {row["user"] for row in every}:
        rows = [row for row in every if row["user"] == user]
        later = rows[-1]["timestamp"] + 10 * 86_400_000
        table, _ = Features(store).columns(user, {"room": [1, 2], "streamer": [101, 102]}, later)
        assert table["shown_streamer"].to_pylist() == [[row["streamer"] for row in rows][-50:]] * 2
        assert table["user_seen_count"][0].as_py() == pytest.approx(math.log1p(len(rows)))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=2, deadline=None)
def test_a_request_gets_what_the_samples_of_its_moment_have(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("world")
    days = worlds.prepared(folder, seed)
    store = open_store(str(folder / "store"), create=True)
    worlds.filled(store, days[-2])
    worlds.told(store, worlds.EVERYTHING, folder / "raw", days[-1], folder / "work")
    samples = worlds.samples(days[-1])
    assert compare(Features(store), samples, worlds.EVERYTHING) > 20 * 100


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Prepared days, a store that a night and a stream have filled, and a run that was trained on the first day."""
    folder = tmp_path_factory.mktemp("world")
    days = worlds.prepared(folder, 3)
    store = open_store(str(folder / "store"), create=True)
    worlds.filled(store, days[-2])
    worlds.told(store, worlds.EVERYTHING, folder / "raw", days[-1], folder / "work")
    launch.train(worlds.recipe(folder / "out"), folder / "runs")
    return folder, days, store


def test_a_night_alone_knows_all_but_what_the_day_changes(world, tmp_path):
    _, days, _ = world
    store = open_store(str(tmp_path / "store"), create=True)
    worlds.filled(store, days[-2])
    columns = columns_of(worlds.EVERYTHING)
    lasting = {n for n, how in columns.items() if how.get("from") == "statistics" or how["is"] in LASTING}
    assert len(lasting) > 60
    assert compare(Features(store), worlds.samples(days[-1]), worlds.EVERYTHING, lasting) > 20 * 60


def test_a_row_is_scored_as_its_sample(world):
    """A request as `rank` takes it, against the rows of the same moment as `predict` has them."""
    folder, days, store = world
    export = folder / "runs/online/export"
    predictor = Predictor(weights_of(folder / "runs/online", str(export)))
    features, model = Features(store, predictor.recipe), torch.jit.load(export / "model.pt")
    row = worlds.samples(days[-1]).sort_by("timestamp").to_pylist()[0]
    asked = {"room": [1, 2, 3, 99, row["room"]], "streamer": [101, 102, 100, None, row["streamer"]]}
    table, mine = features.columns(row["user"], asked, row["timestamp"])
    assert {"live_streamer", "user_seen_count", "user_count", "hour"} <= mine
    assert mine.isdisjoint({"room_viewers", "streamer_count", "user_streamer_count", "title_vector"})
    ids, lengths, dense = features.row(row["user"], asked, row["timestamp"])
    assert len(lengths["lived"]) == len(dense["user_seen_count"]) == 1
    assert len(lengths["streamer"]) == len(dense["room_viewers"]) == 5
    found = model.rank(ids, lengths, dense)
    wanted = predictor.predict(table)
    for task in ("click", "like"):
        np.testing.assert_allclose(found[task].numpy(), wanted[f"{task}_score"].to_numpy(), atol=1e-6)
    for sample in worlds.samples(days[-1]).slice(0, 30).to_pylist():
        asked = {name: [sample[name]] for name in ("room", "streamer")}
        found = model.rank(*features.row(sample["user"], asked, sample["timestamp"]))["click"].item()
        table = pa.Table.from_pylist([sample], worlds.samples(days[-1]).schema)
        assert found == pytest.approx(predictor.predict(table)["click_score"][0].as_py(), abs=1e-6)


def test_what_comes_with_the_request_goes_before_what_is_stored(world):
    folder, days, store = world
    features = Features(store, worlds.recipe(folder / "out"))
    at = worlds.samples(days[-1])["timestamp"][0].as_py()
    asked = {"room": [1, 2], "streamer": [101, 102], "room_viewers": [7.0, None]}
    table, _ = features.columns(1, asked, at, {"live_streamer": [5, 6]})
    assert table["room_viewers"].to_pylist() == [7.0, None]
    assert table["live_streamer"].to_pylist() == [[5, 6]] * 2
    assert features.row(1, asked, at, {"live_streamer": [5, 6]})[0]["lived"].tolist() == [5, 6]


def test_candidates_may_come_twice_have_no_author_or_be_none(world):
    folder, days, store = world
    features, at = Features(store, worlds.recipe(folder / "out")), worlds.samples(days[-1])["timestamp"][-1].as_py()
    asked = {"room": [1, 2, None, 1, 2], "streamer": [101, None, 103, 101, 102]}
    whole = features.columns(1, asked, at)[0].to_pylist()
    assert whole[0] == whole[3]
    assert whole[1] != whole[4]
    for place, row in enumerate(whole):
        alone = features.columns(1, {name: [values[place]] for name, values in asked.items()}, at)[0].to_pylist()
        assert alone == [row]
    assert len(features.columns(1, {"room": [], "streamer": []}, at)[0]) == 0
    ids, lengths, dense = features.row(1, {"room": [], "streamer": []}, at)
    assert len(lengths["room"]) == len(dense["room_viewers"]) == len(ids["room"]) == 0


def test_ids_of_strings_are_found_whole(world):
    """A float64 holds no number of 64 bits."""
    _, days, store = world
    night, large = read_meta(store)["generation"], 2**60 + 1
    for prefix, number in (("user", 1), ("streamer", 101), ("room", 1)):
        (value,) = store.get([f"{night}/attributes.{prefix}/{number}"])
        assert value
        store.put([(f"{night}/attributes.{prefix}/{large}", value)])
    features, at = Features(store), worlds.samples(days[-1])["timestamp"][0].as_py()
    wanted, found = (
        features.columns(user, {"room": [room], "streamer": [streamer]}, at)[0]
        for user, room, streamer in ((1, 1, 101), (large, large, large))
    )
    told = [name for name, how in columns_of(worlds.EVERYTHING).items() if how["is"] in LASTING[6:]]
    assert len(told) > 20
    assert found.select(told).equals(wanted.select(told))


def test_what_only_a_request_can_tell_is_named(world, tmp_path):
    folder, _, store = world
    features = Features(store, worlds.recipe(folder / "out"))
    with pytest.raises(BadInput, match="request: 'streamer' of each candidate is missing; only the request can tell"):
        features.row(1, {"room": [1]})
    with pytest.raises(BadInput, match="request: 'room_viewers' has 1 values of 2 candidates; send one of each"):
        features.row(1, {"room": [1, 2], "streamer": [1, 2], "room_viewers": [1.0]})
    with pytest.raises(BadInput, match="request: 'r1' is no id; ids are whole numbers, of a string what `string_id`"):
        features.row(1, {"room": ["r1"], "streamer": [1]})
    with pytest.raises(NotNow, match="it was never filled"):
        Features(open_store(str(tmp_path / "new"), create=True)).columns(1, {"room": [1], "streamer": [1]})
