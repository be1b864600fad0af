"""What a kill or a bad disk leaves of a run: a damaged checkpoint is a sentence, and a restart finishes the rest."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from livetrain.cli import main as cli
from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.trainers.export import export, latency
from livetrain.trainers.runtime import manifest, run_folder, runlog
from tests.trainers.train import test_loop as loop


def flip(path: Path) -> None:
    """Change one byte in the middle of the tables."""
    shard = max(path.glob("*.distcp"), key=lambda file: file.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def cut(path: Path) -> None:
    shard = next(path.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])


def lose_a_file(path: Path) -> None:
    (path / ".metadata").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / manifest.MANIFEST).unlink()


def spoil_the_manifest(path: Path) -> None:
    (path / manifest.MANIFEST).write_bytes(b"\xff\xfe")


DAMAGES = [flip, cut, lose_a_file, lose_the_manifest, spoil_the_manifest, shutil.rmtree]


@pytest.fixture
def run(small_run, tmp_path) -> Path:
    """A finished run whose best checkpoint is not its last."""
    copy = tmp_path / "small"
    shutil.copytree(small_run, copy)
    paths = run_folder.committed(copy)
    content = manifest.read(paths[-1])
    content["position"]["best_step"] = int(paths[0].name[5:])
    manifest.write_json(paths[-1] / manifest.MANIFEST, content)
    return copy


def evaluate(run: Path) -> None:
    launch.evaluate(run, "test", "best")


def latencies(run: Path) -> None:
    latency.compare(run)


def warm_start(run: Path) -> None:
    recipe = load_recipe(run / "config.yaml", [f"train.warm_start={run}", "name=next"])
    launch.train(recipe, run.parent)


def finish(run: Path) -> None:
    """Go on with a run that was killed before result.json: it ends with the best checkpoint's test metrics."""
    (run / "result.json").unlink()
    launch.train(load_recipe(run / "config.yaml"), run.parent)


@pytest.mark.parametrize(
    ("command", "damage"),
    [
        *((evaluate, damage) for damage in DAMAGES),
        *(
            (command, damage)
            for command in (export.export, latencies, warm_start, finish)
            for damage in (flip, DAMAGES[-1])
        ),
    ],
)
@pytest.mark.some(5)
def test_no_command_takes_a_best_checkpoint_that_is_not_whole(run, command: Callable, damage: Callable):
    damage(run_folder.committed(run)[0])
    with pytest.raises(BadInput, match="is damaged|is missing|is gone") as error:
        command(run)
    said = str(error.value)
    assert "step-000000" in said
    assert len(said.replace(str(run), "runs/small")) < 300
    assert "; " in said, "no mend"
    assert not (run / "export").exists()
    assert command is not finish or not (run / "result.json").exists()
    assert not (run.parent / "next").exists()


def test_a_damaged_last_checkpoint_is_not_evaluated_either(run):
    flip(run_folder.committed(run)[-1])
    with pytest.raises(BadInput, match=r"is damaged: .*--checkpoint best"):
        launch.evaluate(run, "test", "last")


def test_the_command_ends_with_2_and_one_sentence(run, monkeypatch, capsys):
    flip(run_folder.committed(run)[0])
    monkeypatch.setattr(sys, "argv", ["livetrain", "evaluate", str(run)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert "is damaged" in captured.err
    assert "GAUC" not in captured.out


def refused(made: loop.Job) -> str:
    with pytest.raises(BadInput) as error:
        loop.train(made)
    return str(error.value)


@pytest.mark.slow
def test_two_ranks_share_the_checking_and_refuse_together(two_ranks, tmp_path):
    data = loop.samples.write(tmp_path / "data", rows=480)
    made = loop.job(data, tmp_path / "run", train__epochs=1)
    two_ranks.run(loop.train, made)
    paths = run_folder.committed(made.run)
    content = manifest.read(paths[-1])
    content["position"]["best_step"] = int(paths[0].name[5:])
    manifest.write_json(paths[-1] / manifest.MANIFEST, content)
    shards = sorted(paths[0].glob("*.distcp"))
    assert len(shards) == 2
    for shard in shards:
        kept = shard.read_bytes()
        shard.write_bytes(kept[:-1])
        one, other = two_ranks.run(refused, made)
        assert one == other
        assert f"{shard.name} is damaged" in one
        shard.write_bytes(kept)
    assert two_ranks.run(loop.train, made)[0]["result"]["best_step"] == int(paths[0].name[5:])


@pytest.mark.parametrize("content", ["", "{}", "features: [", "\x00\x00"])
def test_a_config_that_a_kill_has_spoilt_is_read_from_the_checkpoint(run, content):
    kept = load_recipe(run / "config.yaml")
    (run / "config.yaml").write_text(content)
    assert run_folder.recipe_of(run) == kept


def test_what_somebody_wrote_into_a_config_is_not_passed_over(run):
    """Messages say that a key may be changed there: one that is misspelt must not be lost in silence."""
    config = run / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8") + "exprot: {tolerance: 1}\n", encoding="utf-8")
    with pytest.raises(BadInput, match="exprot"):
        run_folder.recipe_of(run)


def test_a_run_without_its_config_is_evaluated_and_exported(run):
    wanted = launch.evaluate(run, "valid", "best")
    (run / "config.yaml").write_text("")
    assert launch.evaluate(run, "valid", "best") == wanted
    assert export.export(run)["run"] == "small"


def test_a_manifest_of_another_version_is_said(run):
    last = run_folder.committed(run)[-1]
    content = manifest.read(last)
    content["recipe"]["train"]["momentum_of_tomorrow"] = 1
    manifest.write_json(last / manifest.MANIFEST, content)
    with pytest.raises(BadInput, match="its recipe is none that this version of livetrain reads; use the version"):
        launch.evaluate(run, "test", "last")


def killed(run: Path, *names: str) -> None:
    for name in names:
        (run / name).unlink()


def test_a_restart_finishes_what_a_kill_behind_the_result_left_undone(run, monkeypatch):
    recipe = load_recipe(run / "config.yaml")
    result = (run / "result.json").read_bytes()
    killed(run, "report.png", "report.html")

    def never(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr("livetrain.trainers.train.loop.Trainer.run", never)
    assert not launch.complete(recipe, run)
    assert launch.train(recipe, run.parent) == json.loads(result)
    assert (run / "report.png").stat().st_size > 10_000
    assert (run / "report.html").stat().st_size > 100_000
    assert (run / "result.json").read_bytes() == result
    with pytest.raises(BadInput, match="this run is finished; give another name"):
        launch.train(recipe, run.parent)


def test_a_report_that_cannot_be_drawn_is_a_warning(run, monkeypatch, caplog):
    recipe = load_recipe(run / "config.yaml")
    result = json.loads((run / "result.json").read_bytes())
    killed(run, "report.png")
    with monkeypatch.context() as patch:
        patch.setattr("livetrain.trainers.observe.report.contents.band", lambda *arguments: 1 / 0)
        assert launch.train(recipe, run.parent) == result
    (warning,) = caplog.messages
    assert "the report is not drawn, for ZeroDivisionError: division by zero; start the run again" in warning
    assert not launch.complete(recipe, run)
    assert launch.train(recipe, run.parent) == result
    assert (run / "report.png").exists()


def test_a_result_that_is_none_is_made_again(run):
    recipe = load_recipe(run / "config.yaml")
    best = int(run_folder.committed(run)[0].name[5:])
    (run / "result.json").write_text('{"name"')
    assert launch.train(recipe, run.parent)["best_step"] == best


def test_the_test_line_stands_once_where_a_kill_came_before_the_result(run, monkeypatch):
    recipe = load_recipe(run / "config.yaml")
    killed(run, "result.json")
    with monkeypatch.context() as context:
        context.setattr(
            "livetrain.trainers.train.probes.spectra.Spectra.read",
            lambda self: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            launch.train(recipe, run.parent)
    assert len([line for line in runlog.read(run) if line.get("split") == "test"]) == 1
    launch.train(recipe, run.parent)
    assert len([line for line in runlog.read(run) if line.get("split") == "test"]) == 1
    assert not [path.name for path in run.iterdir() if path.name.endswith((".scratch", ".draft", ".part"))]
