import fcntl
import json
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

import livetrain
from livetrain.configs.errors import BadInput
from livetrain.trainers.observe.runs import age, listed, look, runs_table, sweeps
from tests.wheels import ROOT


def write(run, result=None, lines=(), text=None):
    run.mkdir(parents=True)
    config = "data: {path: /far/away/data}\nmodel: {kind: mmoe}\ntasks: {like: {label: like}, gift: {label: gift}}\n"
    (run / "config.yaml").write_text(config if text is None else text)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result is not None:
        (run / "result.json").write_text(json.dumps(result))
    return run


RESULT = {"selected": "like.auc", "best_by": "like.auc", "valid.like.auc": 0.75, "test.like.auc": 0.7, "wall_s": 9.0}
STEPS = [{"kind": "train", "step": step, "steps": 90} for step in (10, 20)]


def shown(found, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(runs_table(found))
    return console.export_text()


def test_a_run_is_what_became_of_it(small_run, tmp_path):
    assert look(small_run).state == "finished"
    assert look(small_run).metric == "click.auc"
    assert look(small_run).test == json.loads((small_run / "result.json").read_text())["test.click.auc"]
    assert look(write(tmp_path / "killed", lines=STEPS)).progress == "stopped 20/90"
    failed = look(write(tmp_path / "failed", lines=[*STEPS, {"kind": "failed", "text": "memory"}]))
    assert failed.progress == "failed 20/90"
    again = look(write(tmp_path / "again", lines=[*STEPS, {"kind": "failed"}, {"kind": "note"}]))
    assert again.state == "stopped"
    unfinished = shutil.copytree(small_run, tmp_path / "small")
    (unfinished / "result.json").write_text('{"half": ')
    found = look(unfinished)
    assert (found.progress, found.metric, found.test) == ("stopped 42/42", "click.auc", None)
    assert found.valid == look(small_run).valid


def test_a_run_that_is_trained_is_running(tmp_path):
    run = write(tmp_path / "run", lines=STEPS)
    (run / ".lock").touch()
    assert look(run).state == "stopped"
    with (run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert look(run).progress == "running 20/90"
    with (run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # looking has let go of it


@pytest.mark.parametrize("text", ["", "{", "- 1", "model: 3\ndata: []\ntasks: x", "model: {kind: }", "\x00"])
def test_a_run_of_which_nothing_is_whole_is_listed(tmp_path, text):
    run = write(tmp_path / "run", text=text)
    (run / "metrics.jsonl").write_text('[1]\n{"kind": "train", "st')
    (run / "checkpoints/step-00000010").mkdir(parents=True)
    (run / "result.json").write_text("[]")
    (found,) = listed(tmp_path)
    assert (found.state, found.step, found.metric) == ("stopped", None, None)
    assert "run" in shown([found])


def test_twenty_runs_fit_on_a_narrow_terminal_and_the_newest_is_first(tmp_path):
    for number in range(20):
        write(tmp_path / f"a_long_name_of_a_run-{number:02d}", RESULT if number % 2 else None, STEPS)
    (tmp_path / "notes").mkdir()
    (tmp_path / "sweep/trials").mkdir(parents=True)
    (tmp_path / "sweep/sweep.json").touch()
    write(tmp_path / "sweep/trials/000", RESULT)
    found = listed(tmp_path)
    assert len(found) == 20
    assert [run.changed for run in found] == sorted((run.changed for run in found), reverse=True)
    text = shown(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "like.auc" in text.replace("\n", "")
    assert "away/data" in text
    assert [run.name for run in listed(tmp_path / "sweep")] == ["000"]
    assert sweeps(tmp_path) == [tmp_path / "sweep"]
    assert len(listed(tmp_path / "a_long_name_of_a_run-00")) == 1


def test_a_folder_that_is_not_there_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "runs").mkdir()
    assert listed(tmp_path / "runs") == []
    with pytest.raises(BadInput, match="rnus: there is no such folder .did you mean .*runs"):
        listed(tmp_path / "rnus")


def test_the_frame_has_a_row_per_run(tmp_path):
    assert list(livetrain.runs(tmp_path)["run"]) == []
    write(tmp_path / "one", RESULT, STEPS)
    (row,) = livetrain.runs(tmp_path).to_dict("records")
    assert (row["state"], row["model"], row["tasks"]) == ("finished", "mmoe", ["like", "gift"])
    assert (row["valid"], row["test"], row["seconds"], row["steps"]) == (0.75, 0.7, 9.0, 90)


def test_ages_are_said_in_their_unit():
    assert [age(seconds) for seconds in (-3, 119, 121, 7199, 7201, 172_799, 200_000)] == [
        *("0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days"),
    ]


def test_a_list_needs_no_torch():
    code = "import sys; import livetrain.trainers.observe.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
