"""Checkpoints are written beside training, hold the step they were taken at, and outlive every failure."""

import errno
import logging
import multiprocessing as mp
import os
import re
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.runtime import manifest, ranks, run_folder, runlog
from livetrain.trainers.train import checkpoint, memory, preflight, restore, writing
from livetrain.trainers.train.loop import Job, Trainer
from livetrain.trainers.train.sharding import Sharded, shard
from livetrain.trainers.train.staging import Staging
from tests import samples
from tests.anonymous import Anonymous

CPU = torch.device("cpu")
WRITE = dcp.FileSystemWriter.write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("samples"))


def job(data: Path, run: Path, **changes: Any) -> Job:
    run.mkdir(parents=True)
    recipe = samples.recipe(data, **{"train__epochs": 1, "train__checkpoint_every": 5, **changes})
    return Job(recipe, run, *preflight.check(recipe, lambda text: None))


def train(made: Job, write: Callable = WRITE) -> dict[str, torch.Tensor]:
    """Run a job, its shards written by `write`; return the tables' pieces."""
    with ranks.alone(cuda=False), mock.patch.object(dcp.FileSystemWriter, "write_data", write):
        trainer = Trainer(made, CPU)
        trainer.run()
        assert not [t for t in threading.enumerate() if t.name == "checkpoint"]
        return {f"{table}.{row}": weight.clone() for table, weight, row, _ in trainer.sharded.shards()}


def steps(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in run_folder.committed(run)]


def notes(run: Path) -> list[str]:
    return [line["text"] for line in runlog.read(run) if line["kind"] == "note"]


def content(path: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint, unsharded, by name."""
    whole = path.with_suffix(".pt")
    dcp_to_torch_save(path, whole)
    out = {}

    def flatten(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                flatten(part, f"{name}/{key}")
        else:
            out[name] = value

    flatten(torch.load(whole), "")
    return out


class Held:
    """A writer that waits until it is told to go on."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __get__(self, writer: dcp.FileSystemWriter, kind: type) -> Callable:
        def write(*arguments: Any) -> Any:
            assert self.event.wait(60)
            return WRITE(writer, *arguments)

        return write


def save_while_training(made: Job) -> bool:
    """Save step 5 three ways: before (blocking), in the background while steps 6 to 8 train, and what step 8 is."""
    with ranks.alone(cuda=False):
        sharded = shard(made.recipe, CPU)
        feed = Reader(made.sources["train"], made.recipe, rank=ranks.rank(), world=ranks.world(), shuffle=True).batches(
            0
        )
        go_on(sharded, feed, 5)
        blocking(sharded, made.run / "blocking")
        held, position = Held(), {"best_step": None, "waited": [0]}
        with (
            mock.patch.object(dcp.FileSystemWriter, "write_data", held),
            mock.patch.object(writing, "BLOCK", 1000),
            mock.patch.object(manifest, "digest", side_effect=AssertionError("a file is read again")),
            checkpoint.Saver(sharded, made.recipe, made.run) as saver,
        ):
            saver.save(5, position)
            position["waited"][0] = 3
            go_on(sharded, feed, 3)
            nothing_yet = not run_folder.committed(made.run)
            held.event.set()
            saver.wait()
        blocking(sharded, made.run / "later")
        feed.close()
        return nothing_yet and not [t for t in threading.enumerate() if t.name == "checkpoint"]


def go_on(sharded: Sharded, feed: Any, count: int) -> None:
    for _ in range(count):
        sharded.set_rates(1.0)
        sharded.pipeline.progress(feed)


def blocking(sharded: Sharded, path: Path) -> None:
    dcp.save(checkpoint.state(sharded), checkpoint_id=path, no_dist=ranks.world() == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_saved_is_the_step_of_the_save_though_training_went_on(two_ranks, data, tmp_path, workers):
    made = job(data, tmp_path / "run", tables__user__sharding="data_parallel", tables__rating__sharding="row_wise")
    assert all(two_ranks.run(save_while_training, made) if workers == 2 else [save_while_training(made)])
    path = run_folder.checkpoint(made.run, 5)
    found, wanted, later = content(path), content(made.run / "blocking"), content(made.run / "later")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    changed = {name for name in wanted if not torch.equal(later[name], wanted[name])}
    for part in ("tables", "momentum1", "user", "dense", "exp_avg"):
        assert any(part in name for name in changed), part
    assert manifest.read(path)["position"]["waited"] == [0]
    assert manifest.read(path)["files"].keys() == {p.name for p in path.iterdir()} - {manifest.MANIFEST}
    assert manifest.damage(path, manifest.read(path)) is None
    for table in FileSystemReader(path).read_metadata().state_dict_metadata.values():
        for chunk in getattr(table, "chunks", []):  # user is on every rank, rating on both, movie on one
            assert chunk.sizes.numel() * table.properties.dtype.itemsize <= max(1000, chunk.sizes[1:].numel() * 4)


def wait_for_the_write(made: Job) -> list[list[int]]:
    """Save twice where no copy fits; return what was committed after each save."""
    with ranks.alone(cuda=False), mock.patch.object(memory, "free_memory", return_value=1):
        sharded = shard(made.recipe, CPU)
        with checkpoint.Saver(sharded, made.recipe, made.run) as saver:
            found = []
            for step in (1, 2):
                saver.save(step, {"best_step": None})
                found.append(steps(made.run))
            blocking(sharded, made.run / "wanted")
        return found


@pytest.mark.parametrize("workers", [1, 2])
def test_where_no_copy_fits_training_waits_for_the_write(two_ranks, data, tmp_path, workers):
    made = job(data, tmp_path / "run")
    found = two_ranks.run(wait_for_the_write, made) if workers == 2 else [wait_for_the_write(made)]
    assert found == [[[1], [1, 2]]] * workers
    (said,) = notes(made.run)
    assert re.fullmatch(r"training will wait while checkpoints are written: a copy takes \S+ MiB of memory on .*", said)
    one, other = content(run_folder.checkpoint(made.run, 2)), content(made.run / "wanted")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_write_that_training_waits_for_is_tried_twice(data, tmp_path, monkeypatch):
    made, again = job(data, tmp_path / "run", train__keep=9), job(data, tmp_path / "again")
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    train_with_failures(made, 2)
    assert steps(made.run) == [5, 10, 11, 15, 20, 21]
    assert "a checkpoint could not be written, twice" in refused(again, 2, 3)
    assert steps(again.run) == [5]


def test_of_many_tensors_one_block_is_held_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "BLOCK", 4 << 20)
    live = {str(n): torch.full((2 << 20,), float(n)) for n in range(12)}  # 8 MiB each
    read = {name: torch.full((2 << 20,), 99.0) for name in live}
    with Anonymous() as taken:
        dcp.save(live, storage_writer=writing.Writer(tmp_path), planner=writing.Planner(), no_dist=True)
    assert taken.most < 40 << 20  # of 96
    with Anonymous() as taken:
        reader = restore.Reader(tmp_path, {path.name for path in tmp_path.iterdir()})
        dcp.load(read, storage_reader=reader, planner=restore.Planner(), no_dist=True)
    assert taken.most < 40 << 20  # of 96
    assert all(torch.equal(read[name], live[name]) for name in live)


def test_a_copy_takes_what_the_state_takes(data, tmp_path):
    with ranks.alone(cuda=False):
        sharded = shard(samples.recipe(data), CPU)
        live, staging = checkpoint.state(sharded), Staging()
        copied = staging.copy(live)
        tensors = [part for part in _leaves(live) if isinstance(part, torch.Tensor)]
        size = sum(part.nbytes for part in tensors)
        assert size <= staging._memory.nbytes < size + 64 * len(tensors)
        kept = staging._memory.data_ptr()
        before = [part.clone() for part in tensors]
        for part in tensors:
            part.fill_(7)
        assert all(
            torch.equal(a, b)
            for a, b in zip([p for p in _leaves(copied) if isinstance(p, torch.Tensor)], before, strict=True)
        )
        staging.copy(live)
        assert staging._memory.data_ptr() == kept  # the memory of the first copy is that of all


def _leaves(value: Any) -> list[Any]:
    """What a rank holds of a state."""
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    return [shard.tensor for shard in value.local_shards()] if hasattr(value, "local_shards") else [value]


def test_one_write_at_a_time_and_in_order(data, tmp_path):
    made, happened = job(data, tmp_path / "run", train__keep=9), []

    def write(writer: dcp.FileSystemWriter, *arguments: Any) -> Any:
        happened.append(("begin", int(writer.path.name[5:]), steps(made.run)))
        out = WRITE(writer, *arguments)
        happened.append(("end", int(writer.path.name[5:]), steps(made.run)))
        return out

    train(made, write)
    saved = [5, 10, 11, 15, 20, 21]
    assert steps(made.run) == saved
    assert happened == [(what, s, saved[:i]) for i, s in enumerate(saved) for what in ("begin", "end")]


class Failing:
    """A writer that fails in the middle, on the last rank, in its `calls`; it notes what is committed as it begins."""

    def __init__(self, run: Path, *calls: int) -> None:
        self.run, self.calls, self.committed = run, calls, []

    def __get__(self, writer: dcp.FileSystemWriter, kind: type) -> Callable:
        def write(*arguments: Any) -> Any:
            self.committed.append(steps(self.run))
            out = WRITE(writer, *arguments)
            if len(self.committed) in self.calls and ranks.rank() == ranks.world() - 1:
                written = next(writer.path.glob(f"__{ranks.rank()}_*.distcp"))
                os.truncate(written, written.stat().st_size // 2)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(written))
            return out

        return write


def train_with_failures(made: Job, *calls: int) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    writer = Failing(made.run, *calls)
    return train(made, writer), writer.committed


def refused(made: Job, *calls: int) -> str:
    with pytest.raises(BadInput) as error:
        train(made, Failing(made.run, *calls))
    return str(error.value)


@pytest.mark.slow
def test_a_write_that_fails_is_reported_and_the_run_goes_on(two_ranks, data, tmp_path):
    never, made = job(data, tmp_path / "never"), job(data, tmp_path / "made", train__keep=9)
    wanted = two_ranks.run(train, never)
    found = two_ranks.run(train_with_failures, made, 2)
    for (tables, committed), same in zip(found, wanted, strict=True):
        assert all(torch.equal(tables[name], same[name]) for name in same)
        # Step 10 fails on rank 1, is not there, and is written once more before step 11 is copied.
        assert committed == [[], [5], [5], [5, 10], [5, 10, 11], [5, 10, 11, 15], [5, 10, 11, 15, 20]]
    failed = [text for text in notes(made.run) if "could not be written" in text]
    assert len(failed) == 1
    assert failed[0].startswith("the checkpoint of step 10 could not be written: rank 1: OSError: [Errno 28] No space")
    assert steps(made.run) == [5, 10, 11, 15, 20, 21]
    assert all(manifest.damage(path, manifest.read(path)) is None for path in run_folder.committed(made.run))


@pytest.mark.parametrize(("calls", "left"), [pytest.param((2, 3), [5], marks=pytest.mark.slow), ((6, 7), [15, 20])])
@pytest.mark.slow
def test_a_write_that_fails_twice_ends_the_run_and_the_last_good_one_stays(two_ranks, data, tmp_path, calls, left):
    made, never = job(data, tmp_path / "made", evaluate__group_by=None), job(data, tmp_path / "never")
    for message in two_ranks.run(refused, made, *calls):
        assert message.startswith(f"{made.run}: a checkpoint could not be written, twice (rank 1: OSError: [Errno 28]")
        assert message.endswith("then start the run again: it goes on from its last checkpoint")
    assert set(left) <= set(steps(made.run))
    assert max(steps(made.run)) == left[-1]
    assert len(list((made.run / "checkpoints").iterdir())) == len(steps(made.run))
    for found, wanted in zip(two_ranks.run(train, made), two_ranks.run(train, never), strict=True):
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_storage_that_takes_no_more_bytes(data, tmp_path, caplog):
    made, soft = job(data, tmp_path / "run"), resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = []

    def write(writer: dcp.FileSystemWriter, *arguments: Any) -> Any:
        calls.append(writer.path)
        if len(calls) != 2:
            return WRITE(writer, *arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, soft[1]))
        try:
            return WRITE(writer, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, soft)

    with caplog.at_level(logging.WARNING):
        train(made, write)
    assert "the checkpoint of step 10 could not be written" in caplog.text
    assert calls[1] == calls[2]
    assert steps(made.run)[-1] == 21


def train_until_killed(made: Job, at: int) -> None:
    def write(writer: dcp.FileSystemWriter, *arguments: Any) -> Any:
        out = WRITE(writer, *arguments)
        if writer.path == run_folder.checkpoint(made.run, at):
            os.kill(os.getpid(), signal.SIGKILL)
        return out

    torch.set_num_threads(1)
    train(made, write)


def test_killed_between_copy_and_commit_it_resumes_from_the_one_before(data, tmp_path):
    never, made = job(data, tmp_path / "never"), job(data, tmp_path / "made")
    process = mp.get_context("spawn").Process(target=train_until_killed, args=(made, 15))
    process.start()
    wanted = train(never)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert list(run_folder.checkpoint(made.run, 15).glob("*.distcp"))
    assert steps(made.run)[-1] == 11
    found = train(made)
    assert "resumed at step 11" in notes(made.run)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("keep", "best", "newest", "left"),
    [
        (1, None, 4, [4]),
        (2, 1, 4, [1, 3, 4]),
        (2, 4, 4, [3, 4]),
        (9, None, 4, [1, 2, 3, 4]),
        (1, 1, 3, [1, 3, 4]),  # 4 is left of a run that was resumed from 2
        (1, 4, 2, [2, 3, 4]),
    ],
)
def test_prune_keeps_the_newest_and_the_best(tmp_path, keep, best, newest, left):
    for step in (1, 2, 3, 4):
        run_folder.checkpoint(tmp_path, step).mkdir(parents=True)
        manifest.commit(run_folder.checkpoint(tmp_path, step), {})
    checkpoint.prune(tmp_path, keep, best, run_folder.checkpoint(tmp_path, newest))
    assert steps(tmp_path) == left


def test_what_a_kill_left_goes_with_the_next_checkpoint(data, tmp_path):
    made = job(data, tmp_path / "run")
    for step in (1, 3):
        run_folder.checkpoint(made.run, step).mkdir(parents=True)
        (run_folder.checkpoint(made.run, step) / "__0_0.distcp").write_text("half")
    train(made)
    assert len(list((made.run / "checkpoints").iterdir())) == len(steps(made.run))
