"""Spaces: what is drawn lies in the domains, and what cannot be searched is refused in one sentence with its line."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe, load_recipe, override
from livetrain.configs.space import Choice, Integer, LogUniform, load_space, parse_space
from livetrain.configs.trees import dump_tree
from tests import samples

ROOT = Path(__file__).parents[2]
RECIPE = samples.recipe(Path("data"))


@st.composite
def domains(draw):
    """A domain's mapping of any kind."""
    kind = draw(st.sampled_from(["choice", "uniform", "log_uniform", "integer"]))
    if kind == "choice":
        return {"choice": draw(st.lists(st.integers() | st.text(max_size=3), min_size=1, max_size=4, unique=True))}
    if kind == "integer":
        low = draw(st.integers(-1000, 1000))
        return {"integer": [low, low + draw(st.integers(1, 1000))]}
    low = draw(st.floats(1e-6, 1e3))
    return {kind: [low, low * draw(st.floats(1.01, 1e4))]}


@given(st.dictionaries(st.sampled_from(["a.b", "c", "d.e.f"]), domains(), min_size=1), st.integers(0, 99))
def test_draws_lie_in_their_domains_and_depend_on_seed_and_number_alone(tree, number):
    space = parse_space(tree)
    drawn = space.sample(7, number)
    assert drawn == parse_space(space.tree()).sample(7, number)
    assert list(drawn) == list(tree)
    for key, value in drawn.items():
        domain = space.domains[key]
        if isinstance(domain, Choice):
            assert value in domain.choice
        else:
            low, high = domain.ends()
            assert low <= value <= high
            assert isinstance(value, int) == isinstance(domain, Integer)


def test_a_log_uniform_draw_is_uniform_in_its_logarithm():
    space = parse_space({"x": {"log_uniform": [1e-4, 1]}})
    logs = [math.log10(space.sample(1, n)["x"]) for n in range(2000)]
    shares = [sum(-4 + i <= x < -3 + i for x in logs) / len(logs) for i in range(4)]
    assert shares == pytest.approx([0.25] * 4, abs=0.04)
    assert isinstance(space.domains["x"], LogUniform)


def test_a_conditional_key_is_drawn_only_under_its_condition():
    space = parse_space(
        {
            "a": {"choice": ["x", "y", "z"]},
            "b": {"choice": [1, 2], "when": {"a": ["x", "y"]}},
            "c": {"uniform": [0, 1], "when": {"b": 2}},
        }
    )
    draws = [space.sample(0, n) for n in range(200)]
    assert all(("b" in d) == (d["a"] in ("x", "y")) for d in draws)
    assert all(("c" in d) == (d.get("b") == 2) for d in draws)
    assert {tuple(d) for d in draws} == {("a",), ("a", "b"), ("a", "b", "c")}


def test_every_space_that_is_shipped_fits_its_recipe_and_reads_back_as_written(tmp_path):
    paths = sorted((ROOT / "configs/spaces").glob("*.yaml"))
    assert paths
    for path in paths:
        named = next(line for line in path.read_text().splitlines() if "livetrain tune " in line).split()
        space = load_space(path)
        space.check(load_recipe(ROOT / next(word for word in named if word.startswith("configs/recipes/"))))
        (tmp_path / path.name).write_text(dump_tree(space.tree()))
        assert load_space(tmp_path / path.name).domains == space.domains


def test_the_condition_of_a_key_is_met_where_its_values_are_checked():
    tree = {
        "optimizers.sparse.kind": {"choice": ["sgd", "rowwise_adagrad"]},
        "optimizers.sparse.weight_decay": {
            "uniform": [0, 1e-3],
            "when": {"optimizers.sparse.kind": "rowwise_adagrad"},
        },
    }
    parse_space(tree).check(RECIPE)
    with pytest.raises(BadInput, match="'sgd' ignores it"):
        parse_space(tree | {"optimizers.sparse.weight_decay": {"uniform": [0, 1e-3]}}).check(
            override(RECIPE, {"optimizers.sparse.kind": "sgd"})
        )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("optimizers.dense.lrr: {uniform: [0.1, 0.2]}", "unknown key optimizers.dense.lrr (did you mean 'lr'?)"),
        ("optimizer.dense.lr: {uniform: [0.1, 0.2]}", "unknown key optimizer (did you mean 'optimizers'?)"),
        ("tables.film.dim: {choice: [4, 8]}", "the recipe has no table 'film'"),
        ("optimizers.dense.lr: {uniform: [-0.1, 0.2]}", "optimizers.dense.lr got -0.1, wanted greater than 0"),
        ("optimizers.dense.lr: {choice: [0.1, fast]}", "optimizers.dense.lr got 'fast', wanted a number"),
        ("train.epochs: {uniform: [1, 3]}", "train.epochs got 1.764, wanted a whole number"),
        ("tables.movie.dim: {integer: [4, 8]}", "tables.movie.dim got 5, wanted a multiple of 4"),
        ("model.kind: {choice: [din, dinn]}", "there is no model 'dinn'"),
        ("data.batch_size: {choice: [96, 100]}", "100 rows do not divide among 12 data.shards; 96, 108 would"),
        ("optimizers.dense.lr: {uniform: [0.2, 0.1]}", "0.2 to 0.1 is no range; write the lower end first"),
        ("optimizers.dense.lr: {log_uniform: [0, 0.1]}", "log_uniform from 0.0: the lower end must be above 0"),
        ("optimizers.dense.lr: {uniform: [0.1]}", "optimizers.dense.lr: "),
        ("optimizers.dense.lr: {unifrom: [0.1, 0.2]}", "exactly one of choice, uniform, log_uniform, integer"),
        ("optimizers.dense.lr: {choice: []}", "choice"),
        ("optimizers.dense.lr: {uniform: [0.1, 0.2], step: 1}", "unknown key step"),
        ("optimizers.dense.lr: 0.1", "exactly one of"),
        ("optimizers.dense.lr: {uniform: [0.1, 0.2], when: {train.epochs: 1}}", "no choice written above it"),
        ("cluster.workers: {choice: [1, 2]}", "cluster.workers cannot be searched"),
        ("name: {choice: [a, b]}", "name cannot be searched"),
        ("train.select: {choice: [click.auc]}", "train.select cannot be searched: all trials must be judged alike"),
    ],
)
def test_a_bad_key_is_refused_with_its_line(tmp_path, line, sentence):
    path = tmp_path / "space.yaml"
    path.write_text(f"train.seed: {{choice: [1, 2]}}\n{line}\n")
    with pytest.raises(BadInput) as error:
        load_space(path).check(RECIPE)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_condition_on_a_value_that_is_never_drawn_is_refused():
    tree = {"a": {"choice": [1, 2]}, "b": {"uniform": [0, 1], "when": {"a": 3}}}
    with pytest.raises(BadInput, match="b: when asks for a: 3, which is none of its choices"):
        parse_space(tree)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a space is a mapping of dotted recipe keys"),
        ("{}", "there is no key to search"),
        ("a: [", "no valid YAML"),
        ("a: {choice: [1]}\na: {choice: [2]}", "a is already set in line 1"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path, text, sentence):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=sentence):
        load_space(path)
    with pytest.raises(BadInput, match="there is no such space file"):
        load_space(tmp_path / "absent.yaml")


def test_a_recipe_without_its_defaults_is_the_same_recipe(tmp_path):
    for path in (ROOT / "configs/recipes").glob("*.yaml"):
        recipe = load_recipe(path, ["optimizers.dense.lr=0.0123"])
        (tmp_path / "clean.yaml").write_text(dump_recipe(recipe, defaults=False))
        assert load_recipe(tmp_path / "clean.yaml") == recipe
        assert "topology" not in (tmp_path / "clean.yaml").read_text()
