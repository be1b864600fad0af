"""The chaos command itself: one kill, and a run that is not right is noticed."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import chaos
from livetrain.trainers.runtime import manifest, run_folder, runlog


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> chaos.Stage:
    return chaos.prepare(tmp_path_factory.mktemp("chaos") / "work")


@pytest.mark.slow
def test_a_night_that_is_killed_while_it_trains_ends_as_the_one_that_was_not(golden):
    story = chaos.Story(1, "night", [chaos.Kill("step", 7, "driver", 0.01)], [0])
    tale = chaos.tell(story, golden.folder.parent, golden, 1)
    assert tale.failures == []
    assert tale.kills == [{"phase": "step", "victim": "driver", "workers": 0}]
    assert tale.attempts == 2


def spoil_result(run: Path) -> None:
    (run / "result.json").write_text("{")


def spoil_checkpoint(run: Path) -> None:
    next(run_folder.committed(run)[0].glob("*.distcp")).write_bytes(b"")


def lose_step(run: Path) -> None:
    lines = [line for line in runlog.read(run) if line.get("step") != 3]
    (run / runlog.NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


def twice_tested(run: Path) -> None:
    (line,) = (line for line in runlog.read(run) if line.get("split") == "test")
    runlog.note(run, **{key: value for key, value in line.items() if key != "time"})


def other_scores(run: Path) -> None:
    rows = json.loads((run / "export/golden.json").read_text())
    rows["scores"]["click"][0] += 0.1
    manifest.write_json(run / "export/golden.json", rows)


def leave_scratch(run: Path) -> None:
    (run / ".train-host-1-00000000.scratch").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_result, "result: JSONDecodeError"),
        (spoil_checkpoint, "is damaged"),
        (lose_step, ": train lines are"),
        (twice_tested, "has 2 test lines"),
        (other_scores, "differ from golden.json"),
        (leave_scratch, "left: "),
    ],
)
def test_what_is_not_right_is_noticed(golden, tmp_path, spoil, said):
    story, stage = chaos.Story(2, "train", [], [0]), chaos.Stage(tmp_path, golden.recipe)
    shutil.copytree(golden.runs, stage.runs)
    assert chaos.OfRuns(story, stage, golden).failures == []
    spoil(stage.run("train"))
    assert any(said in failure for failure in chaos.OfRuns(story, stage, golden).failures)
