"""Items that all rows of a step share: the same on any number of ranks, and nothing that counts rows sees them."""

from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from pydantic import ValidationError

from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.trainers.data.read import negatives
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.train import preflight
from tests import samples
from tests.trainers.data.read import test_negatives as own

MODEL = {"kind": "dssm", "key": "movie", "item": ["price"], "units": [8], "width": 4}
TASKS = {"click": {"label": "label", "kind": "retrieval"}}


def recipe_of(folder, **section):
    drawn = {"catalogue": str(folder / "catalogue.parquet"), "item": "movie", "shared": 50}
    return samples.recipe(
        folder / "data",
        data__negatives=drawn | section,
        features__price={"type": "dense"},
        model=MODEL,
        tasks=TASKS,
        evaluate={},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    own.write(folder, rows=300)
    return folder


def steps(recipe, epoch=0, start=0, world=1):
    """Return every step's batches by rank."""
    source = Source.open(recipe, "train")
    readers = [Reader(source, recipe, rank=rank, world=world, shuffle=True) for rank in range(world)]
    return list(zip(*(reader.batches(epoch, start) for reader in readers), strict=True))


def items(batches):
    """Return what a step's ranks have behind their rows: (movie, price, often) of each, and how many are of nothing."""
    found, nothing = [], 0
    for batch in batches:
        rows, part = len(batch.rows), batch.ids["movie"]
        lengths, ends = part.lengths(), part.lengths().cumsum(0)
        for place in range(rows, len(lengths)):
            if not lengths[place]:
                nothing += 1
                assert batch.often[place] == 0
                continue
            movie, often = int(part.values()[ends[place] - 1]), float(batch.often[place])
            found.append((movie, float(batch.dense[place, 1]), often))
    return sorted(found), nothing


def test_any_number_of_ranks_shares_the_same_items_and_a_resumed_run_too(folder):
    recipe = recipe_of(folder)
    one = [items(step) for step in steps(recipe)]
    assert len(one) == 4
    assert [len(found) for found, _ in one] == [50] * 4
    assert all(nothing == 0 for _, nothing in one)
    assert len({tuple(found) for found, _ in one}) == 4  # every step has others
    for world in (2, 3, 4):
        several = [items(step) for step in steps(recipe, world=world)]
        assert [found for found, _ in several] == [found for found, _ in one]
        assert {nothing for _, nothing in several} == {-50 % world}
    assert [items(step) for step in steps(recipe, start=2)] == one[2:]
    assert [items(step) for step in steps(recipe, epoch=1)] != one
    seeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 2})})
    assert [items(step) for step in steps(seeded)] != one


def test_they_have_the_item_and_nothing_else_and_leave_the_rows_as_they_are(folder):
    catalogue = {row["movie"]: row["price"] for row in pq.read_table(folder / "catalogue.parquet").to_pylist()}
    plain = recipe_of(folder)
    plain = plain.model_copy(update={"data": plain.data.model_copy(update={"negatives": None})})
    for (batch,), (without,) in zip(steps(recipe_of(folder)), steps(plain), strict=True):
        size = len(batch.rows)
        for name in ("labels", "weights", "rows"):
            assert torch.equal(getattr(batch, name), getattr(without, name)), name
        assert torch.equal(batch.dense[:size].nan_to_num(-9), without.dense.nan_to_num(-9))
        for key in without.ids.keys():  # noqa: SIM118
            mine, theirs = batch.ids[key], without.ids[key]
            assert torch.equal(mine.lengths()[:size], theirs.lengths())
            assert torch.equal(mine.values()[: len(theirs.values())], theirs.values())
            assert mine.lengths()[size:].sum() == (50 if key == "movie" else 0)
        assert batch.dense[size:, 0].isnan().all()  # the rate of a row
        assert all(price == catalogue[movie] for movie, price, _ in items([batch])[0])
        # A row's own item is known by how often it is among the shared ones, too.
        known = batch.often[:size][without.ids["movie"].lengths() > 0]
        assert torch.allclose(known, torch.tensor(50 / own.ITEMS))
        assert (batch.often[:size][without.ids["movie"].lengths() == 0] == 0).all()


@pytest.mark.parametrize("world", [1, 7])
def test_all_are_each_item_once(folder, world):
    recipe = recipe_of(folder, shared="all")
    for step in steps(recipe_of(folder, shared="all").model_copy(update={"data": _shards(recipe, world)}), world=world):
        found, nothing = items(step)
        assert [movie for movie, _, _ in found] == [7 * n for n in range(own.ITEMS)]
        assert {often for _, _, often in found} == {1.0}
        assert nothing == -own.ITEMS % world


def _shards(recipe, world):
    return recipe.data.model_copy(update={"shards": 84, "batch_size": 84}) if world == 7 else recipe.data


def test_popular_items_are_drawn_as_often_as_is_said(folder):
    recipe = recipe_of(folder, shared=2000, popularity="count", power=0.5)
    found = [item for step in steps(recipe) for item in items(step)[0]]
    rows = pq.read_table(folder / "catalogue.parquet").to_pylist()
    total = sum(row["count"] ** 0.5 for row in rows)
    drawn = Counter(movie for movie, _, _ in found)
    wanted = np.array([2000 * row["count"] ** 0.5 / total for row in rows])
    times = np.array([drawn[row["movie"]] for row in rows])
    assert ((times - 4 * wanted) ** 2 / (4 * wanted)).sum() < 110  # chi squared of 59 degrees: less, but in 1 of 20,000
    told = {movie: often for movie, _, often in found}
    assert [told[row["movie"]] for row in rows] == pytest.approx(wanted.tolist(), rel=1e-5)


def test_stand_beside_negatives_of_rows(folder):
    recipe = recipe_of(folder, task="click", per_positive=2)
    source, said = Source.open(recipe, "train"), []
    negatives.count(source, recipe, said.append)
    assert (
        "negatives: 50 of 60 items, drawn anew for each, stand beside the rows of a step, with their movie, price"
        in said
    )
    (batch,) = next(zip(Reader(source, recipe, rank=0, world=1, shuffle=True).batches(0), strict=True))
    assert len(batch.ids["movie"].lengths()) == len(batch.rows) + 50
    assert source.drawn.sum() > 0


def test_a_dumped_recipe_is_the_same(folder, tmp_path):
    for shared in (50, "all"):
        recipe = recipe_of(folder, shared=shared)
        (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
        assert load_recipe(tmp_path / "r.yaml") == recipe
        assert yaml.safe_load(dump_recipe(recipe))["data"]["negatives"]["shared"] == shared


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared": None}, "data.negatives: say whose positive rows get negatives, as task: click, or how many"),
        ({"seen": ["history"]}, "data.negatives.seen: is of negatives that a row has of its own; name the task"),
        ({"shared": "all", "popularity": "count"}, "data.negatives.popularity: with shared: all nothing is drawn"),
    ],
)
def test_names_what_is_wrong(folder, change, message):
    with pytest.raises(ValidationError, match=message):
        recipe_of(folder, **change)


def test_names_what_does_not_fit_the_model(folder):
    recipe = recipe_of(folder)
    said = []
    din = samples.recipe(folder / "data", data__negatives=recipe.data.negatives)
    with pytest.raises(BadInput, match=r"data.negatives.shared: are for models that find items, and 'din' takes none"):
        preflight.check(din, said.append)
    features = {**recipe.features, "movie": recipe.features["movie"].model_copy(update={"column": "user"})}
    changed = recipe.model_copy(update={"features": features})
    source = Source.open(changed, "train")
    with pytest.raises(BadInput, match=r"data.negatives.item: no id feature reads column 'movie'"):
        negatives.count(source, changed, said.append)


def test_an_item_is_whole_in_the_catalogue_too(folder):
    """Or what rows know of theirs, and the shared ones do not, tells them apart without anything being learned."""
    model = {**MODEL, "item": ["price", "user"]}
    recipe = samples.recipe(
        folder / "data",
        data__negatives=recipe_of(folder).data.negatives,
        features__price={"type": "dense"},
        model=model,
        tasks=TASKS,
        evaluate={},
    )
    with pytest.raises(BadInput, match=r"catalogue.parquet: has no column for the item's feature 'user'"):
        preflight.check(recipe, lambda said: None)
