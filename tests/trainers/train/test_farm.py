"""FARM as it is trained: sharded, with its regulariser beside the combiners, resumed, exported."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from livetrain.cluster import launch
from livetrain.modules.layers.frequency import Split
from livetrain.trainers.export.export import export
from livetrain.trainers.observe.report.spectrum import write_spectrum
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.probes.spectra import Spectra
from tests import samples, twins
from tests.cases import often
from tests.trainers.train import test_loop as loop
from tests.trainers.train import test_sharding as sharding
from tests.trainers.train.gradients import test_combination as combine

FEATURES = {
    "author": {"type": "id", "table": "movie"},
    "video": {"type": "sequence", "table": "movie", "max_length": 6},
}
MODEL = {
    "kind": "farm",
    "attention": [
        {"query": ["movie"], "events": ["history"], "side": ["rating"]},
        {"query": ["author"], "events": ["video"]},
    ],
    "attention_units": [8],
    "width": 8,
    "frequency": {"cutoff": 2, "units": [8]},
    "align": {"user": "user", "weight": 0.3, "warmup": 10},
    "expert_units": [8],
    "tower_units": [4],
}


def recipe(**changes):
    """Eight events per row at most, so that users of 61 rows meet in a batch of 48."""
    features = {f"features__{name}": feature for name, feature in FEATURES.items()}
    tasks = {"click": {"label": "click"}, "like": {"label": "like", "weight": 0.5}}
    return twins.recipe(**{**features, "model": deepcopy(MODEL), "tasks": tasks, **changes})


CASES = {
    "rows and tables, row-wise Adagrad": {},
    "row-wise Adagrad with L2": {"optimizers__sparse__weight_decay": 0.1},
    "SGD, column-wise, replicated users": {
        "optimizers__sparse__kind": "sgd",
        "tables__movie__sharding": "column_wise",
        "tables__user__sharding": "data_parallel",
    },
}


@pytest.mark.parametrize("changes", often(CASES, ("SGD, column-wise, replicated users",)))
def test_sharded_equals_plain(two_ranks, changes):
    made_for = recipe(**changes)
    with ranks.alone(cuda=False):
        sharding.compare(sharding.train_sharded(made_for), made_for, 5e-6)
    first, second = two_ranks.run(sharding.train_sharded, made_for)
    sharding.compare(first, made_for, 5e-6)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])
    assert int(first["dense"]["network.align.steps"]) == sharding.STEPS


def test_one_task_has_a_regulariser_too(two_ranks):
    made_for = recipe(tasks={"click": {"label": "click"}})
    sharding.compare(two_ranks.run(sharding.train_sharded, made_for)[0], made_for, 5e-6)


def test_negatives_of_a_rank_are_others(two_ranks):
    """What the configuration names as different is different."""
    made_for = recipe(model__align__negatives="rank")
    with ranks.alone(cuda=False):
        one = sharding.train_sharded(made_for)["dense"]
    two = two_ranks.run(sharding.train_sharded, made_for)[0]["dense"]
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert apart > 1e-4


@pytest.mark.parametrize(
    "scope", ["shared", *(pytest.param(each, marks=pytest.mark.slow) for each in ("rows", "trunk"))]
)
@pytest.mark.some(1)
def test_the_regulariser_stays_outside_pcgrad(two_ranks, scope):
    changes = {f"features__{name}": feature for name, feature in FEATURES.items()}
    if scope == "rows":
        changes |= {f"tables__{name}__sharding": "data_parallel" for name in ("user", "movie", "rating")}
    made_for = combine.recipe("pcgrad", model=MODEL, gradients__scope=scope, **changes)
    wanted = combine.train_reference(made_for, lambda *given: combine.with_torchjd(*given, seed=made_for.train.seed))
    assert wanted["conflict"] > 0.5
    with ranks.alone(cuda=False):
        combine.compare(combine.train_sharded(made_for), wanted)
    found = two_ranks.run(combine.train_sharded, made_for)[0]
    combine.compare(found, wanted)
    assert all(step["regulariser"] > 0 for step in found["seen"])


def on_disk(data: Path, **changes) -> dict:
    """Changes that make FARM of `samples.recipe`: the whole history, and the newest of it, are the domains."""
    attention = [
        {"query": ["movie"], "events": ["history"], "side": ["rating"]},
        {"query": ["movie"], "events": ["newest"]},
    ]
    newest = {"type": "sequence", "table": "movie", "column": "history", "max_length": 3}
    model = {**deepcopy(MODEL), "attention": attention}
    model["align"]["warmup"] = 30
    return {
        "features__newest": newest,
        "features__history__max_length": 8,
        "features__rating__max_length": 8,
        "model": model,
        **changes,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("samples"), rows=1000)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A finished run of FARM."""
    runs = tmp_path_factory.mktemp("runs")
    launch.train(samples.recipe(data, **on_disk(data), train__checkpoint_every=5), runs)
    return runs / "small"


@pytest.mark.slow
def test_killed_and_resumed_is_bitwise_the_run_that_was_not(data, run, tmp_path):
    """The warm-up of the alignment goes on where it was."""
    changes = on_disk(data, train__checkpoint_every=5)
    whole = loop.train(loop.job(data, tmp_path / "whole", **changes))
    resumed = loop.job(data, tmp_path / "resumed", **changes)
    loop.train(resumed, kill_at=8)
    again = loop.train(resumed)
    assert loop.same(whole, again)
    assert int(again["dense"]["network.align.steps"]) == again["result"]["best_step"]
    kept = [
        [(line["loss"], line["regulariser"]) for line in loop.log(tmp_path / name)] for name in ("whole", "resumed")
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.slow
def test_exports_what_was_evaluated(run, tmp_path, quantize):
    found = export(run, out=tmp_path / "export", quantize=quantize)
    assert found["parity"]["rows"] == 250
    scored = torch.jit.load(str(tmp_path / "export" / "model.pt"))
    assert hasattr(scored, "rank")


@pytest.mark.slow
def test_a_run_shows_what_the_gates_kept(run):
    spectra = json.loads((run / "result.json").read_text())["spectra"]
    assert {user["events"] for user in spectra["history"]} == {8}
    assert spectra["newest"] == []  # three events have no spectrum worth a plot
    assert (run / "spectrum.png").stat().st_size > 10_000


def test_a_spectrum_is_that_of_the_users_own_events():
    torch.manual_seed(0)
    network = nn.Module()
    network.filter = Split(4, 3, [], 0.0, name="live")
    lengths = [0, 20, 3, 9, 50, 8, 12]
    values = torch.randn(sum(lengths), 4)
    spectra = Spectra(network)
    with spectra.watching(), torch.no_grad():
        network.filter(values, torch.tensor(lengths))
        network.filter(values[:9], torch.tensor([9]))  # a later batch changes nothing
    network.filter(values, torch.tensor(lengths))
    users = spectra.read()["live"]
    assert [user["events"] for user in users] == [8, 9, 20, 50]
    events = values.split(lengths)[4]
    alpha, beta = network.filter.weights(events, torch.tensor([50])).detach()[0].chunk(2)
    spectrum = torch.fft.rfft(events, dim=0, norm="ortho")
    torch.testing.assert_close(torch.tensor(users[-1]["power"]), spectrum.abs().square().mean(1))
    gain = torch.cat([alpha.expand(3, 4), beta.expand(23, 4)])
    torch.testing.assert_close(torch.tensor(users[-1]["kept"]), (spectrum * gain).abs().square().mean(1))
    assert users[-1]["low"] == 3


def test_a_network_without_filters_has_no_spectrum(tmp_path):
    spectra = Spectra(nn.Linear(2, 2))
    with spectra.watching():
        pass
    assert write_spectrum(tmp_path, spectra.read()) is None
    assert list(tmp_path.iterdir()) == []
