"""Tables behind a GPU cache are saved, loaded and evaluated as tables that lie in one place: bitwise the same run."""

from pathlib import Path

import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.trainers.evaluate import selection
from livetrain.trainers.runtime import ranks, runlog
from livetrain.trainers.train.feed import Feed
from livetrain.trainers.train.loop import Trainer
from livetrain.trainers.train.step import cached_lookups
from tests import samples
from tests.emulated_cache import cache
from tests.trainers.train.probes.test_step_times import EVERY_STEP, check_parts
from tests.trainers.train.test_loop import job, log, same, train

CPU = torch.device("cpu")
TABLES = ("user", "movie", "rating")
PART = 0.2  # of the rows: fewer than three batches under way need, so that rows go and come


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("samples"), rows=960)


@pytest.fixture(scope="module", autouse=True)
def _best_is_first():
    """The first evaluation is the best one, so that a run ends by loading an earlier checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "is_better", lambda recipe, metrics, best: best is None)
        yield


def changes(**more):
    return {"train__checkpoint_every": 3, "train__epochs": 1, "tables__movie__rows": 128} | more


@pytest.fixture(scope="module")
def wanted(data, tmp_path_factory) -> tuple[Path, dict]:
    run = tmp_path_factory.mktemp("wanted")
    return run, train(job(data, run, **changes()))


def compare(found: dict, run: Path, wanted: tuple[Path, dict]) -> None:
    assert same(found, wanted[1])
    assert [line["loss"] for line in log(run)] == [line["loss"] for line in log(wanted[0])]
    evaluated = [[line for line in runlog.read(each) if line["kind"] == "eval"] for each in (run, wanted[0])]
    for ours, theirs in zip(*evaluated, strict=True):
        assert {k: v for k, v in ours.items() if k != "time"} == {k: v for k, v in theirs.items() if k != "time"}
    assert found["result"]["tables"] == wanted[1]["result"]["tables"]
    assert found["result"]["best_step"] < found["result"]["step"]


def test_a_run_is_that_of_tables_without_a_cache(data, wanted, tmp_path):
    """It evaluates, saves, and ends by loading its best checkpoint while the cache holds rows of later steps."""
    with cache(*TABLES, part=PART):
        compare(train(job(data, tmp_path, **changes())), tmp_path, wanted)


@pytest.mark.parametrize("first", [True, False], ids=["cached first", "cached then"])
def test_a_checkpoint_says_the_same_with_and_without_a_cache(data, wanted, tmp_path, first):
    made = job(data, tmp_path, **changes())
    with cache(*TABLES, part=PART):
        if first:
            train(made, 8)
    if first:
        found = train(made)
    else:
        train(made, 8)
        with cache(*TABLES, part=PART):
            found = train(made)
    compare(found, tmp_path, wanted)


def test_evaluations_lock_nothing(data, tmp_path):
    with ranks.alone(cuda=False), cache(*TABLES, part=PART):
        trainer = Trainer(job(data, tmp_path, **changes()), CPU)
        lookups = list(cached_lookups(trainer.sharded.model))
        assert len(lookups) == 3  # by sharding and by dim
        trainer.sharded.module.train()
        feed = Feed(trainer.reader.batches(0), 5, trainer.reader)
        for _ in range(5):
            trainer.sharded.pipeline.progress(feed)
        assert not any(lookup.locked() for lookup in lookups)
        misses = []
        for _ in range(3):
            before = sum(lookup.misses for lookup in lookups)
            trainer.evaluate("valid", draws=0)
            misses.append(sum(lookup.misses for lookup in lookups) - before)
            assert not any(lookup.locked() for lookup in lookups)
        assert misses[1] == misses[2]
        assert all(lookup.hits for lookup in lookups)


@pytest.mark.parametrize("cached", [TABLES, ("movie",)], ids=len)
def test_the_step_has_its_parts(data, tmp_path, cached):
    with ranks.alone(cuda=False), cache(*cached, part=PART):
        Trainer(job(data, tmp_path, **changes()), CPU).run()
    lines = [line for line in runlog.read(tmp_path) if line["kind"] == "train"]
    check_parts(lines, EVERY_STEP - {"id_exchange"})
    assert sum(line["ms.id_exchange"] > 0 for line in lines) > len(lines) / 2


def test_a_second_look_at_a_batch_is_refused(data, tmp_path):
    """Of a batch whose rows were fetched once the second pass would read the next one's."""
    tasks = {"click": {"label": "label"}, "again": {"label": "label"}}
    model = {"kind": "shared_bottom", "shared_units": [4], "tower_units": [4], "pooled": ["history", "rating"]}
    made = job(data, tmp_path, **changes(tasks=tasks, model=model, gradients={"kind": "famo"}))
    refused = pytest.raises(BadInput, match="gradients.kind: 'famo' looks up the rows of a batch twice")
    with ranks.alone(cuda=False), cache(*TABLES, part=PART), refused:
        Trainer(made, CPU)
    with ranks.alone(cuda=False):
        Trainer(made, CPU)
