"""Files of strangers: what `init` writes is read by `data table` and trains, unedited."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

import livetrain
from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.configs.spec import Spec, load_spec
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan
from livetrain.trainers.data.sources.table import starter
from livetrain.trainers.data.sources.table.prepare import prepare
from tests.trainers.data.sources.table import styles

# style -> what must have been seen: user, item, has a time, labels, left out, feature columns
SEEN = {
    "shop": (
        "customer_id",
        "sku",
        True,
        {"clicked", "purchase"},
        {"purchase_value"},
        {"tags", "embedding", "price", "brand", "age"},
    ),
    "ratings": ("column0", "column1", True, {"liked"}, {"column2"}, set()),
    "european": ("Kunde", "Artikel", True, {"gekauft"}, set(), {"preis"}),
    "american": ("Member ID", "Item Number", True, {"converted"}, set(), {"list_price", "discount"}),
    "doubled": ("user", "item", False, {"label"}, {"empty", "Channel"}, {"score", "score_2"}),
    "floats": ("uid", "video_id", True, {"liked"}, set(), {"duration"}),
    "lines": ("viewer", "roomId", True, {"gift"}, {"device"}, {"topics", "emb", "viewers"}),
    "parquet": ("userId", "productId", True, {"watched"}, set(), {"category", "quality", "emb"}),
    "orc": ("account", "song", False, {"skipped"}, set(), {"tempo"}),
    "kinds": (
        "user_id",
        "product_id",
        True,
        {"cart", "purchase"},
        {"event_type", "user_session"},
        {"category_code", "price"},
    ),
    "tiny": (None, None, False, {"target"}, set(), {"x1", "x5", "segment"}),
    "watched": ("listener", "podcast", True, {"listen_seconds"}, {"time"}, set()),
}


def started(folder: Path, name: str):
    """Let `init` look at a style's files, prepare the samples, and return its guesses and its recipe."""
    style = next(style for style in styles.STYLES if style.__name__ == name)
    spec, recipe, found = starter.init([str(path) for path in style(folder)], folder, name, {})
    prepare(load_spec(spec, Spec), folder / "data")
    return found, load_recipe(recipe, **{"data.path": str(folder / "data")})


FORMATS = ("shop", "european", "lines", "orc", "kinds", "tiny")  # as unlike each other as six can be


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FORMATS else pytest.mark.slow) for n in SEEN])
def test_starters_are_read_unedited(tmp_path, name):
    found, recipe = started(tmp_path, name)
    user, item, timed, labels, left, columns = SEEN[name]
    assert (found.user and found.user.name) == user
    assert (found.item and found.item.name) == item
    assert (found.time is not None) == timed
    assert set(found.labels) == labels
    assert left <= set(found.left)
    assert columns <= set(load_spec(tmp_path / f"{name}_data.yaml", Spec).spec.columns)
    for split in ("train", "valid", "test"):
        source = Source.open(recipe, split)
        assert source.rows
        for column in {recipe.column(feature) for feature in recipe.features}:
            assert source.nulls(column) < source.rows, column
    scan(Source.open(recipe, "train"), recipe)


QUICK = ("tiny",)  # numbers alone


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SEEN])
def test_starters_train_unedited(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, recipe = started(tmp_path, name)
    assert livetrain.train(recipe).result


def test_starters_use_the_kind_of_feature_that_fits(tmp_path):
    rng = random.Random(1)
    header = ["user", "item", "time", "click", "tags", "vector", "even", "heavy", "sunken"]
    rows = [
        [f"u{n % 9}", n % 7, f"2026-05-{1 + n // 60:02} 08:00:{n % 60:02}", rng.randrange(2), "a|b" if n % 2 else ""]
        + [" ".join(f"{rng.gauss(0, 1):.3f}" for _ in range(20))]
        + [f"{rng.gauss(50, 9):.2f}", f"{rng.lognormvariate(0, 2):.3f}", f"{rng.gauss(0, 9):.2f}" if n % 3 else ""]
        for n in range(400)
    ]
    path = styles.write(tmp_path / "log.csv", header, rows)
    _, recipe, _ = starter.init([str(path)], tmp_path, None, {})
    loaded = load_recipe(recipe)
    wanted = {
        "tags": {"type": "bag", "table": "tags"},
        "vector": {"type": "vector", "width": 20, "normalise": True, "projection": 16},
        "even": {"type": "dense"},
        "heavy": {"type": "dense", "log1p": True},
        "sunken": {"type": "dense", "missing_flag": True},
        "hour": {"type": "id", "table": "hour"},
    }
    told = {name: loaded.features[name].model_dump(exclude_unset=True) for name in wanted}
    assert told == wanted
    assert (loaded.tables["hour"].rows, loaded.tables["hour"].hash) == (24, "modulo")
    assert loaded.evaluate.group_by == "user"


def test_what_is_nowhere_to_be_seen_is_asked_for(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text("user,item,price\n" + "".join(f"u{n % 7},i{n % 5},{n / 3:.2f}\n" for n in range(100)))
    with pytest.raises(BadInput, match="no column looks like an outcome"):
        starter.init([str(path)], tmp_path, None, {})
    spec, _, _ = starter.init([str(path)], tmp_path, None, {"dear": "CAST(price AS DOUBLE) > 10"})
    assert load_spec(spec, Spec).spec.labels == {"dear": "CAST(price AS DOUBLE) > 10"}
    with pytest.raises(BadInput, match="exists already"):
        starter.init([str(path)], tmp_path, None, {"dear": "CAST(price AS DOUBLE) > 10"})


@pytest.mark.slow
def test_the_commands(tmp_path):
    styles.tiny(tmp_path)
    for command in (["init", "train.csv"], ["data", "table", "train_data.yaml", "--out", "data/train"]):
        subprocess.run([sys.executable, "-m", "livetrain", *command], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "data" / "train" / "dataset.json").exists()
