import copy
import json
from typing import Literal

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.configs import registry
from livetrain.configs.errors import BadInput, without_credentials
from livetrain.configs.json_schema import json_schema
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.configs.schema import ModelConfig, Recipe, Section


class Look(Section):
    query: list[str]


class ProbeConfig(ModelConfig):
    """A model that exists in these tests alone."""

    kind: Literal["probe"] = "probe"
    hidden: list[int] = [64, 16]
    looks: list[Look] = []
    dropout: float = 0.0


registry.MODELS.register("probe", ProbeConfig, ProbeConfig)

BASE = """\
data: {path: data/ml-1m}
features:
  user: {type: id, table: user}
  history: {type: sequence, table: movie}
  rate: {type: dense}
tables:
  user: {rows: 6041, dim: 16, hash: modulo}
  movie: {rows: 262144, dim: 16}
model:
  kind: probe
  looks: [{query: [user]}]
tasks: {label: {label: label}}
optimizers: {dense: {lr: 1e-2}}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str = BASE):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_numbers_and_text_are_read_as_yaml_1_2_says(write):
    recipe = load_recipe(write(BASE + "name: 2026-11-24\n"), ["features.history.column=on", "tables.movie.rows=1_000"])
    assert recipe.optimizers.dense.lr == 0.01
    assert recipe.name == "2026-11-24"
    assert recipe.features["history"].column == "on"
    assert recipe.tables["movie"].rows == 1000


def test_overrides_are_applied_in_order_to_any_depth(write):
    overrides = [
        "train.epochs=3",
        "train.epochs=2",
        "tables.movie.dim=32",
        "optimizers.sparse.eps=1e-6",
        "model.hidden=[8]",
        "model.looks.0.query=[history]",
        "data.path=s3://bucket/x?region=eu",
        "cluster.workers=4",
        "tasks.like={label: is_like}",
    ]
    recipe = load_recipe(write(), overrides)
    assert recipe.train.epochs == 2
    assert recipe.tables["movie"].dim == 32
    assert recipe.optimizers.sparse.eps == 1e-6
    assert recipe.model == ProbeConfig(hidden=[8], looks=[Look(query=["history"])])
    assert recipe.data.path == "s3://bucket/x?region=eu"
    assert recipe.cluster.workers == 4
    assert list(recipe.tasks) == ["label", "like"]


def test_an_override_leaves_what_an_alias_shares(write):
    shared = BASE.replace("user: {rows: 6041, dim: 16, hash: modulo}", "user: &wide {rows: 9, dim: 16}")
    shared = shared.replace("movie: {rows: 262144, dim: 16}", "movie: *wide")
    recipe = load_recipe(write(shared), ["tables.movie.dim=32"])
    assert [table.dim for table in recipe.tables.values()] == [16, 32]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.epoch=2", "unknown key train.epoch (did you mean 'epochs'?)"),
        ("trian.epochs=2", "unknown key trian (did you mean 'train'?)"),
        ("tables.moive.dim=32", "the recipe has no table 'moive' (did you mean 'movie'?)"),
        ("features.histroy.max_length=3", "the recipe has no feature 'histroy' (did you mean 'history'?)"),
        ("tasks.lable.weight=3", "the recipe has no task 'lable' (did you mean 'label'?)"),
        ("features.history.max_lenght=3", "unknown key features.history.max_lenght (did you mean 'max_length'?)"),
        ("features.user.type=ids", "features.user.type got 'ids', wanted one of dense, "),
        ("model.hiden=[3]", "unknown key model.hiden (did you mean 'hidden'?)"),
        ("model.looks.0.quer=[a]", "unknown key model.looks.0.quer (did you mean 'query'?)"),
        ("model.looks.2.query=[a]", "model.looks is a list of 1; count from 0, not '2'"),
        ("model.dropout=x", "model.dropout got 'x', wanted a number"),
        ("model.hidden=[a]", "model.hidden.0 got 'a', wanted a whole number"),
        ("tables.movie.dim=wide", "tables.movie.dim got 'wide', wanted a whole number"),
        ("tables.movie.dim=33", "tables.movie.dim got 33, wanted a multiple of 4"),
        ("tables.a-b={rows: 4, dim: 4}", "tables.a-b got 'a-b', wanted a name of letters, digits and _"),
        ("optimizers.dense.lr=.inf", "optimizers.dense.lr got inf, wanted a finite number"),
        ("train.epochs=0", "train.epochs got 0, wanted greater than 0"),
        ("train=5", "train got 5, wanted a mapping of keys"),
        ("data.path=", "data.path got nothing, wanted text"),
        ("data.path.x=1", "data.path is one value and has no keys"),
        ("name=20261124", "name got 20261124, wanted text in quotes"),
        ("train.epochs", "write it as dotted.key=value, as in train.epochs=2"),
        ("train..epochs=2", "write it as dotted.key=value, as in train.epochs=2"),
        ("train.epochs=[", "the value is no valid YAML"),
    ],
)
def test_a_wrong_override_is_named_with_its_mend(write, override, sentence):
    with pytest.raises(BadInput) as caught:
        load_recipe(write(), [override])
    assert str(caught.value).startswith(f"override '{override}': {sentence}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("split", "days", "sentence"),
    [
        ("train", "2025-05-26..2025-05-25", ".train got '2025-05-26..2025-05-25', wanted its first and last day"),
        ("valid", "2025-05-27", ".valid got '2025-05-27', wanted its first and last day, as 2022-04-25..2022-05-04"),
        ("test", "2025-05-32..2025-06-01", ".test got '2025-05-32..2025-06-01', wanted its first and last day"),
        ("valid", "2025-05-26..2025-05-27", ": valid (2025-05-26..2025-05-27) must begin after train"),
        ("test", "2025-05-20..2025-05-21", ": test (2025-05-20..2025-05-21) must begin after valid"),
    ],
)
def test_days_that_are_no_splits(write, split, days, sentence):
    good = {"train": "2025-05-25..2025-05-26", "valid": "2025-05-27..2025-05-27", "test": "2025-05-28..2025-05-29"}
    tree = ", ".join(f"{name}: {value}" for name, value in (good | {split: days}).items())
    with pytest.raises(BadInput) as caught:
        load_recipe(write(), [f"data.days={{{tree}}}"])
    assert f": data.days{sentence}" in str(caught.value)
    assert load_recipe(write(), [f"data.days.{name}={value}" for name, value in good.items()]).data.days.of(
        "train"
    ) == [
        "2025-05-25",
        "2025-05-26",
    ]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("table: movie}", "tabel: movie}", ", line 4: unknown key features.history.tabel (did you mean 'table'?)"),
        ("{type: dense}", "{}", ", line 5: features.rate.type is missing"),
        ("kind: probe", "kind: porbe", ", line 10: model.kind: there is no model 'porbe' (did you mean 'probe'?)"),
        ("kind: probe", "hidden: [1]", ", line 9: model.kind is missing"),
        ("kind: probe", "kind: [probe]", ", line 10: model.kind: there is no model"),
        ("optimizers:", "train:\noptimizers:", ", line 13: train got nothing, wanted a mapping of keys"),
        ("tasks:", "name: a\nname: b\ntasks:", ", line 13: name is already set in line 12; keep one of them"),
        ("dim: 16}\nmodel", "dim: 16, dim: 8}\nmodel", ", line 8: tables.movie.dim is already set in line 8"),
        ("tasks:", "1: 2\ntasks:", ", line 12: the key 1 is no text; put it in quotes"),
        ("tasks: {label: {label: label}}", "tasks: {}", ", line 12: tasks has 0 keys, wanted at least 1"),
        (
            "table: user}",
            "table: usr}",
            ", line 3: features.user.table: there is no table 'usr' (did you mean 'user'?)",
        ),
        ("data: {path", "data: {patth", ", line 1: unknown key data.patth (did you mean 'path'?) (and 1 more error)"),
        ("data: {path: data/ml-1m}", "data: [", ", line 3: this is no valid YAML"),
        ("data: {path: data/ml-1m}", "data: !!python/object/apply:os.getcwd []", ", line 1: this is no valid YAML"),
    ],
)
def test_a_wrong_file_is_named_with_line_and_mend(write, old, new, sentence):
    assert old in BASE
    path = write(BASE.replace(old, new, 1))
    with pytest.raises(BadInput) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}{sentence}")


@pytest.mark.parametrize("text", ["", "- a\n", "word\n"])
def test_a_file_without_keys_is_refused(write, text):
    with pytest.raises(BadInput, match="a recipe is a mapping of keys"):
        load_recipe(write(text))


def test_a_file_that_cannot_be_read_is_refused(write, tmp_path):
    path = write()
    with pytest.raises(BadInput, match=r"no such recipe file \(did you mean '.*recipe.yaml'\?\)"):
        load_recipe(path.with_name("recpie.yaml"))
    with pytest.raises(BadInput, match="no such recipe file"):
        load_recipe(tmp_path / "none" / "recipe.yaml")
    with pytest.raises(BadInput, match="cannot be read"):
        load_recipe(tmp_path)
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(BadInput, match="no UTF-8"):
        load_recipe(path)


def test_a_file_that_contains_itself_is_refused(write):
    with pytest.raises(BadInput, match="line 14: this value contains itself by an anchor; write it out"):
        load_recipe(write(BASE + "a: &a\n  b: *a\n"))


def test_a_check_across_sections_names_file_and_overrides(write):
    path = write()
    with pytest.raises(BadInput) as caught:
        load_recipe(path, ["cluster.workers=5"])
    assert str(caught.value).startswith(f"{path} with cluster.workers=5: data.shards: 192 shards do not divide")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://KEY:secret@bucket/a", "s3://bucket/a"),
        ("s3://KEY:se/c+r=@bucket/a@b", "s3://bucket/a@b"),
        ("s3://bucket/a?access_key=K&secret_key=S&region=eu", "s3://bucket/a?access_key=***&secret_key=***&region=eu"),
        ("https://host/a?X-Amz-Signature=abc&x=1", "https://host/a?X-Amz-Signature=***&x=1"),
        ("hdfs://me@host:8020/a@b", "hdfs://me@host:8020/a@b"),
        ("hdfs://host:8020/a@b", "hdfs://host:8020/a@b"),
        ("abfs://box@account/a", "abfs://box@account/a"),
        ("ray://head:10001", "ray://head:10001"),
        ("data/ml-1m", "data/ml-1m"),
    ],
)
def test_credentials_of_uris_are_left_out(write, uri, shown):
    assert without_credentials(uri) == shown
    recipe = load_recipe(write(), [f"data.path='{uri}'"])
    assert recipe.data.path == uri
    assert yaml.safe_load(dump_recipe(recipe))["data"]["path"] == shown


def test_errors_show_no_credentials(write):
    with pytest.raises(BadInput) as caught:
        load_recipe(write(), ["data.batch_size=s3://KEY:secret@bucket/a"])
    assert "secret" not in str(caught.value)
    assert "bucket" in str(caught.value)


def test_the_dump_shows_every_default_in_the_schemas_order(write):
    tree = yaml.safe_load(dump_recipe(load_recipe(write())))
    assert list(tree) == list(Recipe.model_fields)
    assert list(tree["tables"]) == ["user", "movie"]
    assert tree["train"]["epochs"] == 1
    assert tree["cluster"]["topology"]["hbm_gb"] == 80
    assert tree["model"] == {"kind": "probe", "hidden": [64, 16], "looks": [{"query": ["user"]}], "dropout": 0.0}


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,6}", fullmatch=True)
TEXTS = st.one_of(
    st.sampled_from(
        ["yes", "on", "null", "~", "1e-3", "12:30", "010", "2026-11-24", "true", "0x1f", "<<", "=", "1_000"]
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12),
).filter(lambda text: "://" not in text)
FACTORS = st.floats(1e-12, 1e6)
DEVIATIONS = st.floats(0, 1000)


@st.composite
def trees(draw):
    """Draw a recipe's tree with names, texts and numbers of every kind that YAML could mistake."""
    tables = draw(st.dictionaries(NAMES, st.integers(1, 2**40), min_size=1, max_size=3))
    features = {}
    for number, table in enumerate(tables):
        kind = draw(st.sampled_from(["id", "sequence"]))
        features[f"f{number}"] = {"type": kind, "table": table, "column": draw(st.none() | TEXTS)}
    features[draw(NAMES.filter(lambda name: name not in features))] = {"type": "dense"}
    return {
        "name": draw(st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)),
        "data": {"path": draw(TEXTS)},
        "features": features,
        "tables": {
            name: {"rows": rows, "dim": 4, "init_std": draw(st.floats(0, 1000))} for name, rows in tables.items()
        },
        "model": {"kind": "probe", "hidden": draw(st.lists(st.integers())), "dropout": draw(FACTORS)},
        "tasks": {name: {"label": draw(TEXTS)} for name in draw(st.sets(NAMES, min_size=1, max_size=2))},
        "optimizers": {"sparse": {"eps": draw(FACTORS)}, "dense": {"clip_norm": draw(st.none() | FACTORS)}},
    }


@settings(deadline=None)
@given(tree=trees())
def test_a_dumped_recipe_loads_as_itself(tree, tmp_path_factory):
    recipe = Recipe.model_validate(tree)
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


@settings(deadline=None)
@given(lr=FACTORS)
def test_an_override_equals_the_same_key_in_the_file(lr, tmp_path_factory):
    path = tmp_path_factory.mktemp("override") / "recipe.yaml"
    path.write_text(BASE)
    overridden = load_recipe(path, [f"optimizers.dense.lr={lr!r}"])
    path.write_text(BASE.replace("lr: 1e-2", f"lr: {lr!r}"))
    assert load_recipe(path) == overridden


def test_the_json_schema_accepts_recipes_and_refuses_others(write):
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    tree = json.loads(load_recipe(write()).model_dump_json())
    assert check.is_valid(tree)
    for section, key, value in [("train", "epoch", 1), ("model", "kind", "nope"), ("model", "hiden", [1])]:
        wrong = copy.deepcopy(tree)
        wrong[section][key] = value
        assert not check.is_valid(wrong), (section, key)
    del tree["model"]["kind"]
    assert not check.is_valid(tree)
    assert not check.is_valid({"base": 3, "name": "x"})
    assert check.is_valid({"base": "recipe.yaml", "train": {"epochs": 2}})
    assert not check.is_valid({"train": {"epochs": 2}})


def test_a_recipe_over_another_one(write, tmp_path):
    write()
    (tmp_path / "sub").mkdir()
    over = tmp_path / "sub/over.yaml"
    over.write_text(
        "base: ../recipe.yaml\nfeatures: {age: {type: dense}}\nmodel: {hidden: [8]}\noptimizers: {dense: {lr: 0.1}}\n"
    )
    top = tmp_path / "top.yaml"
    top.write_text("base: sub/over.yaml\nmodel: {looks: []}\n")
    recipe = load_recipe(top, ["train.epochs=3"])
    assert list(recipe.features) == ["user", "history", "rate", "age"]
    assert (recipe.model.hidden, recipe.model.looks) == ([8], [])
    assert (recipe.optimizers.dense.lr, recipe.train.epochs) == (0.1, 3)
    assert load_recipe(over).model.looks[0].query == ["user"]
    assert "base" not in dump_recipe(recipe)


def test_what_is_wrong_below_a_recipe_is_named(write, tmp_path):
    base, over = write(), tmp_path / "over.yaml"

    def refused(text: str) -> str:
        over.write_text(text)
        with pytest.raises(BadInput) as caught:
            load_recipe(over)
        return str(caught.value)

    assert refused("base: recipe.yaml\ntrain: {epoch: 3}\n").startswith(f"{over}, line 2: unknown key train.epoch")
    assert refused("base: [1]\n") == f"{over}, line 1: base is the path of another recipe file, not a list"
    assert refused("base: none.yaml\n") == (
        f"{over}, line 1: base: there is no recipe file {tmp_path}/none.yaml; write its path as seen from {tmp_path}/"
    )
    assert f"base: {over} is itself built on {over}" in refused("base: over.yaml\n")
    write(BASE.replace("rows: 6041", "rows: many"))
    assert refused("base: recipe.yaml\n").startswith(f"{base}, line 7: tables.user.rows got 'many'")
