"""The loop: resumed runs are the runs that were never stopped, and ranks only share the work."""

import math
from pathlib import Path

import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.export.export import plain_model
from livetrain.trainers.runtime import ranks, run_folder, runlog
from livetrain.trainers.train import checkpoint, preflight
from livetrain.trainers.train.loop import Job, Trainer
from livetrain.trainers.train.schedule import factor
from tests import samples


class Killed(Exception):
    pass


def job(data: Path, run: Path, **changes) -> Job:
    recipe = samples.recipe(data, **changes)
    run.mkdir(parents=True, exist_ok=True)
    sources, statistics = preflight.check(recipe, lambda text: None)
    return Job(recipe, run, sources, statistics)


def train(made: Job, kill_at: int | None = None) -> dict:
    """Run a job on the ranks of this group; `kill_at` stops it dead after that many steps, as a kill would."""
    cuda = made.recipe.cluster.device == "cuda"
    with ranks.alone(cuda):
        trainer = Trainer(made, torch.device("cuda", 0) if cuda else torch.device("cpu"))
        if kill_at is not None:
            step = trainer.sharded.pipeline.progress

            def progress(feed):
                if trainer.step == kill_at:
                    raise Killed
                return step(feed)

            trainer.sharded.pipeline.progress = progress
            try:
                trainer.run()
            except Killed:
                return {}
        result = trainer.run()
        tables = {table: weight.clone() for table, weight, _, _ in trainer.sharded.shards()}
        return {"result": result, "tables": tables, "dense": dict(trainer.sharded.model.dense.state_dict())}


def log(run: Path) -> list[dict]:
    return [line for line in runlog.read(run) if line["kind"] == "train"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> tuple[Path, dict]:
    run = tmp_path_factory.mktemp("whole")
    return run, train(job(data, run, train__checkpoint_every=7))


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[part][k], other[part][k]) for part in ("tables", "dense") for k in one[part])


def finished(data: Path, run: Path, **changes) -> tuple[Path, dict]:
    """Train to the end in a folder that is a run's, with its recipe; return it, and what `train` returns."""
    made = job(data, run, **changes)
    (run / "config.yaml").write_text(dump_recipe(made.recipe))
    return run, train(made)


def test_it_learns(whole):
    result = whole[1]["result"]
    assert result["test.click.auc"] > 0.7
    assert result["step"] == 42
    assert result["cut"]["history"] == result["cut"]["rating"] > 0
    assert result["tables"]["rating"] == {"rows": 6, "occupied": 5, "occupancy": 5 / 6, "ids": 5, "collisions": 0}
    assert 0 < result["tables"]["movie"]["occupied"] <= 512


# Adam on touched rows, sharded and replicated, which counts its steps; a mean of the dense part.
KEEPING = {
    "optimizers__sparse": {"kind": "adam", "lr": 0.01},
    "tables__user__sharding": "data_parallel",
    "tables__rating__optimizer": {"lr": 0.1, "weight_decay": 0.01},
    "optimizers__ema": 0.9,
    "train__epochs": 1,
    "model__activation": "running_dice",
}


def test_optimizers_that_count_and_a_mean_are_resumed_bitwise(data, tmp_path):
    runs = [job(data, tmp_path / name, train__checkpoint_every=4, **KEEPING) for name in ("whole", "killed")]
    whole = train(runs[0])
    train(runs[1], kill_at=14)  # after an evaluation
    found = train(runs[1])
    assert same(found, whole)
    assert found["result"]["test.click.auc"] == whole["result"]["test.click.auc"] > 0.6


def test_the_mean_is_what_is_evaluated_and_exported(data, tmp_path):
    """The plain formula over every step's parameters; the checkpoint's model answers as the evaluation did."""
    made = job(data, tmp_path, **KEEPING, train__evaluate_every=1.0)
    with ranks.alone(cuda=False):
        trainer = Trainer(made, torch.device("cpu"))
        weight = trainer.sharded.model.dense.network.get_parameter(
            next(name for name, _ in trainer.sharded.model.dense.network.named_parameters())
        )
        seen, step = [], trainer.sharded.pipeline.update.mean.update

        def update():
            seen.append(weight.detach().clone())
            step()

        trainer.sharded.pipeline.update.mean.update = update
        result = trainer.run()
        trained = {name: value.clone() for name, value in trainer.sharded.model.dense.state_dict().items()}
    wanted = torch.zeros_like(weight)
    for number, value in enumerate(seen):
        kept = min(0.9, number / (number + 1))
        wanted = kept * wanted + (1 - kept) * value
    exported = plain_model(made.recipe, run_folder.checkpoint(tmp_path, result["best_step"]))
    found = {name: value for name, value in exported.dense.state_dict().items() if torch.equal(value, trained[name])}
    assert not any(name in found for name, _ in exported.dense.named_parameters())
    name = next(name for name, value in trained.items() if torch.equal(value, seen[-1]))
    assert torch.allclose(exported.dense.state_dict()[name], wanted, atol=1e-6)
    logits, labels = [], []
    reader = Reader(made.sources["test"], made.recipe, rank=0, world=1, shuffle=False)
    with torch.no_grad():
        for batch in reader.batches(0):
            logits.append(exported(batch.ids, batch.dense)["click"][batch.weights > 0])
            labels.append(batch.labels[batch.weights > 0, 0])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(labels))
    assert result["test.click.log_loss"] == pytest.approx(float(loss), abs=1e-6)


@pytest.mark.parametrize("kill_at", [9, *(pytest.param(step, marks=pytest.mark.slow) for step in (21, 30))])
def test_killed_and_resumed_is_bitwise_the_run_that_was_not(data, whole, tmp_path, kill_at):
    made = job(data, tmp_path, train__checkpoint_every=7)
    train(made, kill_at)
    assert run_folder.committed(tmp_path)
    found = train(made)
    assert same(found, whole[1])
    keys = ("step", "loss", "samples")
    assert [[x[k] for k in keys] for x in log(tmp_path)] == [[x[k] for k in keys] for x in log(whole[0])]
    for key in ("test.click.auc", "cut", "tables"):
        assert found["result"][key] == whole[1]["result"][key]


def test_an_epoch_that_began_in_another_order_does_not_go_on(data, tmp_path, monkeypatch):
    made = job(data, tmp_path, train__checkpoint_every=7)
    with monkeypatch.context() as before:
        before.setattr("livetrain.trainers.train.loop.ORDER", 1)
        train(made, 9)
    with pytest.raises(BadInput, match=r"of step 7 was written within an epoch by a livetrain that read rows in anoth"):
        train(made)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("memory", ["gpu", "host"])
def test_a_gpu_trains_what_a_cpu_trains_killed_or_not(drawn_on_the_host, data, whole, tmp_path, memory):
    made = job(data, tmp_path, train__checkpoint_every=7, cluster__device="cuda", tables__movie__memory=memory)
    train(made, kill_at=21)
    found = train(made)
    ours, wanted = log(tmp_path), log(whole[0])
    assert [line["samples"] for line in ours] == [line["samples"] for line in wanted]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in wanted], rel=1e-3)
    assert found["result"]["test.click.auc"] == pytest.approx(whole[1]["result"]["test.click.auc"], abs=1e-2)


def test_two_ranks_resume_bitwise(two_ranks, data, tmp_path):
    never, killed = job(data, tmp_path / "never"), job(data, tmp_path / "killed")
    wanted = two_ranks.run(train, never)
    two_ranks.run(train, killed, 25)
    found = two_ranks.run(train, killed)
    assert all(same(a, b) for a, b in zip(found, wanted, strict=True))


def test_two_ranks_train_the_same_samples_and_agree(two_ranks, data, tmp_path):
    changes = {"optimizers__sparse__kind": "sgd", "optimizers__dense__kind": "sgd", "train__epochs": 1}
    one = train(job(data, tmp_path / "one", **changes))
    two, _ = two_ranks.run(train, job(data, tmp_path / "two", **changes))
    alone, shared = log(tmp_path / "one"), log(tmp_path / "two")
    assert [x["samples"] for x in alone] == [x["samples"] for x in shared]
    assert len({x["samples"] for x in alone}) == len(alone) == 21
    assert [x["loss"] for x in shared] == pytest.approx([x["loss"] for x in alone], abs=1e-6)
    for name, value in one["dense"].items():
        assert torch.allclose(two["dense"][name], value, atol=1e-6), name
    keys = [k for k in one["result"] if k.startswith(("valid.", "test."))]
    assert {k: two["result"][k] for k in keys} == pytest.approx({k: one["result"][k] for k in keys}, abs=2e-3)


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(two_ranks, data, tmp_path, first):
    changes = {"optimizers__sparse__kind": "rowwise_adagrad", "optimizers__dense__kind": "sgd", "train__epochs": 1}
    whole = train(job(data, tmp_path / "whole", **changes))
    made = job(data, tmp_path / "moved", train__checkpoint_every=5, **changes)
    if first == 1:
        train(made, 17)
        found = two_ranks.run(train, made)[0]
    else:
        two_ranks.run(train, made, 17)
        found = train(made)
    assert [x["samples"] for x in log(tmp_path / "moved")] == [x["samples"] for x in log(tmp_path / "whole")]
    assert [x["loss"] for x in log(tmp_path / "moved")] == pytest.approx(
        [x["loss"] for x in log(tmp_path / "whole")], abs=1e-6
    )
    for name, value in whole["dense"].items():
        assert torch.allclose(found["dense"][name], value, atol=1e-5), name


def test_a_damaged_checkpoint_is_passed_over(data, tmp_path, caplog):
    made = job(data, tmp_path)
    train(made, 30)
    newest = run_folder.committed(tmp_path)[-1]
    shard = next(newest.glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    found = train(made)
    assert "damaged" in caplog.text
    assert found["result"]["step"] == 42
    assert log(tmp_path)[11]["step"] == 12


def test_an_uncommitted_checkpoint_is_not_there(data, tmp_path):
    made = job(data, tmp_path)
    train(made, 30)
    paths = run_folder.committed(tmp_path)
    (paths[-1] / "manifest.json").unlink()
    assert run_folder.committed(tmp_path) == paths[:-1]


def test_old_checkpoints_go_and_the_best_stays(data, tmp_path):
    train(job(data, tmp_path, train__checkpoint_every=2, train__keep=2))
    steps = [int(path.name[5:]) for path in run_folder.committed(tmp_path)]
    position = checkpoint.manifest.read(run_folder.committed(tmp_path)[-1])["position"]
    assert steps == sorted({position["best_step"], 40, 42})


def test_a_checkpoint_of_another_model_is_refused(data, tmp_path):
    train(job(data, tmp_path), 30)
    with pytest.raises(BadInput, match=r"model.units=\[16\], but the recipe says \[32\]"):
        train(job(data, tmp_path, model__units=[32]))
    with pytest.raises(BadInput, match="data.shards=12, but the recipe says 6"):
        train(job(data, tmp_path, data__shards=6))


def test_patience_ends_a_run_that_gets_no_better(data, tmp_path):
    made = job(
        data, tmp_path, train__patience=1, train__epochs=30, optimizers__dense__lr=1e-12, optimizers__sparse__lr=1e-12
    )
    found = train(made)["result"]
    assert found["step"] < 30 * 21


def test_a_loss_that_is_no_number_stops_the_run(data, tmp_path):
    with pytest.raises(BadInput, match="the loss is nan by step .* lower optimizers"):
        train(
            job(data, tmp_path, optimizers__sparse__lr=1e30, optimizers__sparse__kind="sgd", model__activation="relu")
        )


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ({"decay": "constant"}, [1, 1, 1]),
        ({"decay": "linear", "warmup_steps": 2, "final": 0.1}, [0.5, 1, 0.1 + 0.9 * (1 - 7 / 8)]),
        ({"decay": "cosine"}, [1, 0.5 * (1 + math.cos(math.pi / 10)), 0.5 * (1 + math.cos(0.9 * math.pi))]),
    ],
)
def test_schedule(data, schedule, wanted):
    recipe = samples.recipe(data, optimizers__schedule=schedule)
    assert [factor(step, 10, recipe) for step in (0, 1, 9)] == pytest.approx(wanted)


@pytest.mark.parametrize(("meant", "times"), [(None, 1), (24, 2), (96, 1), (384, 0.5), (48, 2**0.5)])
def test_rates_follow_the_square_root_of_the_batch_that_they_are_not_meant_for(data, meant, times):
    schedule = {"warmup_steps": 4, "decay": "linear", "final": 0.1}
    plain, scaled = (
        samples.recipe(data, optimizers={"schedule": schedule, **more}) for more in ({}, {"rates_for_batch": meant})
    )
    assert plain.data.batch_size == 96
    steps = range(20)
    assert [factor(s, 20, scaled) for s in steps] == pytest.approx([times * factor(s, 20, plain) for s in steps])
