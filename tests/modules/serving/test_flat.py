"""Every kind of model that learns by steps is one graph to torch.export, for any numbers of rows and ids."""

from pathlib import Path

import pytest
import torch
from torch.export import Dim, export

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.fusion import Fused
from livetrain.modules.model import Model
from livetrain.modules.serving import flat, proof
from livetrain.modules.serving.cut import Cut
from livetrain.modules.serving.rerank import DPP
from livetrain.modules.serving.scorer import Encoder, Scorer
from tests import twins

RECIPES = Path(__file__).parents[3] / "configs/recipes"
# One recipe of each kind, and others whose tables, features or tasks are special.
KINDS = {load_recipe(path).model.kind: path.stem for path in sorted(RECIPES.glob("*_simulated*.yaml"))[::-1]}
KINDS |= {"table of ids": "din_simulated_ids", "crossed": "din_simulated_cross", "content": "dssm_simulated_content"}
OTHERS = "ncf_dcnv2 fm_dcnv2 nfm_dcnv2 kfm_dcnv2 dcnv2_dcnv2 deepfm_dcnv2 wide_deep_dcnv2 hstu_toys sasrec_toys"
OTHERS += " ensemble_dcnv2"
KINDS |= {name: name for name in f"{OTHERS} esasrec_toys comirec_toys als_amusic neumf_amusic".split()}


def small(name: str) -> Recipe:
    """A shipped recipe with tables of a few rows."""
    return proof._small(load_recipe(RECIPES / f"{name}.yaml"))


def built(recipe: Recipe, quantize: str = "none") -> Scorer:
    torch.manual_seed(0)
    model = Model(recipe).eval().requires_grad_(False)
    model.dense.in_bfloat16 = False
    for part in model.dense.network.parameters():
        part.add_(torch.randn(part.shape) * 0.1)
    return Scorer(model, recipe, quantize).eval()


def close(found: tuple[torch.Tensor, ...], wanted: dict[str, torch.Tensor]) -> None:
    for one, other in zip(found, wanted.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert torch.isfinite(other).all()


TRAINED = [name for name in dict.fromkeys(KINDS.values()) if not load_recipe(RECIPES / f"{name}.yaml").model.fitted]


@pytest.mark.parametrize("way", ["rank", "forward"])
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.some(5)
def test_a_recorded_model_scores_as_it_did(name, way):
    recipe = small(name)
    scorer = built(recipe)
    graph, columns = (
        flat.exported(scorer, recipe, way).module(check_guards=False),
        flat.Columns(flat.about(scorer, recipe)),
    )
    rows = proof._made_up(recipe, whole=False)
    calls = [rows] if way == "forward" else [rows.row(place, flat.once(recipe)) for place in range(6)]
    with torch.no_grad():
        for call in [*calls, rows.row(1), rows.row(0)]:  # 6 rows, and one with a history and one with none
            taken, given = call.call(columns.rank) if way == "rank" else (way, call.call(columns.forward))
            assert taken == way
            close(graph(*given), call.call(getattr(scorer, way)))


@pytest.mark.parametrize("quantize", ["float16", "int8"])
def test_quantised_tables_are_recorded_as_they_are(quantize):
    recipe = twins.recipe()
    scorer = built(recipe, quantize)
    graph, rows = flat.exported(scorer, recipe, "forward").module(check_guards=False), proof._made_up(recipe, False)
    close(graph(*rows.call(flat.Columns(flat.about(scorer, recipe)).forward)), rows.call(scorer))


def test_the_fused_score_comes_last():
    tasks = {"click": {"label": "a"}, "like": {"label": "b"}}
    fusion = {"score": "click ** a * like", "weights": {"a": [0, 2]}}
    recipe = twins.recipe(tasks=tasks, fusion=fusion, evaluate__group_by="user")
    assert recipe.fusion is not None
    model = Model(recipe).eval().requires_grad_(False)
    fused = Fused(recipe.fusion, list(recipe.answered), dict.fromkeys(recipe.fusion.weights, 0.5))
    scorer, rows = Scorer(model, recipe, "none", fused).eval(), proof._made_up(recipe, False)
    about = flat.about(scorer, recipe)
    assert about["outputs"][-1] == "fused"
    graph = flat.exported(scorer, recipe, "forward").module(check_guards=False)
    with torch.no_grad():
        close(graph(*rows.call(flat.Columns(about).forward)), rows.call(scorer))


@pytest.mark.parametrize("side", ["user", "item"])
def test_towers_are_recorded_too(side):
    recipe = small("dssm_simulated")
    tower = Encoder(Model(recipe).eval().requires_grad_(False), recipe, side).eval()
    about, rows = flat.about(tower, recipe), proof._made_up(recipe, False)
    assert (about["ways"], about["outputs"]) == (["forward"], ["vectors"])
    graph = flat.exported(tower, recipe, "forward").module(check_guards=False)
    with torch.no_grad():
        close(graph(*rows.call(flat.Columns(about).forward)), {"": rows.call(tower)})


@pytest.mark.parametrize("module", [Cut(8, 2), Cut(8, 2, most=2), DPP(5, 0.7)], ids=["cut", "kinds", "dpp"])
def test_what_cuts_and_what_orders_a_list_is_one_graph_too(module):
    def given(number: int) -> tuple[torch.Tensor, ...]:
        scores = torch.randn(1, number)
        if isinstance(module, DPP):
            return scores, torch.randn(1, number, 4)
        return scores, torch.rand(1, number) < 0.2, torch.randint(-1, 4, (1, number))

    graph = export(module, given(30), dynamic_shapes=tuple({1: Dim.AUTO} for _ in given(30))).module()
    for number in (8, 9, 77):  # of fewer than there are places none is cut
        asked = given(number)
        assert torch.equal(graph(*asked), module(*asked))


def columns() -> tuple[flat.Columns, proof._Rows]:
    recipe = twins.recipe()
    return flat.Columns(flat.about(built(recipe), recipe)), proof._made_up(recipe, True)


def test_what_rank_takes_once_comes_once_and_the_rest_is_repeated():
    taken, rows = columns()
    assert rows.row(0, ["history", "rating", "user", "rate"]).call(taken.rank)[0] == "rank"
    way, given = rows.row(0, ["user"]).call(taken.rank)  # a history of each candidate
    assert way == "forward"
    assert given[1].numel() == 6  # lengths.user, repeated
    assert given[0].tolist() == given[0][:1].tolist() * 6


def test_a_list_is_cut_to_its_newest_ids_before_the_graph():
    taken, rows = columns()
    long = torch.arange(9)
    rows = rows.row(0)
    for name in ("history", "rating"):
        rows.ids[name], rows.lengths[name] = long, torch.tensor([9])
    names = ["ids.user", "lengths.user", "ids.movie", "lengths.movie", "ids.history"]
    given = dict(zip(names, rows.call(taken.forward), strict=False))
    assert given["ids.history"].tolist() == [3, 4, 5, 6, 7, 8]


def test_wrong_columns_are_refused_as_the_file_refuses_them():
    taken, rows = columns()
    rows.lengths["user"] = torch.full((6,), 2)
    with pytest.raises(ValueError, match="those of 'user' do not add up"):
        rows.call(taken.forward)
    del rows.ids["movie"]
    rows.lengths["user"] = torch.ones(6)
    with pytest.raises(ValueError, match="'movie' is missing"):
        rows.call(taken.rank)


def test_the_recipe_may_name_the_candidates_features():
    recipe = twins.recipe(export__candidate=["movie"])
    assert flat.once(recipe) == ["user", "history", "rating", "rate"]
    assert flat.once(twins.recipe()) == ["history", "rating"]
