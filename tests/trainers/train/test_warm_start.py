"""A warm start: the new run begins as the old one ended, whatever the ranks and however much its tables grew."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensorBase, ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharding_spec import ShardMetadata

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.modules.batch import Batch
from livetrain.modules.model import Model
from livetrain.trainers.export.export import plain_model
from livetrain.trainers.runtime import ranks, run_folder, runlog
from livetrain.trainers.runtime.run_folder import find_checkpoint
from livetrain.trainers.train import checkpoint, warm_start
from livetrain.trainers.train.sharding import shard
from tests import samples, twins
from tests.trainers.train import test_loop as loop
from tests.trainers.train import test_sharding as sharding

CPU = torch.device("cpu")
KINDS = {
    "row-wise Adagrad, Adam": {"optimizers__dense__kind": "adam"},
    "Adagrad": {"optimizers__sparse__kind": "adagrad"},
    "SGD": {"optimizers__sparse__kind": "sgd"},
    "replicated users": {"tables__user__sharding": "data_parallel"},
}
# By four, by two and not at all; row-wise shards on two ranks are larger than the old table, and smaller.
GROWN = {"tables__movie__rows": 160, "tables__user__rows": 122}


def everything(sharded) -> dict[str, torch.Tensor]:
    """Every tensor of a model and its optimizers, whole."""
    flat: dict[str, object] = {}

    def collect(at: str, value) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                collect(f"{at}/{key}", part)
        else:
            flat[at] = value

    collect("", checkpoint.state(sharded))
    return sharding.whole(flat)


def save(made_for, path: Path, steps: int = 5) -> dict[str, torch.Tensor]:
    """Train a few steps and write a checkpoint; return what it holds."""
    sharded = shard(made_for, CPU)
    rank, world = ranks.rank(), ranks.world()
    feed = iter([twins.part(batch, rank, world) for batch in twins.batches(made_for, steps)])
    sharded.module.train()
    sharded.set_rates(1.0)
    for _ in range(steps):
        sharded.pipeline.progress(feed)
    with checkpoint.Saver(sharded, made_for, path) as saver:
        saver.save(steps, {"best_step": steps})
        saver.wait()
    return everything(sharded)


def begin(made_for, path: Path) -> dict[str, torch.Tensor]:
    sharded = shard(made_for, CPU)
    warm_start.load(sharded, made_for, path)
    return everything(sharded)


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("growth", [{}, GROWN], ids=["same size", "grown"])
@pytest.mark.parametrize("before", [1, 2])
def test_every_row_begins_as_the_one_that_its_ids_come_from(two_ranks, tmp_path, changes, growth, before):
    old, new = twins.recipe(**changes), twins.recipe(**changes, **growth)
    if before == 1:
        with ranks.alone(cuda=False):
            wanted = save(old, tmp_path)
        found = two_ranks.run(begin, new, run_folder.checkpoint(tmp_path, 5))[0]
    else:
        wanted = two_ranks.run(save, old, tmp_path)[0]
        with ranks.alone(cuda=False):
            found = begin(new, run_folder.checkpoint(tmp_path, 5))
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        rows = torch.arange(len(value)) % len(wanted[name]) if value.dim() else ...
        assert torch.equal(value, wanted[name][rows]), name
    if growth:
        longer = [name for name, value in found.items() if value.dim() and len(value) > len(wanted[name])]
        assert {"movie", "user"} == {name.split(".embeddings.")[1].split(".")[0] for name in longer}


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 20))
def test_rows_follow_one_another_modulo_the_old_table(first, size, rows):
    found = [(at + i, old + i) for at, old, count in warm_start._ranges(first, size, rows) for i in range(count)]
    assert found == [(at, (first + at) % rows) for at in range(size)]


@pytest.mark.parametrize("shape", [(10, 4), (10,)])
@pytest.mark.parametrize("cuts", [[0, 5, 10, 15, 20], [0, 7, 14, 20], [0, 3, 30], [0, 40]])
def test_a_rank_reads_the_old_rows_that_its_shard_needs(tmp_path, shape, cuts):
    """Shards smaller than the old table, as more than two ranks have them: some begin at its end and go on at row 0."""
    old = torch.randn(shape)
    dcp.save({"part": {"t.embeddings.x.weight": old}}, checkpoint_id=tmp_path, no_dist=True)
    size = [cuts[-1], *shape[1:]]
    for first, stop in zip(cuts, cuts[1:], strict=False):
        shard_ = Shard.from_tensor_and_offsets(
            torch.zeros(stop - first, *shape[1:]), [first] + [0] * (len(shape) - 1), 0
        )
        everything = ShardMetadata([0] * len(size), size, "rank:0/cpu")
        whole = ShardedTensorMetadata([everything], torch.Size(size), TensorProperties())
        live = ShardedTensorBase._init_from_local_shards_and_global_metadata([shard_], whole)
        live._process_group = None
        asked = {"part": {"t.embeddings.x.weight": warm_start._smaller(live, 10)}}
        read = sum(len(s.tensor) for s in asked["part"]["t.embeddings.x.weight"].local_shards())
        assert read == min(stop - first, 10)
        dcp.load(asked, checkpoint_id=tmp_path, no_dist=True)
        warm_start._spread(live, asked["part"]["t.embeddings.x.weight"], 10)
        assert torch.equal(shard_.tensor, old[torch.arange(first, stop) % 10])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("samples"), rows=1000)


@pytest.fixture(scope="module")
def yesterday(data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "yesterday"
    launch.train(samples.recipe(data, name="yesterday", train__epochs=1), run.parent)
    return run


def test_a_grown_model_answers_what_it_answered(yesterday, data):
    old = samples.recipe(data, train__epochs=1)
    new = samples.recipe(data, train__epochs=1, tables__movie__rows=2048, tables__user__rows=300)
    path = find_checkpoint(yesterday, "best")
    batch: Batch = twins.batches(old, 1)[0]
    with ranks.alone(cuda=False):
        sharded = shard(new, CPU)
        warm_start.load(sharded, new, path)
        grown = Model(new)
        grown.load_state_dict({name: value for name, value in _plain(sharded).items()})
    grown.eval()
    assert torch.equal(grown(batch.ids, batch.dense)["click"], plain_model(old, path)(batch.ids, batch.dense)["click"])


def _plain(sharded) -> dict[str, torch.Tensor]:
    return {name.removeprefix("/model/"): v for name, v in everything(sharded).items() if name.startswith("/model/")}


def test_a_run_goes_on_from_another_and_is_resumed_bitwise(yesterday, data, tmp_path):
    changes = {"train__warm_start": str(yesterday), "train__epochs": 1, "train__checkpoint_every": 5}
    whole = loop.train(loop.job(data, tmp_path / "whole", **changes))
    killed = loop.job(data, tmp_path / "killed", **changes)
    loop.train(killed, kill_at=3)  # before its first checkpoint: it begins again
    assert loop.same(whole, loop.train(killed))
    notes = [line["text"] for line in runlog.read(tmp_path / "whole") if line["kind"] == "note"]
    assert f"begins with {find_checkpoint(yesterday, 'best')}" in notes
    cold = loop.job(data, tmp_path / "cold", **{**changes, "train__warm_start": None})
    loop.train(cold)
    first = {name: loop.log(tmp_path / name)[0]["loss"] for name in ("whole", "cold")}
    assert first["whole"] < first["cold"] - 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__warm_start": "nowhere"}, r"train.warm_start: nowhere: this folder holds no run"),
        ({"tables__movie__rows": 700}, r"train.warm_start: .* was written with tables.movie.rows=512, but .* says 700"),
        ({"tables__movie__rows": 256}, r"train.warm_start: .*tables.movie.rows=512, but the recipe says 256"),
        ({"model__units": [8]}, r"train.warm_start: .*model.units=\[16\], but the recipe says \[8\]"),
        ({"features__more": {"type": "dense", "column": "worth"}}, r"train.warm_start: .*features.more"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(yesterday, data, tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        launch.train(samples.recipe(data, **{"train__warm_start": str(yesterday), **changes}), tmp_path)
    assert not (tmp_path / "small").exists()


def test_a_damaged_start_is_refused(yesterday, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(yesterday, copy)
    shard_file = next(find_checkpoint(copy, "best").glob("*.distcp"))
    shard_file.write_bytes(shard_file.read_bytes()[:-1])
    made = loop.job(data, tmp_path / "run", train__warm_start=str(copy))
    with pytest.raises(
        BadInput, match="train.warm_start: .* is damaged: .*; start from another run, or leave train.warm_start out"
    ):
        loop.train(made)
