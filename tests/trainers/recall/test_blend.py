"""A blend on a run's days: figures that its channels have alone too, settings that are searched, lists to come."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from livetrain.cli import main as cli
from livetrain.configs.blend_spec import BlendSpec, blend_json_schema
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import SEEN
from livetrain.configs.spec import load_spec
from livetrain.trainers.export import publish
from livetrain.trainers.export.export import export
from livetrain.trainers.export.prediction import Predictor, weights_of
from livetrain.trainers.recall.blend import Blend, blended, check_days
from livetrain.trainers.recall.candidates import candidates
from livetrain.trainers.recall.origin import newest, vectors

SIZE = 10


@pytest.fixture(scope="module")
def liked(towers, tmp_path_factory) -> Path:
    """A list per user: for users below 50 what they wanted on either day, for the others something else."""
    rows = pa.concat_tables(pq.read_table(towers.parents[1] / f"data/{split}") for split in ("valid", "test"))
    rows = rows.filter(pa.compute.equal(rows["label"], 1)).select(["user", "movie"]).drop_null()
    users = {user: [] for user in range(100)}
    for user, movie in zip(rows["user"].to_pylist(), rows["movie"].to_pylist(), strict=True):
        users[user].append(movie if user < 50 else 1)
    path = tmp_path_factory.mktemp("liked") / "liked.parquet"
    lists = [list(dict.fromkeys(own)) for own in users.values()]
    pq.write_table(pa.table({"user": list(users), "movies": lists}), path)
    return path


def spec(towers: Path, liked: Path, **more: object) -> BlendSpec:
    lists = {"candidates": str(liked), "on": "user", "column": "movies", "weight": 2.0}
    channels = {"towers": {"run": str(towers)}, "liked": lists} | more.pop("channels", {})
    return BlendSpec.model_validate(
        {"requests": str(towers), "channels": channels, "size": SIZE, "slices": {"known": "user < 50"}} | more
    )


def test_channels_alone_have_the_figures_that_evaluation_gave(towers, liked, tmp_path):
    content = blended(spec(towers, liked), tmp_path / "blend", lambda text: None)
    result, found = json.loads((towers / "result.json").read_text()), content["test"]
    assert found["requests"] == result["test.click.queries"]
    assert found["channels"]["towers"]["recall_10"] == pytest.approx(result["test.click.recall_10"], abs=1e-9)
    often = found["slices"]["often"]["channels"]["towers"]["recall_10"]
    assert often == pytest.approx(result["test.often.click.recall_10"], abs=1e-9)
    known = found["slices"]["known"]
    assert known["blend"]["recall_10"] == 1.0 == known["channels"]["liked"]["recall_10"]
    assert found["channels"]["liked"]["only_10"] > 0.2
    assert found["channels"]["towers"]["share_10"] + found["channels"]["liked"]["sole_10"] == pytest.approx(1)
    assert found["gain"]["10"]["recall"] > 3 * found["gain"]["10"]["standard_error"] > 0
    assert json.loads((tmp_path / "blend/blend.json").read_text()) == content


def test_a_search_finds_settings_no_worse_than_the_specs(towers, liked, tmp_path):
    pytest.importorskip("optuna")
    bad = {"towers": {"run": str(towers), "weight": 10.0}}

    def made(name: str, **more: object) -> dict:
        return blended(spec(towers, liked, channels=bad, size=5, **more), tmp_path / name, lambda text: None)

    before = made("before")
    one, other = (made(name, search={"trials": 12, "at": 5, "seed": 3}) for name in ("one", "other"))
    assert one == other
    assert "search" not in one["spec"]
    assert one["valid"]["blend"]["recall_5"] > before["valid"]["blend"]["recall_5"]
    again = blended(BlendSpec.model_validate(one["spec"]), tmp_path / "again", lambda text: None)
    assert again["test"] == one["test"]
    assert made("own", search={"trials": 1, "at": 5})["valid"] == before["valid"]


def test_candidates_are_what_the_channels_bring(towers, liked, tmp_path, capsys):
    lists = {"candidates": str(liked), "on": "user", "column": "movies", "quota": 3, "reserve": 1, "when": "user < 20"}
    channels = {"towers": {"run": str(towers)}, "liked": lists}
    (tmp_path / "spec.yaml").write_text(
        json.dumps({"requests": str(towers), "channels": channels, "size": 4, "slices": {"known": "user < 50"}})
    )
    assert not cli.app(["blend", str(tmp_path / "spec.yaml"), "--out", str(tmp_path / "blend")], standalone_mode=False)
    assert "recall@4 on test is" in capsys.readouterr().out
    rows = pq.read_table(towers.parents[1] / "data/test")
    requests, items = rows.drop_columns(["movie", "label"]).slice(0, 60), newest([rows], "movie")
    pq.write_table(requests, tmp_path / "requests.parquet")
    pq.write_table(items, tmp_path / "items.parquet")
    command = ["blend", str(tmp_path / "blend"), "--requests", str(tmp_path / "requests.parquet")]
    command += ["--catalogue", str(tmp_path / "items.parquet"), "--out", str(tmp_path / "out"), "--keep", "user"]
    assert not cli.app(command, standalone_mode=False)
    found = pq.read_table(tmp_path / "out/part-00000.parquet")
    assert found.column_names == ["user", "candidates", "candidate_scores", "candidate_channels"]
    users = vectors(Predictor(weights_of(towers, vectors="user")), requests)
    made = vectors(Predictor(weights_of(towers, vectors="item")), items)
    nearest = items["movie"].to_numpy()[np.argsort(-(users @ made.T), axis=1)[:, :4]].tolist()
    there, liked_by = set(items["movie"].to_pylist()), pq.read_table(liked)["movies"].to_pylist()
    for row, own in zip(found.to_pylist(), nearest, strict=True):
        brought = [movie for movie in liked_by[row["user"]] if movie in there][:3] if row["user"] < 20 else []
        worth: dict[int, float] = {}
        for rank, movie in enumerate(own, 1):
            worth[movie] = 1 / (60 + rank)
        for rank, movie in enumerate(brought, 1):
            worth[movie] = worth.get(movie, 0) + 1 / (60 + rank) + (3 if rank == 1 else 0)
        best = sorted(worth.values(), reverse=True)[:4]
        assert row["candidate_scores"] == pytest.approx(best)
        for movie, score, by in zip(row["candidates"], best, row["candidate_channels"], strict=True):
            assert score == pytest.approx(worth[movie])
            assert by == ["towers"] * (movie in own) + ["liked"] * (movie in brought)


@pytest.mark.parametrize("more", [[], ["--requests", "requests.parquet"]])
def test_a_spec_that_is_not_there_is_named(tmp_path, more):
    command = ["blend", str(tmp_path / "nosuch.yaml"), "--out", str(tmp_path / "out"), *more]
    with pytest.raises(BadInput, match=r"nosuch.yaml: is not there; name a YAML file with channels, or the folder of"):
        cli.app(command, standalone_mode=False)


def test_what_the_user_had_is_no_candidate(towers, liked):
    """The run's history is of other ids; here it is made of items."""
    blend = Blend(spec(towers, liked))
    rows = pq.read_table(towers.parents[1] / "data/test").drop_null()
    table, known = blend.items(None, "test")
    blend.meet(table, known)
    drawn = np.random.default_rng(0)
    had = [drawn.choice(known, 2, replace=False).tolist() for _ in range(20)]
    requests = rows.slice(0, 20).drop_columns(["history"]).append_column("history", pa.array(had))
    blend.seen = "history"
    wanted = np.array([np.flatnonzero(known == own[0])[0] for own in had])  # stays, though it was had
    everything = blend.spec.model_copy(update={"size": len(known)})
    blend.spec = everything
    for row, own in enumerate(blend.lists(requests, known, wanted)[0]):
        assert sorted(known[own[own >= 0]]) == sorted({*known} - {had[row][1]})
    for row, own in enumerate(blend.lists(requests, known)[0]):
        assert sorted(known[own[own >= 0]]) == sorted({*known} - {*had[row]})


def test_no_item_of_a_history_is_none(towers, liked):
    """A null in a list names no item; the item whose id is 0 stays."""
    blend = Blend(spec(towers, liked))
    rows = pq.read_table(towers.parents[1] / "data/test").drop_null().slice(0, 2)
    table, known = blend.items(None, "test")
    blend.meet(table, known)
    known = known.copy()
    known[[3, 5]] = 0, 77
    lists = pa.array([[None, 77], [None]], pa.list_(pa.int64()))
    requests = rows.drop_columns(["history"]).append_column("history", lists)
    blend.seen, blend.spec = "history", blend.spec.model_copy(update={"size": len(known)})
    found = blend.lists(requests, known)[0]
    assert sorted(found[0][found[0] >= 0]) == [place for place in range(len(known)) if place != 5]
    assert sorted(found[1]) == [*range(len(known))]


def test_what_was_seen_is_of_the_column_that_evaluation_reads(towers, liked, tmp_path):
    """evaluate.seen names a feature of a list by its name; of any other name it is the column itself."""
    other = changed(towers, tmp_path / "seen")
    recipe = yaml.safe_load((other / "config.yaml").read_text())
    recipe["features"]["rate"]["column"] = "speed"
    recipe["evaluate"]["seen"] = "rate"
    (other / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    blend = Blend(spec(other, liked, channels={"towers": {"run": str(towers)}}))
    assert blend.seen == blend.recipe.asides()[SEEN] == "rate"


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ({}, "a channel is one of them, and here are 0"),
        ({"run": "a", "published": "b"}, "a channel is one of them, and here are 2"),
        ({"candidates": "a"}, "candidates need the column that tells requests apart"),
        ({"run": "a", "quota": 2, "reserve": 3}, "reserve: 3 are more than the quota of 2"),
        ({"run": "a", "quota": 11}, "11 items are more than the size of 10"),
        ({"run": "a", "weigth": 1}, "weigth"),
        ({"run": "a", "column": "movies"}, "column: it is that of the lists of candidates, and here are none"),
        ({"run": "a", "weight": 0}, "every weight is 0, .* give one a weight above 0"),
    ],
)
def test_a_wrong_spec_is_named(tmp_path, channel, message):
    (tmp_path / "spec.yaml").write_text(json.dumps({"requests": "a", "size": 10, "channels": {"one": channel}}))
    with pytest.raises(BadInput, match=message):
        load_spec(tmp_path / "spec.yaml", BlendSpec)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"size": 2**16}, "size got 65536, wanted at most 65,535"),
        ({"size": 10, "search": {"at": 11}}, "search.at: 11 candidates are more than the size of 10"),
        ({"size": 50, "search": {}}, "search.at: 100 candidates are more than the size of 50"),
        ({"size": 10, "reserve": 6}, "channels: their reserves are 12 items together, more than the size of 10"),
        ({"size": 65_535, "reserve": 2**16}, "channels.one.reserve got 65536, wanted at most 65,535"),
    ],
)
def test_numbers_that_do_not_fit_are_named(tmp_path, content, message):
    own = {"run": "a", "reserve": content.pop("reserve", 0)}
    (tmp_path / "spec.yaml").write_text(json.dumps({"requests": "a", "channels": {"one": own, "two": own}} | content))
    with pytest.raises(BadInput, match=message):
        load_spec(tmp_path / "spec.yaml", BlendSpec)


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("user >", r"channels\.gone\.when: 'user >' is no SQL expression"),
        ("3 > 2", r"channels\.gone\.when: '3 > 2' names no column"),
    ],
)
def test_a_condition_that_is_none_is_named_before_a_channel_is_opened(towers, liked, when, message):
    with pytest.raises(BadInput, match=f"^{message}"):
        Blend(spec(towers, liked, channels={"gone": {"run": "gone", "when": when}}))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"late": "hour >"}, r"slices\.late: 'hour >' is no SQL expression"),
        ({"late": "user"}, r"slices\.late: 'user' is BIGINT, no condition"),
        (
            {"often": "user + 1"},
            r"slices\.often: 'user \+ 1' is BIGINT",
        ),  # in the place of the run's slice of this name
    ],
)
def test_a_slice_is_named_as_the_spec_has_it(towers, liked, tmp_path, asked, message):
    with pytest.raises(BadInput, match=f"^{message}"):
        blended(spec(towers, liked, slices=asked), tmp_path / "new", lambda text: None)


def test_a_condition_is_true_or_false(towers, liked):
    blend = Blend(spec(towers, liked, channels={"towers": {"run": str(towers), "when": "user"}}))
    with pytest.raises(BadInput, match=r"^channels\.towers\.when: 'user' is BIGINT, no condition"):
        blend.channels["towers"].lists(pq.read_table(towers.parents[1] / "data/test"), 3)


def test_what_cannot_be_asked_is_named(towers, liked, tmp_path):
    lists = {"candidates": str(liked), "on": "user", "column": "movies", "when": "movie > 0"}
    with pytest.raises(BadInput, match=r"channels.liked.when: 'movie' is known of an item"):
        Blend(spec(towers, liked, channels={"liked": lists}))
    with pytest.raises(BadInput, match=r"channels.gone: .* neither a run nor published"):
        Blend(spec(towers, liked, channels={"gone": {"run": str(tmp_path)}}))
    with pytest.raises(BadInput, match="has no column 'items'"):
        Blend(spec(towers, liked, channels={"liked": {"candidates": str(liked), "on": "user", "column": "items"}}))
    with pytest.raises(BadInput, match="holds no whole blend"):
        candidates(tmp_path, str(liked), None, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes").write_text("mine")
    with pytest.raises(BadInput, match="holds something that is no blend"):
        blended(spec(towers, liked), tmp_path / "out", lambda text: None)
    with pytest.raises(BadInput, match="has no column 'hour'"):
        blended(spec(towers, liked, slices={"late": "hour > 20"}), tmp_path / "new", lambda text: None)


def changed(run: Path, out: Path, **data: object) -> Path:
    """A copy of a run, as one whose recipe says something else of the data."""
    shutil.copytree(run, out)
    recipe = yaml.safe_load((out / "config.yaml").read_text())
    recipe["data"] |= data
    (out / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return out


def test_a_channel_of_other_items_is_refused(towers, liked, tmp_path):
    """Ids of authors are numbers as those of videos are, and would be taken for videos."""
    other = changed(towers, tmp_path / "authors")
    recipe = yaml.safe_load((other / "config.yaml").read_text())
    recipe["features"]["movie"]["column"] = "author"
    (other / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    with pytest.raises(BadInput, match=r"channels.authors: .* by the column 'author', and .* want 'movie'"):
        Blend(spec(towers, liked, channels={"authors": {"run": str(other), "when": "user > 1"}}))


def test_a_channel_that_learned_the_days_of_the_requests_is_refused(towers, liked, tmp_path):
    def of_days(name: str, train: str) -> Path:
        days = {"train": train, "valid": "2022-05-05..2022-05-05", "test": "2022-05-06..2022-05-06"}
        days |= {"valid": "2022-05-08..2022-05-08", "test": "2022-05-09..2022-05-09"} if name == "later" else {}
        return changed(towers, tmp_path / name, days=days)

    asked, later = of_days("asked", "2022-04-25..2022-05-04"), of_days("later", "2022-04-26..2022-05-05")
    channels = {"towers": {"run": str(asked)}, "later": {"run": str(later), "when": "user > 1"}}
    with pytest.raises(BadInput, match=r"channels.later: .* up to 2022-05-05 .* begin on 2022-05-05"):
        blended(spec(asked, liked, channels=channels), tmp_path / "blend", lambda text: None)
    assert not (tmp_path / "blend").exists()
    assert len(Blend(spec(asked, liked, channels=channels)).channels) == 3  # of requests to come none has seen a day
    export(towers, out=tmp_path / "export")
    publish.publish(tmp_path / "export", str(tmp_path / "models"), "2022-05-10", keep=1)
    shutil.move(later, tmp_path / "runs/towers")
    published = {"later": {"published": str(tmp_path / "models")}}
    with pytest.raises(BadInput, match=r"channels.later: .* up to 2022-05-05"):
        check_days(Blend(spec(asked, liked, runs=str(tmp_path / "runs"), channels=published)), lambda text: None)
    said: list[str] = []
    check_days(Blend(spec(asked, liked, channels={"towers": {"run": str(asked)}})), said.append)
    assert len(said) == 1
    assert said[0].startswith("whether liked learned of the days of the requests cannot be known")
    check_days(Blend(spec(asked, liked, channels={"towers": {"run": str(towers)}})), said.append)
    assert said[1].startswith("whether towers, liked learned")
    check_days(Blend(spec(towers, liked)), said.append)  # both of the same splits
    assert said[2] == said[0]


def test_the_json_schema_knows_the_channels():
    schema = blend_json_schema()
    assert set(schema["$defs"]["Channel"]["properties"]) >= {"run", "published", "candidates", "quota", "reserve"}
