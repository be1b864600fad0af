"""Next-item networks with items that a step shares: ranks only share the work, and a run goes the whole way."""

import json
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe
from livetrain.modules.layers import products
from livetrain.modules.model import Model
from livetrain.modules.network import TARGETS
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export.export import export
from livetrain.trainers.export.rows import golden_inputs
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train import preflight
from livetrain.trainers.train.sharding import shard
from tests import samples
from tests.cases import often
from tests.trainers.data.read import test_negatives
from tests.trainers.recall import tastes
from tests.trainers.train import test_loop as loop
from tests.trainers.train.test_sharding import whole

STEPS = 3
MODEL = {
    "kind": "sasrec_retrieval",
    "attention": [{"query": ["movie"], "events": ["history"], "side": ["rating"]}],
    "dropout": 0.0,
    "item_dropout": 0.25,
    "in_batch": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("next")
    test_negatives.write(folder, rows=240)
    return folder


def recipe_of(folder, kind="sasrec_retrieval", **changes):
    shared = {"catalogue": str(folder / "catalogue.parquet"), "item": "movie", "shared": 25, "popularity": "count"}
    return samples.recipe(
        folder / "data",
        tasks={"click": {"label": "label", "kind": "retrieval"}},
        optimizers={"sparse": {"kind": "sgd", "lr": 0.5}, "dense": {"kind": "sgd", "lr": 0.5}},
        **{"evaluate": {}, "data__negatives": shared, "model": {**MODEL, "kind": kind}, **changes},
    )


def batches(recipe, rank=0, world=1):
    reader = Reader(Source.open(recipe, "train"), recipe, rank=rank, world=world, shuffle=True)
    return iter(list(reader.batches(0, 0, STEPS)))


def sharded(recipe):
    """Train on this rank's part; return all tables whole, and the network."""
    made = shard(recipe, torch.device("cpu"))
    made.module.train()
    made.set_rates(1.0)
    feed = batches(recipe, ranks.rank(), ranks.world())
    for step in range(STEPS):
        ranks.seed_step(1, step)
        made.pipeline.progress(feed)
    state = made.model.state_dict()
    tables = {key.split(".")[-2]: value for key, value in state.items() if key.startswith("tables.")}
    return whole(tables), {key: value.clone() for key, value in made.model.dense.state_dict().items()}


def plain(recipe):
    model = Model(recipe).train()
    optimizer = torch.optim.SGD([*model.dense.parameters(), *model.table_weights().values()], lr=0.5)
    for batch in batches(recipe):
        optimizer.zero_grad()
        answer = model(batch.ids, batch.dense, batch.weights, batch.vectors, None, batch.often)
        labels = torch.repeat_interleave(batch.labels[:, 0] * batch.weights, answer[TARGETS])
        ((F.softplus(-answer["click"]) * labels).sum() / labels.sum()).backward()
        optimizer.step()
    tables = {name: weight.detach() for name, weight in model.table_weights().items()}
    return tables, model.dense.state_dict()


ALL = {kind: kind for kind in ("sasrec_retrieval", "hstu_retrieval", "comirec")}


@pytest.mark.parametrize("kind", often(ALL, ["sasrec_retrieval"]))
def test_sharded_equals_plain_on_one_rank_and_on_two(folder, two_ranks, kind):
    recipe = recipe_of(folder, kind)
    wanted = plain(recipe)
    with ranks.alone(cuda=False):
        one = sharded(recipe)
    for found in (one, *two_ranks.run(sharded, recipe)):
        for mine, theirs in zip(found, wanted, strict=True):
            for name, value in theirs.items():
                torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=2e-6, msg=lambda t, n=name: f"{n}: {t}")
    begun = Model(recipe).table_weights()["movie"]
    assert not torch.allclose(begun, wanted[0]["movie"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sasrec_retrieval", "esasrec", "hstu_retrieval", "comirec", "dssm"])
def test_a_run_goes_the_whole_way(folder, tmp_path, kind):
    """Trained, killed and resumed, evaluated among a catalogue, exported quantised with both towers."""
    model = {**MODEL, "kind": kind, "dropout": 0.1}
    if kind == "dssm":
        model = {"kind": kind, "key": "movie", "units": [8], "width": 8}
    evaluated = {"catalogue": str(folder / "catalogue.parquet"), "seen": "history"}
    changes = {"model": model, "evaluate": evaluated, "export__quantize": "int8", "train__checkpoint_every": 2}
    made = _job(folder, tmp_path / "whole", changes)
    whole_run = loop.train(made)
    loop.train(_job(folder, tmp_path / "killed", changes), kill_at=3)
    assert loop.same(loop.train(_job(folder, tmp_path / "killed", changes)), whole_run)
    assert whole_run["result"]["test.click.items"] == test_negatives.ITEMS
    (made.run / "config.yaml").write_text(dump_recipe(made.recipe))
    export(made.run, made.run / "export")
    ids, lengths, dense = golden_inputs(json.loads((made.run / "export/golden.json").read_text()))
    scored, user, item = (torch.jit.load(str(made.run / f"export/{file}.pt")) for file in ("model", "user", "item"))
    found = products.of_pairs(user(ids, lengths, dense), item(ids, lengths, dense))
    torch.testing.assert_close(found, scored(ids, lengths, dense)["click"], rtol=1e-5, atol=1e-5)


def _job(folder, run, changes):
    shared = recipe_of(folder).data.negatives.model_dump(exclude_unset=True)
    tasks = {"click": {"label": "label", "kind": "retrieval"}}
    return loop.job(folder / "data", run, data__negatives=shared, tasks=tasks, **changes)


IGNORED = {
    "calibration": ({"calibration": 0.5}, {}, "model.calibration: is of loss gbce alone"),
    "log_q": ({"loss": "gbce", "log_q": False}, {}, "model.log_q: is of loss softmax alone"),
    "in_batch": (
        {},
        {"data__negatives": None},
        "model.in_batch: adds the rows' items to those of data.negatives.shared",
    ),
    "seen_from": (
        {"kind": "hstu_retrieval", "seen_from": "event"},
        {},
        "model.seen_from: counts where the history has",
    ),
    "power": ({}, {"data__negatives__power": 0.5}, "data.negatives.power: is of counts"),
    "the item itself": ({}, {"features__history__column": "movie"}, "features.history: reads the column 'movie'"),
}


@pytest.mark.parametrize(("model", "changes", "why"), IGNORED.values(), ids=IGNORED)
def test_what_would_count_for_nothing_is_refused(folder, model, changes, why):
    changes = {"data__negatives": {"catalogue": "x", "item": "movie", "shared": 25}} | changes
    with pytest.raises(ValueError, match=why):  # BadInput, or what pydantic makes of it
        preflight.check(recipe_of(folder, model={**MODEL, "item_dropout": 0.0, **model}, **changes), lambda text: None)


@pytest.mark.parametrize("history", ["item", "history"])
def test_als_answers_a_request_by_what_it_knows(tmp_path, history):
    features = {"item": {"type": "id", "table": "item"}}
    features["history"] = {"type": "sequence", "table": "item", "max_length": 5, "column": history}
    recipe = tastes.recipe(tastes.write(tmp_path / "data"), features=features)
    with pytest.raises(BadInput) if history == "item" else nullcontext() as found:
        preflight.check(recipe, lambda text: None)
    assert found is None or str(found.value).startswith("features.history: reads the column 'item', which tells which")
