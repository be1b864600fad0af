import json
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

import livetrain
from livetrain.configs.errors import BadInput
from livetrain.trainers.evaluate.draws import Draws
from livetrain.trainers.observe import compare as module
from livetrain.trainers.observe.compare import Compared, compared, draw, remarks, tables
from tests import pictures
from tests.trainers.observe.test_runs import RESULT, STEPS, write


def read(found, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in tables(found):
        console.print(table)
    return console.export_text()


@pytest.fixture
def two(small_run, tmp_path):
    """A run, and one with other layers and slightly better figures."""
    one, other = (shutil.copytree(small_run, tmp_path / name) for name in ("one", "other"))
    result = json.loads((other / "result.json").read_text())
    (other / "result.json").write_text(json.dumps(result | {"test.click.auc": result["test.click.auc"] + 0.01}))
    config = (other / "config.yaml").read_text()
    assert "dim: 4" in config
    (other / "config.yaml").write_text(config.replace("dim: 4", "dim: 16").replace("kind: din", "kind: other"))
    return one, other


def test_what_differs_is_said_and_what_is_the_same_is_not(two):
    found = compared(two, None, "test")
    assert found.recipes() == {"tables.rating.dim": [4, 16], "model.kind": ["din", "other"]}
    text = read(found)
    assert "tables.user.dim" not in text
    assert "+0.0100" in text
    assert any("kept no draws" in line for line in remarks(found))


def test_differences_have_intervals_where_draws_pair(two):
    values = np.linspace(0.7, 0.8, 50)
    for run, more in zip(two, (0.0, 0.02), strict=True):
        Draws({"click.auc": values + more}, {"click": "same"}).write(run)
    found = compared(two, None, "test")
    difference, ends = found.difference(1, "test.click.auc")
    assert difference == pytest.approx(0.01)
    assert ends == pytest.approx((0.02, 0.02), abs=1e-6)
    assert found.difference(1, "valid.click.auc")[1] is None  # draws are of test
    assert "(+0.0200 to +0.0200)" in read(found, 120)
    row = found.frame.set_index(["metric", "run"]).loc["test.click.auc", "other"]
    assert row[["difference", "difference_low"]].tolist() == pytest.approx([0.01, 0.02], abs=1e-6)
    Draws({"click.auc": values}, {"click": "else"}).write(two[1])
    assert any("other rows of test" in line for line in remarks(compared(two, None, "test")))


def test_runs_that_have_nothing_in_common_and_are_unfinished_are_compared(small_run, tmp_path):
    other = write(tmp_path / "other", lines=STEPS)
    begun = write(tmp_path / "begun", text="")
    (begun / "metrics.jsonl").unlink()
    found = compared([small_run, other, begun], None, "test")
    text = read(found)
    assert "stopped 20/90" in text
    assert "other and small have no figure in common" in remarks(found)
    pictures.check(draw(found))
    assert found.frame["difference"].isna().all()


def test_twenty_runs_are_a_line_each(tmp_path):
    runs = [write(tmp_path / f"a_rather_long_name_of_a_run_{at}", RESULT, curve(at)) for at in range(20)]
    found = compared(runs, None, "test")
    text = read(found)
    assert max(map(len, text.splitlines())) <= 80
    assert remarks(found)[-1] == "the recipes are the same"
    figure = draw(found)
    assert len(figure.axes[0].lines) == 20
    pictures.check(figure)


def curve(at, steps=30):
    for step in range(1, steps + 1):
        loss = 0.4 + 1 / (step + at) if step % 7 else float("nan")
        yield {"kind": "train", "step": step, "steps": steps, "epoch": step / steps, "loss": loss}
        if step % 10 == 0:
            yield {"kind": "eval", "split": "valid", "step": step, "like.auc": 0.7 + step / 300 + at / 100}


def test_losses_are_means_of_stretches():
    assert module._smoothed([(step, step % 2) for step in range(600)]) == [(10 * at + 9, 0.5) for at in range(60)]
    assert module._smoothed([(1.0, 5.0), (2.0, 7.0)]) == [(1.0, 5.0), (2.0, 7.0)]
    assert module._smoothed([]) == []


def test_runs_of_one_name_go_by_their_folders(tmp_path):
    runs = [write(tmp_path / place / "same", RESULT) for place in ("a", "b")]
    assert compared(runs, None, "test").names == [str(run) for run in runs]


@pytest.mark.parametrize("names", [[], ["one"], ["one", "one"], ["one", "none"]])
def test_fewer_than_two_runs_are_refused(tmp_path, names):
    write(tmp_path / "one", RESULT)
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match=r"name two runs or more|holds no run"):
        livetrain.compare([tmp_path / name for name in names])


def test_measured_now_is_what_is_compared(two):
    wanted = [({"valid.click.auc": value}, Draws()) for value in (0.5, 0.75)]
    found = compared(two, wanted, "valid")
    assert isinstance(found, Compared)
    assert found.measured() == ["valid.click.auc"]
    assert found.difference(1, "valid.click.auc") == (0.25, None)
    assert isinstance(draw(found), Figure)
