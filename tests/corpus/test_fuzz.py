"""Recipes spoiled by machine: every field with values of every kind, and real recipes changed at random."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from livetrain.configs import registry
from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe, load_recipe, override
from livetrain.configs.schema import Recipe
from livetrain.configs.trees import dump_tree, read_tree
from livetrain.modules.model import Model
from livetrain.trainers.evaluate.selection import check_select

RECIPES = sorted(Path("configs/recipes").glob("*.yaml"))
NASTY = [
    *(None, True, 0, -1, 3, 1.5, -0.0, 5e-324, 1e300, float("nan"), float("inf"), 2**63, 2**1000),
    *("", "1", "x" * 10_000, "a\nb", "\x1b[31m", "ü", "\udcff", "../x"),
    *([], [True], [[]], ["x"], {}, {1: 2}, {"kind": [1], "type": 3}),
]


def tree_of(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def keys(tree: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every value; of list entries and of features of one type, the first."""
    seen: set[str] = set()
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree[:1]):
        kind = value.get("type", at[0]) if at in (("features",), ("tables",), ("tasks",)) else str(key)
        if kind not in seen:
            seen.add(kind)
            yield (*at, str(key))
            if isinstance(value, dict | list):
                yield from keys(value, (*at, str(key)))


@cache
def by_kind() -> dict[str, Recipe]:
    """Return one recipe of every kind of model."""
    found: dict[str, Recipe] = {}
    for path in RECIPES:
        recipe = load_recipe(path)
        found.setdefault(recipe.model.kind, recipe)
    return found


def check_sentence(said: str, key: str = "") -> None:
    assert len(said) < 300, said
    assert said.isprintable(), said
    assert key in said, said
    for foreign in ("Input should", "Value error", "validation error", "another value"):
        assert foreign not in said


def test_every_field_refuses_what_it_cannot_be_and_keeps_what_it_takes():
    recipes = by_kind()
    assert set(recipes) >= {"din", "farm", "dssm", "esmm", "ple", "mmoe", "sasrec", "dcnv2", "ncf", "nfm"}
    tried = 0
    for number, recipe in enumerate(recipes.values()):
        for place in keys(tree_of(recipe)):
            if number and place[0] != "model":
                continue  # told by the first recipe
            for value in NASTY:
                tried += 1
                try:
                    changed = override(recipe, {".".join(place): value})
                except BadInput as error:
                    check_sentence(str(error))
                else:
                    assert Recipe.model_validate(tree_of(changed)) == changed
    assert tried > 3000


@pytest.mark.parametrize("value", [True, "1", "", [1], {}, float("nan"), float("inf"), -1, 1e40, 10**40])
def test_every_number_has_both_ends(value):
    """No field takes true, text or an endless number; what it refuses is named by its key."""
    for recipe in by_kind().values():
        for place in keys(tree_of(recipe)):
            if type(at(recipe, place)) not in (int, float):
                continue
            if place[-2:-1] == ("bounds",) and value == -1:
                continue  # a bucket may begin below 0
            with pytest.raises(BadInput) as caught:
                override(recipe, {".".join(place): value})
            check_sentence(str(caught.value), place[-1])


def at(recipe: Any, place: tuple[str, ...]) -> Any:
    for part in place:
        if isinstance(recipe, list):
            recipe = recipe[int(part)]
        else:
            recipe = getattr(recipe, part) if isinstance(recipe, BaseModel) else recipe[part]
    return recipe


def test_every_kind_of_model_is_in_a_recipe():
    ours = {kind for kind, made in registry.MODELS.configs().items() if made.__module__.startswith("livetrain.")}
    assert ours == set(by_kind())


TREES = [read_tree(path, "recipe", "keys")[0] for path in RECIPES]
NAMES = st.text(max_size=5) | st.integers() | st.none() | st.booleans()
SCALARS = st.one_of(
    st.sampled_from(NASTY[:-3]), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=3)
)
VALUES = st.recursive(SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(NAMES, one), max_leaves=4)


@st.composite
def spoiled(draw) -> Any:
    """Draw a real recipe in which some values were deleted, replaced, renamed, nested or swapped."""
    tree = draw(st.sampled_from(TREES))
    for _ in range(draw(st.integers(1, 3))):
        tree = spoil(draw, tree)
    return tree


def spoil(draw: Any, tree: Any) -> Any:
    if isinstance(tree, dict) and tree and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(tree, key=str)))
        return {**tree, key: spoil(draw, tree[key])}
    if isinstance(tree, dict) and tree:
        key, how = draw(st.sampled_from(sorted(tree, key=str))), draw(st.integers(0, 3))
        rest = {name: value for name, value in tree.items() if name != key}
        if how == 0:
            return rest
        if how == 1:
            return {**rest, draw(NAMES): tree[key]}
        if how == 2:
            return {**rest, key: {key: tree[key]}}
        return {**tree, key: tree[draw(st.sampled_from(sorted(tree, key=str)))]}
    return [tree] if draw(st.integers(0, 5)) == 0 else draw(VALUES)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(tree=spoiled())
def test_a_spoiled_recipe_is_refused_in_one_sentence_or_is_right(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "base").symlink_to(RECIPES[0].parent.absolute() / "base")
    path = folder / "recipe.yaml"
    try:
        path.write_text(dump_tree(tree), encoding="utf-8", errors="surrogatepass")
        recipe = load_recipe(path)
        check_select(recipe)
        Model(recipe, device="meta", tables_device="meta")
    except BadInput as error:
        check_sentence(str(error))
    else:
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(path) == recipe
