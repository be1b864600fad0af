"""A base and its deltas are the full export of the same checkpoint, to the last bit, and a server has them whole."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.serving import deltas as files
from livetrain.modules.serving.loading import load
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export import deltas, publish
from livetrain.trainers.export.deltas import NeedsBase, publish_delta, publish_next
from livetrain.trainers.export.export import export
from livetrain.trainers.export.served import Served
from livetrain.trainers.runtime import manifest, place, ranks, reach, run_folder
from livetrain.trainers.train import checkpoint, tracking
from livetrain.trainers.train.sharding import shard
from tests import samples
from tests.cases import often

CPU = torch.device("cpu")
MAPPED = {"export__tables": "mapped"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("deltas") / "data", 400)


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch) -> None:
    monkeypatch.setattr(reach, "DEADLINE_S", 0.0)


def folder_of(path: Path, recipe: Recipe) -> Path:
    """Make a run's folder."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(dump_recipe(recipe))
    return path


class Line:
    """A training that goes on, in this process or on the ranks of a group; it goes on from its newest checkpoint."""

    def __init__(self, run: Path, recipe: Recipe, track: bool = True) -> None:
        self.run, self.recipe = run, recipe
        self.sharded = shard(recipe, CPU)
        if track:
            tracking.track(self.sharded)
        found = checkpoint.load_latest(self.sharded, recipe, run)
        self.step = found["step"] if found else 0
        self.sharded.module.train()
        reader = Reader(Source.open(recipe, "train"), recipe, rank=ranks.rank(), world=ranks.world(), shuffle=True)
        self._feed = (batch for epoch in range(10**6) for batch in reader.batches(epoch))

    def go(self, steps: int) -> "Line":
        for _ in range(steps):
            self.sharded.set_rates(1.0)
            ranks.seed_step(1, self.step)
            self.sharded.pipeline.progress(self._feed)
            self.step += 1
        return self

    def save(self) -> "Line":
        with checkpoint.Saver(self.sharded, self.recipe, self.run) as saver:
            saver.save(self.step, {"best_step": None})
            saver.wait()
        return self


@contextlib.contextmanager
def line(run: Path, recipe: Recipe, track: bool = True) -> Iterator[Line]:
    with ranks.alone(cuda=False):
        yield Line(folder_of(run, recipe), recipe, track)


def state(model: torch.jit.ScriptModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_is_the_export(served: Served, run: Path, out: Path, names: tuple[str, ...] = ("model.pt",)) -> None:
    """See that a server has what a full export of the last checkpoint has, bit for bit, and its scores."""
    export(run, "last", out, served.signature["quantize"])
    golden = deltas.golden_inputs(json.loads((out / "golden.json").read_text()))
    with served.use() as models:
        for name in names:
            whole = load(out, name)
            found, wanted = state(models[name]), state(whole)
            assert found.keys() == wanted.keys()
            for key, value in wanted.items():
                assert torch.equal(found[key], value), key
            ours, theirs = models[name](*golden), whole(*golden)
            if name == "model.pt":
                assert all(torch.equal(ours[task], theirs[task]) for task in theirs)
            else:
                assert torch.equal(ours, theirs)


@pytest.fixture
def published(data, tmp_path) -> Iterator[tuple[Line, str]]:
    """A training whose base and one delta are published."""
    with line(tmp_path / "run", samples.recipe(data)) as training:
        training.go(3).save()
        where = str(tmp_path / "models")
        publish_next(training.run, where, "2026-11-30", 3)
        training.go(1).save()
        publish_delta(training.run, where)
        yield training, where


DSSM = {
    "model": {"kind": "dssm", "item": ["movie"], "units": [8], "width": 4},
    "features": {
        "user": {"type": "id", "table": "user"},
        "movie": {"type": "id", "table": "movie"},
        "history": {"type": "sequence", "table": "movie", "max_length": 6},
    },
    "tables": {
        "user": {"rows": 100, "dim": 8, "hash": "modulo", "sharding": "row_wise"},
        "movie": {"rows": 512, "dim": 8, "sharding": "table_wise"},
    },
    "tasks": {"click": {"label": "label", "kind": "retrieval"}},
}


@pytest.mark.parametrize(
    "changes",
    often(
        {
            "one file": {},
            "mapped": MAPPED,
            "float16": MAPPED | {"export__quantize": "float16"},
            "8 bits": {"export__quantize": "int8"},
            "8 bits, mapped": MAPPED | {"export__quantize": "int8"},
            "Adam and a mean": {"optimizers__sparse": {"kind": "adam", "lr": 0.01}, "optimizers__ema": 0.9},
            "decay": {"optimizers__sparse__weight_decay": 0.1},
            "a table is frozen": {"tables__movie__frozen": True},
            "trained in float16": {"tables__user__dtype": "float16", "tables__user__sharding": "row_wise"},
        },
        ("mapped", "8 bits, mapped", "Adam and a mean"),
    ),
)
def test_base_and_deltas_are_the_export(data, tmp_path, changes):
    loose = {"export__tolerance_int8": 1.0, "export__tolerance_float16": 1.0}
    where = str(tmp_path / "models")
    with line(tmp_path / "run", samples.recipe(data, **changes, **loose)) as training:
        training.go(2).save()
        first = publish_next(training.run, where, "2026-11-30", 3)
        served = Served(where)
        for number in (1, 2, 3):
            training.go(1).save()
            pointer = publish_delta(training.run, where)
            assert [each["number"] for each in pointer["deltas"]] == [*range(1, number + 1)]
            assert pointer["folder"] == first["folder"] and pointer["fence"] == number + 1
            if number != 2:  # one at a time, and two at once
                assert served.refresh()
        assert served.number == 3
        assert not served.refresh()
        assert_is_the_export(served, training.run, tmp_path / "whole")
        assert_is_the_export(Served(where), training.run, tmp_path / "whole")
        assert publish.damage(where, pointer) is None


def test_fifty_deltas_and_the_export_are_one(data, tmp_path):
    where = str(tmp_path / "models")
    recipe = samples.recipe(data, **MAPPED, data__batch_size=12, tables__movie__rows=50_000)
    with line(tmp_path / "run", recipe) as training:
        training.go(1).save()
        publish_next(training.run, where, "2026-11-30", 3)
        served = Served(where)
        for _ in range(50):
            training.go(1).save()
            pointer = publish_delta(training.run, where, share=1e9)
            served.refresh()
        assert served.number == len(pointer["deltas"]) == 50
        assert all(each["rows"] < 500 for each in pointer["deltas"])  # it is what changed, not the table
        assert_is_the_export(served, training.run, tmp_path / "whole")
        assert_is_the_export(Served(where), training.run, tmp_path / "whole")
