"""Formulas of a recipe: what they are computed to, and what is refused in a sentence."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.configs.formula import parse
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Fusion
from livetrain.modules.fusion import Fused

ATOMS = st.one_of(st.sampled_from(["click", "watch", "a"]), st.floats(0.1, 9).map(lambda x: f"{x:.3f}"))
FORMULAS = st.recursive(
    ATOMS,
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from("+-*/"), part).map(lambda x: f"({x[0]} {x[1]} {x[2]})"),
        st.tuples(part, st.integers(0, 3)).map(lambda x: f"{x[0]} ** {x[1]}"),
        st.tuples(st.sampled_from(["log", "exp", "sqrt", "abs"]), part).map(lambda x: f"{x[0]}(abs({x[1]}) / 99 + 1)"),
        st.tuples(st.sampled_from(["min", "max"]), part, part, part).map(lambda x: f"{x[0]}({x[1]}, {x[2]}, {x[3]})"),
        part.map(lambda x: f"-({x})"),
        st.tuples(part, part).map(lambda x: f"pow(abs({x[0]}) + 1, 1 / (1 + abs({x[1]})))"),
    ),
    max_leaves=12,
)
KNOWN = {"log": math.log, "exp": math.exp, "sqrt": math.sqrt, "abs": abs, "min": min, "max": max, "pow": pow}


@given(text=FORMULAS, click=st.floats(0.01, 0.99), watch=st.floats(0.5, 50), a=st.floats(-2, 2))
def test_a_formula_is_computed_as_python_computes_it(text, click, watch, a):
    fused = Fused(Fusion(score=text, weights={"a": [-2, 2]}), ["click", "watch"], {"a": a})
    given_ = {"click": torch.tensor([click, 0.5]), "watch": torch.tensor([watch, 1.0])}
    names = {name: float(values[0]) for name, values in given_.items()} | {"a": a}
    try:
        wanted = eval(text, {"__builtins__": {}}, KNOWN | names)  # of this test's own making
    except (ZeroDivisionError, OverflowError):
        return
    found = fused(given_)
    assert found.shape == (2,)
    if abs(wanted) < 1e30:
        assert float(found[0]) == pytest.approx(wanted, rel=1e-5, abs=1e-30)


def test_the_file_has_the_formula_that_was_searched():
    score = "click ** a * (1 + b * watch) ** -0.5 + max(click, watch, 0.3)"
    fusion = Fusion(score=score, weights={"a": [0, 2], "b": [0, 1]})
    fused = Fused(fusion, ["click", "watch"], {"a": 0.7, "b": 0.2})
    given_ = {"click": torch.rand(50), "watch": torch.rand(50)}
    torch.testing.assert_close(torch.jit.script(fused)(given_), fused(given_), rtol=0, atol=0)
    wanted = given_["click"] ** 0.7 * (1 + 0.2 * given_["watch"]) ** -0.5
    wanted += torch.maximum(torch.maximum(given_["click"], given_["watch"]), torch.tensor(0.3))
    torch.testing.assert_close(fused(given_), wanted)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("clik * 2", "'clik' is neither a task nor one of the weights"),
        ("click *", "this is no formula"),
        ("(" * 400 + "click" + ")" * 400, "this is no formula"),
        ("click.real", "'click.real' has no place in a formula"),
        ("__import__('os')", "has no place in a formula"),
        ("click if 1 else 2", "has no place in a formula"),
        ("[click]", "has no place in a formula"),
        ("click > 1", "has no place in a formula"),
        ("'x'", "has no place in a formula"),
        ("True", "has no place in a formula"),
        ("1e40", "has no place in a formula"),
        ("log(click, 2)", "log takes 1 operands, and 'log\\(click, 2\\)' gives it 2"),
        ("max(click)", "max takes two or more operands"),
        ("click" + " + click" * 200, "at most 1,000 characters"),
        ("click // 2", "has no place in a formula"),
        ("a := 2", "this is no formula"),
    ],
)
def test_what_is_no_formula_is_refused_in_a_sentence(text, sentence):
    with pytest.raises(BadInput, match=sentence) as refused:
        parse(text, ["click", "a"], "fusion.score")
    assert len(str(refused.value)) < 300
    assert str(refused.value).startswith("fusion.score: ")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fusion.score": "click * hover"}, "fusion.score: 'hover' is neither a task"),
        ({"fusion.weights": {"a": [0, 1], "z": [0, 1]}}, "fusion.weights.z: fusion.score does not use it"),
        ({"fusion.weights": {"a": [1, 1]}}, "does not rise"),
        ({"fusion.weights": {"a": [0, 1], "like": [0, 1]}}, "fusion.weights.like: a task has this name"),
        ({"fusion.score": "a"}, "no task is in the formula"),
        ({"fusion.by": "auc"}, "has no metric of groups 'auc'"),
        ({"fusion.by": "list_ndcg_7"}, "did you mean 'list_ndcg_10'"),
        ({"fusion.tasks": {"hover": 1}}, "fusion.tasks: there is no task 'hover'"),
        ({"evaluate.group_by": None}, "name their column in evaluate.group_by"),
        ({"tasks.fused": {"label": "click"}}, "tasks.fused: the score of fusion has this name"),
    ],
)
def test_a_recipe_says_what_its_fusion_lacks(changes, sentence):
    fusion = {"score": "click ** a * like", "weights": {"a": [0, 1]}}
    path = Path("configs/recipes/cgc_kuairand.yaml")
    with pytest.raises(BadInput, match=sentence) as refused:
        load_recipe(path, **{"fusion": fusion, **changes})
    assert len(str(refused.value)) < 400


def test_a_chain_of_dots_without_end_is_one_sentence():
    with pytest.raises(BadInput, match="nested too deep|has no place in a formula|this is no formula"):
        parse("click" + ".a" * 450, ["click"], "fusion.score")
