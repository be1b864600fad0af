"""Recipes on bases: what is merged, what is replaced, what is taken away, and who is to blame."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.configs.bases import take_away
from livetrain.configs.errors import BadInput
from livetrain.configs.json_schema import json_schema
from livetrain.configs.load import load_recipe, override

ROOT = Path(__file__).parents[2]
BASE = """\
data:
  path: data/somewhere
  negatives: {catalogue: items.parquet, item: movie, task: like}
features:
  user: {type: id, table: user}
  movie: {type: id, table: movie}
  author: {type: id, table: author}
  hour: {type: id, table: hour}
  user_movie: {type: cross, of: [user, movie], table: crossed}
  user_movie_hour: {type: cross, of: [user, movie, hour], table: crossed}
  watched: {type: sequence, table: movie}
  watched_author: {type: sequence, table: author}
  watched_gap: {type: sequence, table: gap}
  liked: {type: sequence, table: movie}
  rate: {type: dense}
tables:
  user: {rows: 64, dim: 4}
  movie: {rows: 64, dim: 4}
  author: {rows: 64, dim: 4}
  hour: {rows: 64, dim: 4}
  gap: {rows: 64, dim: 4}
  crossed: {rows: 64, dim: 4}
model:
  kind: esmm
  chains: [[click, view, gift], [click, like]]
  pooled: [watched_gap]
  attention:
  - {query: [movie, author], events: [watched, watched_author], side: [watched_gap]}
  - {query: [movie], events: [liked]}
tasks:
  click: {label: click, negatives_kept: 1}
  view: {label: view, negatives_kept: 1}
  gift: {label: gift, negatives_kept: 1}
  like: {label: like, weight: 2, negatives_kept: 1}
optimizers:
  sparse: {lr: 0.1, weight_decay: 1e-3}
  dense: {kind: adam, lr: 0.01, clip_norm: 3}
gradients: {scope: trunk, measure_every: 50}
train: {select: new.like.auc}
evaluate: {group_by: user, seen: watched, slices: {new: rate < 3, old: rate > 9}}
"""


@pytest.fixture
def over(tmp_path):
    """Return a function that loads a recipe over the base above."""
    (tmp_path / "base.yaml").write_text(BASE)

    def over(text: str, *overrides: str, **values: Any):
        (tmp_path / "over.yaml").write_text(f"base: base.yaml\n{text}\n")
        return load_recipe(tmp_path / "over.yaml", overrides, **values)

    return over


@pytest.fixture
def refused(over):
    def refused(text: str, *overrides: str, **values: Any) -> str:
        with pytest.raises(BadInput) as caught:
            over(text, *overrides, **values)
        return str(caught.value)

    return refused


def test_a_feature_goes_wherever_it_is_named(over):
    recipe = over("features: {watched_gap: null, hour: null}")
    assert not {"watched_gap", "hour"} & {*recipe.features}
    assert not {"gap", "hour"} & {*recipe.tables}  # nobody else looked them up
    assert recipe.model.pooled == recipe.model.attention[0].side == []
    assert recipe.features["user_movie_hour"].of == ["user", "movie"]
    assert "movie" in recipe.tables


def test_what_cannot_be_without_it_goes_too(over):
    recipe = over("features: {user: null, watched: null, watched_author: null}")
    assert not {"user_movie"} & {*recipe.features}  # a cross of one
    assert [look.events for look in recipe.model.attention] == [["liked"]]
    assert recipe.features["user_movie_hour"].of == ["movie", "hour"]
    assert recipe.evaluate.seen is None
    assert recipe.evaluate.group_by == "user"  # a column, which is there still


def test_an_event_goes_with_what_it_is_compared_with(over):
    for name in ("author", "watched_author"):
        look = over(f"features: {{{name}: null}}").model.attention[0]
        assert (look.query, look.events, look.side) == (["movie"], ["watched"], ["watched_gap"])


def test_a_table_goes_with_its_features(over):
    recipe = over("tables: {author: null, crossed: null}")
    assert not {"author", "watched_author", "user_movie", "user_movie_hour"} & {*recipe.features}
    assert not {"author", "crossed"} & {*recipe.tables}
    assert recipe.model.attention[0].query == ["movie"]


def test_a_table_stays_for_a_feature_that_comes(over):
    recipe = over("features: {hour: null, weekday: {type: id, table: hour}}")
    assert recipe.features["weekday"].table == "hour"
    assert "hour" in over("features: {hour: null, weekday: {type: id, table: hour}}\ntables: {hour: {dim: 8}}").tables


def test_a_task_goes_with_its_negatives_and_from_chains_and_what_selects(over):
    recipe = over("tasks: {like: null, view: null}")
    assert list(recipe.tasks) == ["click", "gift"]
    assert recipe.model.chains == [["click", "gift"]]
    assert recipe.data.negatives is None
    assert recipe.train.select is None


def test_a_slice_goes_with_what_selects_by_it(over):
    recipe = over("evaluate: {slices: {new: null}}")
    assert list(recipe.evaluate.slices) == ["old"]
    assert recipe.train.select is None
    assert over("evaluate: {slices: {old: null}}").train.select == "new.like.auc"


def test_a_warm_start_forgets_what_is_gone(over, tmp_path):
    start = (
        "train: {warm_start: {run: r, map: {tables.hour: tables.h, tables.user: tables.u}, except: [features.hour.x]}}"
    )
    (tmp_path / "middle.yaml").write_text(f"base: base.yaml\n{start}\n")
    (tmp_path / "top.yaml").write_text("base: middle.yaml\nfeatures: {hour: null}\n")
    start = load_recipe(tmp_path / "top.yaml").train.warm_start
    assert (start.map, start.left_out) == ({"tables.user": "tables.u"}, [])


def test_an_override_takes_away_like_a_recipe(over):
    wanted = over("features: {hour: null}\ntasks: {like: null}")
    assert over("name: null", "features.hour=null", "tasks.like=null") == wanted
    assert over("name: null", features={"hour": None}, tasks={"like": None}) == wanted
    assert over("name: null", **{"features.hour": None, "tasks.like": None}) == wanted
    assert override(over("name: null"), {"features.hour": None, "tasks.like": None}) == wanted
    assert over("name: null", "features.hour=null", "features.hour={type: dense}").features["hour"].type == "dense"


def test_a_recipe_in_between_takes_away_for_all_above_it(over, tmp_path):
    (tmp_path / "middle.yaml").write_text("base: base.yaml\nfeatures: {hour: null}\n")
    (tmp_path / "top.yaml").write_text("base: middle.yaml\nfeatures: {hour: {type: dense}}\n")
    recipe = load_recipe(tmp_path / "top.yaml")
    assert recipe.features["hour"].type == "dense"
    assert recipe.features["user_movie_hour"].of == ["user", "movie"]


def test_the_features_of_a_base_without_a_kind_are_found(tmp_path):
    (tmp_path / "base.yaml").write_text(
        BASE.replace("  kind: esmm\n  chains: [[click, view, gift], [click, like]]\n", "")
    )
    (tmp_path / "middle.yaml").write_text("base: base.yaml\nfeatures: {liked: null}\n")
    (tmp_path / "top.yaml").write_text("base: middle.yaml\nmodel: {kind: mmoe}\n")
    assert len(load_recipe(tmp_path / "top.yaml").model.attention) == 1


@pytest.mark.parametrize(
    ("text", "section", "wanted"),
    [
        ("model: {kind: mmoe, experts: 2}", lambda r: (r.model.kind, r.model.attention), ("mmoe", [])),
        ("model: {tower_units: [8]}", lambda r: (r.model.kind, r.model.pooled), ("esmm", ["watched_gap"])),
        ("optimizers: {sparse: {kind: adagrad}}", lambda r: r.optimizers.sparse.weight_decay, 0),
        ("optimizers: {sparse: {kind: rowwise_adagrad}}", lambda r: r.optimizers.sparse.weight_decay, 1e-3),
        ("optimizers: {dense: {kind: sgd, lr: 1}}", lambda r: r.optimizers.dense.clip_norm, None),
        ("optimizers: {dense: {lr: 1}}", lambda r: r.optimizers.dense.clip_norm, 3),
        ("gradients: {kind: uncertainty}", lambda r: (r.gradients.scope, r.gradients.measure_every), ("shared", None)),
        ("gradients: {kind: sum, scope: shared}", lambda r: r.gradients.measure_every, 50),
        (
            "tasks: {like: {kind: focal, label: l, negatives_kept: 1}}\nmodel: {chains: [[click, view]]}",
            lambda r: (r.tasks["like"].label, r.tasks["like"].weight),
            ("l", 1),
        ),
        ("tasks: {like: {kind: binary}}", lambda r: r.tasks["like"].weight, 2),
        ("features: {hour: {type: dense}}\ntables: {hour: null}", lambda r: r.features["hour"].type, "dense"),
    ],
)
def test_a_section_of_another_kind_replaces_the_bases(over, text, section, wanted):
    assert section(over(text)) == wanted
    if "null" not in text:
        assert section(over("name: null", **yaml.safe_load(text))) == wanted


@pytest.mark.parametrize(
    ("text", "where", "sentence"),
    [
        ("model: {kind: mmoe, chains: []}", "over.yaml, line 2", "unknown key model.chains"),
        ("model: {experts: 3}", "over.yaml, line 2", "unknown key model.experts"),
        ("model:\n  kind: ncf", "over.yaml, line 2", "model.item is missing"),
        (
            "model: {kind: fm}\nfeatures:\n  hour: {max_length: 3}",
            "over.yaml, line 4",
            "unknown key features.hour.max_length",
        ),
        ("tasks: {like: {kind: focal}}", "over.yaml, line 2", "tasks.like.label is missing"),
        ("model: {attention: [{query: [movie]}]}", "over.yaml, line 2", "model.attention.0.events is missing"),
        (
            "features:\n  nobody: null",
            "over.yaml, line 3",
            "features.nobody: null takes a feature away, and there is no",
        ),
        ("tasks: {like: null, clck: null}", "over.yaml, line 2", "tasks.clck: null takes a task away, and there is no"),
        ("tables: {spare: {rows: 4, dim: 4}}", "over.yaml, line 2", "tables.spare: no feature uses this table"),
        (
            "features: {rate: {type: id, table: user}, hour: {type: dense}}",
            "over.yaml, on {base}, line 20",
            "tables.hour: no",
        ),
        ("cluster: {workers: 5}", "over.yaml", "data.shards: 192 shards do not divide"),
        ("model: {chains: [[click]]}", "over.yaml, line 2", "model.chains.0 has 1 entries, wanted at least 2"),
    ],
)
def test_the_file_to_blame_is_named(refused, tmp_path, text, where, sentence):
    said = refused(text)
    place = where.format(base=tmp_path / "base.yaml")
    assert said.startswith(f"{tmp_path}/{place}")
    assert sentence in said


def test_the_recipe_is_to_blame_for_the_kind_of_what_the_base_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for short paths: a message is cut beyond a length
    (tmp_path / "base.yaml").write_text(BASE.replace("  kind: esmm\n", ""))
    (tmp_path / "over.yaml").write_text("base: base.yaml\nmodel: {kind: mmoe}\n")
    with pytest.raises(BadInput) as caught:
        load_recipe("over.yaml")
    assert str(caught.value).startswith("over.yaml, line 2, on base.yaml, line 24: unknown key model.chains")


def test_what_was_taken_away_is_to_blame_for_what_is_missing(tmp_path, over):
    (tmp_path / "ncf.yaml").write_text("base: base.yaml\nmodel: {kind: ncf, item: movie}\nfeatures: {liked: null}\n")
    (tmp_path / "top.yaml").write_text("base: ncf.yaml\n\nfeatures:\n  movie: null\n")
    over("name: null")
    with pytest.raises(BadInput, match=r"top.yaml, line 4: model.item is missing"):
        load_recipe(tmp_path / "top.yaml")
    with pytest.raises(BadInput, match=r"^override 'features.movie=null': model.item is missing"):
        load_recipe(tmp_path / "ncf.yaml", ["features.movie=null"])
    (tmp_path / "top.yaml").write_text("base: ncf.yaml\nfeatures: {movie: null}\nmodel: {item: author}\n")
    assert load_recipe(tmp_path / "top.yaml").model.item == "author"


def test_an_override_that_takes_away_nothing_is_refused(refused):
    taken = "override 'features.huor=null': features.huor: null takes a feature away"
    assert refused("", "features.huor=null") == f"{taken}, and there is no feature 'huor' (did you mean 'hour'?)"


def test_null_where_nothing_is_below_is_no_part(tmp_path):
    (tmp_path / "alone.yaml").write_text(BASE.replace("{type: dense}", ""))
    with pytest.raises(BadInput, match=r"line 15: features.rate got nothing, wanted a mapping of keys"):
        load_recipe(tmp_path / "alone.yaml")


NAMES = {(section, name) for section in ("features", "tables", "tasks") for name in yaml.safe_load(BASE)[section]}


def texts(tree: Any) -> set[str]:
    """Return every text that is a value or an entry of a list."""
    if isinstance(tree, dict | list):
        return set().union(*map(texts, tree.values() if isinstance(tree, dict) else tree))
    return {tree} if isinstance(tree, str) else set()


@settings(deadline=None, max_examples=60)
@given(taken=st.sets(st.sampled_from(sorted(NAMES)), min_size=1), order=st.randoms())
def test_nothing_names_what_is_gone(taken, order):
    """Whatever is taken away, in whichever order and however many files take part in it."""
    base = yaml.safe_load(BASE)
    before = copy.deepcopy(base)
    nulls: dict[str, dict] = {}
    for section, name in taken:
        nulls.setdefault(section, {})[name] = None
    left, over, _ = take_away(base, nulls, str)
    assert base == before
    assert over == {section: {} for section in nulls}
    by_one = base
    for section, name in order.sample(sorted(taken), len(taken)):
        if name in by_one[section]:
            by_one, _, _ = take_away(by_one, {section: {name: None}}, str)
    assert by_one == left
    said = texts({"features": left["features"], "model": left["model"], "seen": left["evaluate"].get("seen")})
    tables = texts({name: part.get("table") for name, part in left["features"].items()})
    assert tables == {*left["tables"]}  # none too few and none too many
    others = {*left["features"], *left["tasks"], *left["tables"], "esmm", "id", "cross", "sequence", "dense"}
    assert not {name for section, name in taken if section != "tables"} & (said - others)
    assert {*left["features"]} <= {*base["features"]} - {name for section, name in taken if section == "features"}


def test_the_json_schema_lets_a_recipe_take_away():
    import jsonschema

    check = jsonschema.Draft202012Validator(json_schema())
    for section in ("features", "tables", "tasks"):
        assert check.is_valid({"base": "base.yaml", section: {"gone": None}})
    assert not check.is_valid({"base": "base.yaml", "train": None})
