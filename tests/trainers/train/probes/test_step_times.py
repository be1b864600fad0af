"""Where a step's time goes: parts that add up, in their order, and a profiler's trace of the steps asked for."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.modules.batch import Batch
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.runtime import ranks, runlog
from livetrain.trainers.train import preflight
from livetrain.trainers.train.feed import Feed
from livetrain.trainers.train.loop import Job, Trainer
from livetrain.trainers.train.probes.step_times import PARTS, DeviceClock
from tests import samples


def job(data: Path, run: Path, **changes) -> Job:
    recipe = samples.recipe(data, train__epochs=1, **changes)
    run.mkdir(parents=True, exist_ok=True)
    return Job(recipe, run, *preflight.check(recipe, lambda text: None))


def train(made: Job, device: str = "cpu") -> list[dict]:
    """Train on the ranks of this group, and return the log's training lines."""
    with ranks.alone(cuda=device == "cuda"):
        Trainer(made, torch.device(device)).run()
    return [line for line in runlog.read(made.run) if line["kind"] == "train"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("samples"), rows=960)


def check_parts(lines: list[dict], used: set[str]) -> None:
    assert lines
    for line in lines:
        parts = {part: line[f"ms.{part}"] for part in PARTS}
        assert sum(parts.values()) <= line["ms.step"]
        assert {part for part, spent in parts.items() if spent > 0} >= used
        assert min(parts.values()) >= 0


EVERY_STEP = set(PARTS) - {"data_wait"}  # a step finds its batch ready, or there is none left to wait for


@pytest.mark.parametrize("log_every", [1, 4])
def test_every_line_of_the_log_has_every_part(data, tmp_path, log_every):
    lines = train(job(data, tmp_path, train__log_every=log_every))
    check_parts(lines, EVERY_STEP - {"id_exchange"})  # the last step of a stretch sends no ids ahead
    assert all(line["ms.id_exchange"] > 0 for line in lines[:-1])
    for line in lines:
        rows = line["rows_per_s"] * line["ms.step"] / 1e3
        assert rows == pytest.approx(96, rel=0.01)


class Clock:
    """A clock that stands still but for a microsecond per reading, and for what it is moved by: no machine's load."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def slow(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.now += 0.02
            yield batch


def test_both_clocks_measure_the_same_wait_for_data(data, tmp_path):
    clock, read = Clock(), Reader.batches
    with (
        mock.patch("livetrain.trainers.train.feed.time", clock),
        mock.patch("livetrain.trainers.train.probes.step_times.time", clock),
        mock.patch.object(Reader, "batches", lambda *arguments: clock.slow(read(*arguments))),
    ):
        lines = train(job(data, tmp_path, train__log_every=1))
    waits = [line["ms.data_wait"] for line in lines]
    assert sum(waits) == pytest.approx(20 * len(lines), rel=0.01)
    assert waits == pytest.approx([line["data_wait"] * line["ms.step"] for line in lines], rel=0.01, abs=0.05)


def test_two_ranks_have_the_parts_too(two_ranks, data, tmp_path):
    lines, _ = two_ranks.run(train, job(data, tmp_path))
    check_parts(lines, EVERY_STEP - {"id_exchange"})


def test_tables_that_every_rank_holds_have_nothing_to_exchange(data, tmp_path):
    whole = {f"tables__{table}__sharding": "data_parallel" for table in ("user", "movie", "rating")}
    lines = train(job(data, tmp_path, **whole))
    check_parts(lines, EVERY_STEP - {"id_exchange"})
    assert not any(line["ms.id_exchange"] for line in lines)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_the_parts_too(data, tmp_path):
    check_parts(train(job(data, tmp_path, cluster__device="cuda"), "cuda"), EVERY_STEP - {"id_exchange"})


def test_parts_follow_one_another_and_the_backward_pass_is_cut_between_network_and_tables(data, tmp_path):
    made = job(data, tmp_path)
    with ranks.alone(cuda=False):
        trainer = Trainer(made, torch.device("cpu"))
        trainer.sharded.module.train()
        feed = Feed(trainer.breakdown.waiting(trainer.reader.batches(0)), 5, trainer.reader)
        dense = list(trainer.sharded.model.dense.parameters())
        order, seen = [], {}

        def enter(part):
            order.append(part)
            if part == "embedding_backward":
                seen["network done"] = all(p.grad is not None for p in dense)
                seen["tables"] = [weight.clone() for _, weight, _, _ in trainer.sharded.shards()]

        trainer.sharded.pipeline.progress(feed)  # outside of a step: nothing is entered
        tables = [weight.clone() for _, weight, _, _ in trainer.sharded.shards()]
        for parameter in dense:
            parameter.grad = None
        with mock.patch.object(trainer.breakdown._clock, "enter", enter), trainer.breakdown.step():
            trainer.sharded.pipeline.progress(feed)
        moved = [weight.clone() for _, weight, _, _ in trainer.sharded.shards()]
    exchanged, looked_up = "id_exchange", "embedding_forward"
    ahead = [exchanged, None, "data_wait", None]  # the ids of the next batch, and the batch after it
    forward = [exchanged, looked_up] * 2 + ["dense_forward", None]  # collections of dim 8 and of dim 4
    backward = ["dense_backward", "embedding_backward", "all_reduce", "dense_backward", None]
    assert order == [*ahead, *forward, exchanged, None, *backward, "optimizer", None]
    assert seen["network done"]
    assert all(torch.equal(a, b) for a, b in zip(seen["tables"], tables, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(moved, tables, strict=True))


@pytest.mark.parametrize(
    ("scope", "after"), [("shared", ["embedding_backward"]), ("trunk", ["embedding_backward", "all_reduce"])]
)
def test_combining_gradients_has_its_parts_in_their_order(data, tmp_path, scope, after):
    model = {"kind": "cgc", **samples.MULTI_TASK["model"]}
    config = {"kind": "pcgrad", "scope": scope}
    made = job(data, tmp_path, model=model, tasks=samples.MULTI_TASK["tasks"], gradients=config)
    with ranks.alone(cuda=False):
        trainer = Trainer(made, torch.device("cpu"))
        trainer.sharded.module.train()
        feed = Feed(trainer.breakdown.waiting(trainer.reader.batches(0)), 3, trainer.reader)
        order = []
        with mock.patch.object(trainer.breakdown._clock, "enter", order.append), trainer.breakdown.step():
            trainer.sharded.pipeline.progress(feed)
    found = order[order.index("dense_backward") :]
    averaged = ["all_reduce", "dense_backward"]  # the Gram matrix, and in scope shared the gradients
    assert found[:3] == ["dense_backward", *averaged]
    assert [part for part in found[3:] if part not in (None, "dense_backward", "optimizer")][: len(after)] == after


class Device:
    """A GPU that is at moment `now`, and the host that runs ahead of it to moment `host`, in milliseconds."""

    def __init__(self) -> None:
        self.now, self.host, self.made = 0.0, 0.0, 0

    def event(self, enable_timing: bool) -> "Event":
        assert enable_timing
        self.made += 1
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self._device = device

    def record(self, stream) -> None:
        assert stream == "main"
        self.at = self._device.host

    def query(self) -> bool:
        return self.at <= self._device.now

    def elapsed_time(self, end: "Event") -> float:
        assert self.query()
        assert end.query()
        return end.at - self.at


def test_a_devices_events_are_read_when_they_have_come_and_used_again(monkeypatch):
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "main")
    clock = DeviceClock(torch.device("cuda", 0))

    def step() -> None:
        clock.start()
        for part, lasting in (("data_wait", 1.0), (None, 5.0), ("optimizer", 2.0), (None, 0.5)):
            clock.enter(part)
            device.host += lasting

    step()
    assert not any(clock.read().values())  # the device has done nothing yet
    device.now = 2.0
    assert clock.read()["data_wait"] == 1.0
    step()
    device.now = device.host
    found = clock.read()
    assert (found["data_wait"], found["optimizer"]) == (1.0, 4.0)
    made = device.made
    for _ in range(50):
        step()
        device.now = device.host
    assert clock.read()["optimizer"] == 100.0
    assert device.made <= made


def test_a_profile_records_the_steps_asked_for(data, tmp_path):
    train(job(data, tmp_path, train__profile="2..3"))
    with gzip.open(tmp_path / "profile/trace.json.gz", "rt") as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert len([name for name in names if name.startswith("## forward ")]) == 2
    table = (tmp_path / "profile/operators.txt").read_text()
    assert table.startswith("steps 2 to 3 on rank 0, operators by self_cpu_time_total\n")
    assert "aten::" in table  # which operators come first differs from run to run
    assert "aten::addmm" in names
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == ["operators.txt", "trace.json.gz"]


def test_a_profile_ends_where_an_evaluation_begins(data, tmp_path):
    train(job(data, tmp_path, train__profile="4..8"))  # evaluated after step 5
    assert (tmp_path / "profile/operators.txt").read_text().startswith("steps 4 to 5 on")


def test_a_profile_that_would_never_begin_is_refused(data, tmp_path):
    with pytest.raises(BadInput, match="train.profile: step 11 never comes, the run has 10"):
        train(job(data, tmp_path, train__profile="11..12"))
    train(job(data, tmp_path, train__profile="10..12"))
    assert (tmp_path / "profile/operators.txt").read_text().startswith("steps 10 to 10 on")
