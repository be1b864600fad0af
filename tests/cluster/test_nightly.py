"""Nights one after another, on real partitions: what each begins with, what is published, and what is not."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from livetrain.cli import main as cli
from livetrain.cluster import days, launch, nightly, parcel, submit
from livetrain.configs.errors import BadInput, NotNow
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.configs.schema import Recipe
from livetrain.trainers.export import publish
from livetrain.trainers.runtime import manifest, runlog
from livetrain.trainers.runtime.run_folder import find_checkpoint
from tests import samples

DAYS = [f"2022-05-0{day}" for day in range(1, 7)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six days of samples of one distribution."""
    folder = tmp_path_factory.mktemp("days")
    for number, day in enumerate(DAYS):
        made = samples.write(folder / "made" / day, rows=480, seed=number)
        shutil.copytree(made / "train", folder / "data" / f"date={day}")
    return folder / "data"


def recipe(data: Path, **changes) -> Recipe:
    days = {"train": "2022-05-01..2022-05-02", "valid": "2022-05-03..2022-05-03", "test": "2022-05-04..2022-05-04"}
    made = {"name": "din", "data__days": days, "train__epochs": 1, "evaluate__group_by": None}
    return samples.recipe(data, **{**made, **changes})


class Nights:
    def __init__(self, data: Path, folder: Path) -> None:
        self.recipe, self.runs, self.where, self.said = recipe(data), folder / "runs", str(folder / "models"), []

    def night(self, day: str | None, tolerance: float = 1.0, cold: bool = False, keep: int = 7, **changes):
        made = self.recipe.model_copy(update=changes)
        return nightly.night(made, self.runs, day, self.where, tolerance, keep, cold, self.said.append)

    def notes(self, day: str) -> list[str]:
        return [line["text"] for line in runlog.read(self.runs / f"din-{day}") if line["kind"] == "note"]


@pytest.fixture
def nights(data, tmp_path) -> Nights:
    return Nights(data, tmp_path)


@pytest.mark.slow
def test_nights_follow_one_another(nights):
    first = nights.night("2022-05-04")
    assert not any("begins with" in note for note in nights.notes("2022-05-04"))
    second = nights.night(None)  # the newest day is 05-06
    assert (first["fence"], second["fence"], second["version"]) == (1, 2, "2022-05-06")
    assert any(f"begins with {nights.runs / 'din-2022-05-04'}" in note for note in nights.notes("2022-05-06"))
    made = load_recipe(nights.runs / "din-2022-05-06/config.yaml")
    assert made.data.days.model_dump() == {
        "train": "2022-05-03..2022-05-04",
        "valid": "2022-05-05..2022-05-05",
        "test": "2022-05-06..2022-05-06",
    }
    served = Path(nights.where) / publish.current(nights.where)["folder"]
    assert manifest.damage(served, manifest.read(served)) is None
    assert json.loads((served / "signature.json").read_text())["run"] == "din-2022-05-06"
    result = json.loads((nights.runs / "din-2022-05-06/result.json").read_text())
    assert second["value"] == result["test.click.auc"]
    with pytest.raises(BadInput, match="version 2022-05-06 is published, and 2022-05-05 is older"):
        nights.night("2022-05-05")
    assert not (nights.runs / "din-2022-05-05").exists()


@pytest.mark.slow
def test_a_night_whose_recipe_has_gained_a_feature_begins_with_what_fits_of_the_last(nights):
    """And is compared with the model of the recipe before, which is published."""
    nights.night("2022-05-04")
    more = {"features__again": {"type": "id", "column": "user", "table": "again"}}
    more["tables__again"] = {"rows": 50, "dim": 4}
    nights.recipe = recipe(nights.recipe.data.path, **more)
    second = nights.night("2022-05-05")
    assert (second["version"], second["fence"]) == ("2022-05-05", 2)
    notes = nights.notes("2022-05-05")
    assert any(note.startswith(f"begins with {nights.runs / 'din-2022-05-04'}") for note in notes)
    assert any(note.startswith("tables.again: nothing taken") for note in notes)
    told = (nights.runs / "din-2022-05-05/warm_start.txt").read_text().splitlines()
    taken = {name: how for name, how, *_ in (line.split() for line in told[1:])}
    assert {taken[f"tables.{name}"] for name in ("user", "movie", "rating")} == {"all"}
    assert taken["tables.again"] == "nothing"
    assert taken["layers.tower.linears.0"] == "part"


def test_a_night_is_done_once(nights, monkeypatch):
    pointer = nights.night("2022-05-04")

    def never(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(launch, "train", never)
    assert nights.night("2022-05-04") == pointer
    assert nights.said[-1] == "din-2022-05-04 is published already, as 2022-05-04.000001"
    (Path(nights.where) / publish.POINTER).unlink()  # as if the night had been killed before
    again = nights.night("20220504")  # the same day
    assert (again["run"], again["folder"], again["fence"]) == (pointer["run"], "2022-05-04.000002", 2)


@pytest.mark.slow
def test_a_killed_night_goes_on_as_it_began(nights, monkeypatch):
    nights.night("2022-05-04")
    train = launch.train

    def killed(made, runs):
        monkeypatch.setattr(
            "livetrain.trainers.train.loop.Trainer.run", lambda trainer: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        try:
            return train(made, runs)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(launch, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        nights.night("2022-05-06")
    assert (nights.runs / "din-2022-05-06/config.yaml").exists()
    nights.night("2022-05-05")
    nights.night("2022-05-06")
    assert any("begins with" in note and "din-2022-05-04" in note for note in nights.notes("2022-05-06"))


def kill(runs: Path, day: str, *names: str) -> None:
    for name in names:
        (runs / f"din-{day}" / name).unlink()


@pytest.mark.slow
def test_a_night_killed_behind_its_result_still_gets_its_report(nights, monkeypatch):
    nights.night("2022-05-04")
    kill(nights.runs, "2022-05-04", "report.png", "export/manifest.json")
    (Path(nights.where) / publish.POINTER).unlink()
    shutil.rmtree(nights.runs / "din-2022-05-04/export")

    def never(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr("livetrain.trainers.train.loop.Trainer.run", never)
    assert nights.night("2022-05-04")["version"] == "2022-05-04"
    assert (nights.runs / "din-2022-05-04/report.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["", None])
def test_a_night_whose_config_a_kill_has_spoilt_goes_on(nights, config):
    """From its checkpoint as it began, or anew where it has none."""
    nights.night("2022-05-04")
    kill(nights.runs, "2022-05-04", "result.json")
    (Path(nights.where) / publish.POINTER).unlink()
    if config is None:
        shutil.rmtree(nights.runs / "din-2022-05-04/checkpoints")
    (nights.runs / "din-2022-05-04/config.yaml").write_text("")
    assert nights.night("2022-05-04")["version"] == "2022-05-04"
    assert load_recipe(nights.runs / "din-2022-05-04/config.yaml").train.warm_start is None


@pytest.mark.slow
def test_cold_counts_for_a_night_that_is_begun_again_too(nights):
    nights.night("2022-05-04")
    nights.night("2022-05-05")
    kill(nights.runs, "2022-05-05", "result.json")
    (Path(nights.where) / publish.POINTER).unlink()
    with pytest.raises(BadInput, match="written with train.warm_start=.*, but the recipe says None; use that recipe"):
        nights.night("2022-05-05", cold=True)
    shutil.rmtree(nights.runs / "din-2022-05-05/checkpoints")
    nights.night("2022-05-05", cold=True)
    assert load_recipe(nights.runs / "din-2022-05-05/config.yaml").train.warm_start is None


@pytest.mark.slow
def test_a_night_begins_with_one_whose_best_checkpoint_is_there(nights):
    nights.night("2022-05-04")
    nights.night("2022-05-05")
    best = find_checkpoint(nights.runs / "din-2022-05-05", "best")
    (best / manifest.MANIFEST).unlink()
    assert nightly.earlier(nights.runs, "din", "2022-05-06", None) == nights.runs / "din-2022-05-04"


@pytest.mark.slow
def test_a_damaged_published_model_is_said_with_what_helps(nights):
    nights.night("2022-05-04")
    old = nights.runs / "din-2022-05-04"
    shard = next(find_checkpoint(old, "best").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(BadInput, match=f"is damaged: .*, or remove {old}, and the published model is not compared"):
        nights.night("2022-05-05", cold=True)
    shutil.rmtree(old)
    assert nights.night("2022-05-05", cold=True)["fence"] == 2


HOLD = """
import sys, time
from pathlib import Path
from livetrain.cluster.alone import alone
with alone(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_one_night_of_a_name_at_a_time(nights, monkeypatch):
    monkeypatch.setattr("livetrain.cluster.alone.PATIENCE_S", 0.0)
    nights.runs.mkdir()
    command = [sys.executable, "-c", HOLD, str(nights.runs / ".din.night")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(cli.__file__).parents[1]) as first:
        try:
            assert first.stdout.readline() == "held\n"
            with pytest.raises(NotNow, match="another night of din is at work there; wait for its end, or end it"):
                nights.night("2022-05-04")
            assert not (nights.runs / "din-2022-05-04").exists()
        finally:
            first.kill()
    assert nights.night("2022-05-04")["fence"] == 1


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (OSError(errno.EIO, "Input/output error"), NotNow),
        (OSError("AWS Error NETWORK_CONNECTION"), NotNow),
        (TimeoutError(), NotNow),
        (FileNotFoundError(), BadInput),
        (PermissionError(), BadInput),
        (ValueError(), BadInput),
        (None, BadInput),
    ],
)
def test_a_storage_that_failed_is_asked_again_later_and_a_wrong_name_is_not(nights, monkeypatch, cause, kind):
    def fails(*arguments):
        raise BadInput("data.path: s3://bucket cannot be read; mend the place") from cause

    monkeypatch.setattr(launch, "train", fails)
    with pytest.raises(BadInput, match=r"s3://bucket cannot be read") as error:
        nights.night("2022-05-04")
    assert type(error.value) is kind


@pytest.mark.parametrize("of", ["days.newest_day", "nightly.publish.current"])
def test_a_storage_that_fails_before_the_first_night_is_asked_again_later_too(data, tmp_path, monkeypatch, of):
    def fails(*_):
        raise BadInput("s3://bucket cannot be read; mend the place") from OSError(errno.EIO, "Input/output error")

    path = tmp_path / "din.yaml"
    path.write_text(dump_recipe(recipe(data)))
    monkeypatch.setattr(f"livetrain.cluster.{of}", fails)
    options = [] if of == "days.newest_day" else ["--days", "2022-05-04..2022-05-05"]
    assert command(monkeypatch, "nightly", str(path), "--publish", str(tmp_path / "m"), *options) == cli.NOT_NOW


@pytest.mark.slow
def test_a_cold_night_begins_anew(nights):
    nights.night("2022-05-04")
    nights.night("2022-05-05", cold=True)
    assert not any("begins with" in note for note in nights.notes("2022-05-05"))


def test_a_worse_model_is_not_published(nights):
    before = nights.night("2022-05-04")
    sparse = nights.recipe.optimizers.sparse.model_copy(update={"lr": 30.0})
    spoilt = nights.recipe.optimizers.model_copy(update={"sparse": sparse})
    assert nights.night("2022-05-05", tolerance=0.002, cold=True, optimizers=spoilt) is None
    assert "not published: din-2022-05-04 has" in nights.said[-1]
    assert publish.current(nights.where) == before
    theirs = launch.evaluate(
        nights.runs / "din-2022-05-04", "test", "best", days.moved(nights.recipe, "2022-05-05").data.days
    )
    assert f"{theirs['test.click.auc']:.4f}" in nights.said[-1]
    nights.night("2022-05-06")
    assert any("begins with" in note and "din-2022-05-04" in note for note in nights.notes("2022-05-06"))


@pytest.mark.slow
def test_old_nights_lose_their_checkpoints_but_not_the_published_one(nights):
    spoilt = nights.recipe.optimizers.sparse.model_copy(update={"lr": 30.0})
    changes = {"optimizers": nights.recipe.optimizers.model_copy(update={"sparse": spoilt})}
    nights.night("2022-05-04", keep=1)
    assert nights.night("2022-05-05", tolerance=0.0, cold=True, keep=1, **changes) is None
    kept = {run.name[-10:]: (run / "checkpoints").exists() for run in nights.runs.glob("din-*")}
    assert kept == {"2022-05-04": True, "2022-05-05": True}  # published, and newest
    nights.night("2022-05-06", keep=1)
    kept = {run.name[-10:]: (run / "checkpoints").exists() for run in nights.runs.glob("din-*")}
    assert kept == {"2022-05-04": False, "2022-05-05": False, "2022-05-06": True}
    assert all((run / "result.json").exists() for run in nights.runs.glob("din-*"))


@pytest.mark.slow
def test_a_model_taken_back_is_not_published_again_nor_begun_with(nights, monkeypatch):
    first = nights.night("2022-05-04")
    nights.night("2022-05-05")
    back = publish.rollback(nights.where)
    assert (back["folder"], back["fence"]) == (first["folder"], 3)
    monkeypatch.setattr(launch, "train", mock.Mock(side_effect=AssertionError("trained again")))
    with pytest.raises(BadInput, match="took back the versions up to 2022-05-05, so 2022-05-05 is not published"):
        nights.night("2022-05-05")
    assert publish.current(nights.where) == back
    monkeypatch.undo()
    after = nights.night("2022-05-06", keep=1)
    assert (after["version"], after["fence"]) == ("2022-05-06", 4)
    assert any("begins with" in note and "din-2022-05-04" in note for note in nights.notes("2022-05-06"))
    assert any("the published model, din-2022-05-04, has" in said for said in nights.said)


def test_a_published_model_that_was_changed_is_named_and_published_again(nights, monkeypatch):
    first = nights.night("2022-05-04")
    model = Path(nights.where) / first["folder"] / "model.pt"
    model.write_bytes(b"another model")
    monkeypatch.setattr(launch, "train", mock.Mock(side_effect=AssertionError("trained again")))
    with pytest.raises(BadInput, match=r"model.pt is damaged: 13 bytes.*; publish it again with --day 2022-05-04"):
        nights.night("2022-05-05")
    assert model.exists()
    again = nights.night("2022-05-04")
    assert (again["fence"], again["run"]) == (2, first["run"])
    assert publish.damage(nights.where, again) is None
    assert any("model.pt is damaged" in said for said in nights.said)


@pytest.mark.slow
def test_versions_that_stay_keep_their_runs_checkpoints(nights):
    for day in ("2022-05-04", "2022-05-05"):
        nights.night(day, keep=2)
    sparse = nights.recipe.optimizers.sparse.model_copy(update={"lr": 30.0})
    spoilt = nights.recipe.optimizers.model_copy(update={"sparse": sparse})
    assert nights.night("2022-05-06", tolerance=0.0, cold=True, keep=2, optimizers=spoilt) is None
    assert all((nights.runs / f"din-{day}/checkpoints").exists() for day in ("2022-05-04", "2022-05-05"))


class Done:
    """Nights without training: what each would publish, but for those that fail or are worse."""

    def __init__(self, where: str, exported: Path, failing: str = "", worse: str = "") -> None:
        self.where, self.exported, self.failing, self.worse, self.done = where, exported, failing, worse, []

    def __call__(self, day: str):
        self.done.append(day)
        if day == self.failing:
            raise BadInput("data.days.train: no partition")
        return None if day == self.worse else publish.publish(self.exported, self.where, day, 7)


@pytest.fixture
def exported(tmp_path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.pt").write_text("model")
    manifest.commit(folder, {"model.pt": manifest.digest(folder / "model.pt")})
    return folder


def test_missed_nights_are_made_up_for_in_order_and_only_once(tmp_path, exported):
    where, said = str(tmp_path / "models"), []
    one = Done(where, exported)
    publish.publish(exported, where, DAYS[1], 7)
    assert nightly.nights(DAYS[:4], where, one, said.append)["version"] == DAYS[3]
    assert one.done == DAYS[2:4]
    assert said[0] == f"nights up to {DAYS[1]} are left out: those up to {DAYS[1]} are settled"
    assert said[1:] == [f"night 1 of 2: {DAYS[2]}", f"night 2 of 2: {DAYS[3]}"]
    assert nightly.nights(DAYS[:4], where, one, said.append) == publish.current(where)
    assert one.done == DAYS[2:4]


def test_missed_nights_end_with_the_first_that_fails(tmp_path, exported):
    where, said = str(tmp_path / "models"), []
    with pytest.raises(BadInput, match="no partition"):
        nightly.nights(DAYS[:4], where, Done(where, exported, failing=DAYS[1]), said.append)
    assert said[-1] == f"the night of {DAYS[1]} failed, and 2 after it were not begun; start again to go on"
    assert publish.current(where)["version"] == DAYS[0]
    again = Done(where, exported)
    nightly.nights(DAYS[:4], where, again, said.append)
    assert again.done == DAYS[1:4]


def test_a_worse_night_does_not_end_the_missed_ones(tmp_path, exported):
    where = str(tmp_path / "models")
    assert nightly.nights(DAYS[:3], where, Done(where, exported, worse=DAYS[1]), print)["version"] == DAYS[2]
    assert nightly.nights(DAYS[3:5], where, Done(where, exported, worse=DAYS[4]), print) is None


def test_nights_taken_back_are_not_made_up_for(tmp_path, exported):
    where = str(tmp_path / "models")
    for day in DAYS[:3]:
        publish.publish(exported, where, day, 7)
    publish.rollback(where, DAYS[0])
    one = Done(where, exported)
    nightly.nights(DAYS[:4], where, one, print)
    assert one.done == DAYS[3:4]


@pytest.mark.slow
def test_whoever_takes_a_worse_model_says_so(nights):
    nights.night("2022-05-04")
    sparse = nights.recipe.optimizers.sparse.model_copy(update={"lr": 30.0})
    spoilt = nights.recipe.optimizers.model_copy(update={"sparse": sparse})
    assert nights.night("2022-05-05", tolerance=0.9, cold=True, optimizers=spoilt)["fence"] == 2


@pytest.mark.slow
def test_another_models_place_is_not_taken(nights):
    nights.night("2022-05-04")
    task = nights.recipe.tasks["click"]
    liked = {"liked": task.model_copy(update={"label": "like"})}
    other = nights.recipe.model_copy(update={"name": "other", "tasks": liked})
    before = publish.current(nights.where)
    with pytest.raises(
        BadInput, match="--publish: din-2022-05-04, which is published in .*, has no liked.auc; choose an"
    ):
        nightly.night(other, nights.runs, "2022-05-05", nights.where, 1.0, 7, False, nights.said.append)
    assert publish.current(nights.where) == before
    assert not (nights.runs / "other-2022-05-05").exists()


@pytest.mark.slow
def test_without_the_published_run_nothing_is_compared(nights):
    nights.night("2022-05-04")
    shutil.rmtree(nights.runs / "din-2022-05-04")
    assert nights.night("2022-05-05", tolerance=0.0)["fence"] == 2
    assert any("is gone, so the published model is not compared" in said for said in nights.said)


@pytest.mark.parametrize(
    ("changes", "day", "message"),
    [
        ({"data__days": None}, "2022-05-04", "data.days: a nightly run moves the recipe's days on, and it names none"),
        ({}, "tomorrow", "--day: 'tomorrow' is no day; write it as 2022-05-08"),
        ({}, "0001-01-01", "--day: 0001-01-01 leaves no room for the days before it; name a later one"),
        ({}, "2022-05-09", "data.days.train: .* has no partition date=2022-05-07"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(data, tmp_path, changes, day, message):
    with pytest.raises(BadInput, match=message):
        nightly.night(recipe(data, **changes), tmp_path / "runs", day, str(tmp_path / "m"), 0.0, 7, False, print)
    assert not [path for path in (tmp_path / "runs").glob("*") if path.name != ".din.night"]  # the lock
    assert not (tmp_path / "m").exists()


def test_a_day_that_is_not_there_yet_ends_with_4(data, tmp_path, monkeypatch, capsys):
    path = tmp_path / "din.yaml"
    path.write_text(dump_recipe(recipe(data)))
    words = [str(path), "--publish", str(tmp_path / "m"), "--runs", str(tmp_path / "runs"), "--day", "2022-05-09"]
    monkeypatch.setattr(sys, "argv", ["livetrain", "nightly", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == cli.NOT_NOW == 4
    assert "has no partition date=2022-05-07" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(sys, "argv", ["livetrain", "nightly", *words[:-1], "2022-5-9"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == cli.BAD_INPUT


def test_the_command_ends_with_3_where_nothing_was_published(data, tmp_path, monkeypatch, capsys):
    path = tmp_path / "din.yaml"
    path.write_text(dump_recipe(recipe(data, name=None)))
    asked = []

    def night(made, *arguments):
        asked.append((made.name, *arguments[:-1]))

    monkeypatch.setattr(nightly, "night", night)
    monkeypatch.setattr(sys, "argv", ["livetrain", "nightly", str(path), "--publish", "models", "--day", "2022-05-04"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 3
    assert asked == [("din", Path("runs"), "2022-05-04", "models", 0.002, 7, False)]


def command(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["livetrain", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["--day", "2022-W18-3"], [("2022-05-04", False)]),
        (["--day", "2022-05-08", "--cold-on", "sunday"], [("2022-05-08", True)]),
        (["--days", "2022-05-06..20220509", "--cold-on", "sunday", "--cold-on", "friday"],
         [("2022-05-06", True), ("2022-05-07", False), ("2022-05-08", True), ("2022-05-09", False)]),
        (["--days", "2022-05-07..2022-05-07", "--cold"], [("2022-05-07", True)]),
        ([], [("2022-05-06", False)]),
    ],
)  # fmt: skip
def test_the_command_does_the_nights_that_it_is_asked_for(data, tmp_path, monkeypatch, options, asked):
    path, found = tmp_path / "din.yaml", []
    path.write_text(dump_recipe(recipe(data)))
    monkeypatch.setattr(nightly, "night", lambda made, runs, day, *rest: found.append((day, rest[-2])) or {})
    assert command(monkeypatch, "nightly", str(path), "--publish", str(tmp_path / "m"), *options) == 0
    assert found == asked


def test_the_command_rolls_back(tmp_path, exported, monkeypatch, capsys):
    where = str(tmp_path / "models")
    for day in DAYS[:2]:
        publish.publish(exported, where, day, 7)
    assert command(monkeypatch, "rollback", where, "--to", DAYS[0]) == 0
    assert capsys.readouterr().out.split("\n")[0].endswith(f"servers are pointed to {DAYS[0]}.000001, with fence 3")
    assert publish.current(where)["folder"] == f"{DAYS[0]}.000001"
    assert command(monkeypatch, "rollback", where) == 2
    assert "no version before 2022-05-01 stays here" in " ".join(capsys.readouterr().err.split())


def test_a_night_on_a_cluster_publishes_where_all_nodes_see_it(data, tmp_path, monkeypatch, capsys):
    path = tmp_path / "din.yaml"
    path.write_text(dump_recipe(recipe(data)))
    words = [str(path), "--runs", "/shared/runs", "--address", "http://head:8265"]
    monkeypatch.setattr(sys, "argv", ["livetrain", "nightly", *words, "--publish", "models"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "--publish: 'models' is relative; give a URI or a path that all nodes" in " ".join(
        capsys.readouterr().err.split()
    )
    asked = mock.Mock(return_value=0)
    monkeypatch.setattr(submit, "night", asked)
    options = ["--publish", "s3://m", "--days", "2022-05-06..2022-05-09", "--cold-on", "sunday"]
    assert command(monkeypatch, "nightly", *words, *options) == 0
    assert asked.call_args.args[3:5] == (
        "2022-05-09",
        [
            *("--publish", "s3://m", "--tolerance", "0.002", "--keep", "7"),
            *("--days", "2022-05-06..2022-05-09", "--cold-on", "sunday"),
        ],
    )
    assert command(monkeypatch, "nightly", *words, "--publish", "s3://m", "--day", "20220506") == 0
    assert asked.call_args.args[4][-2:] == ["--day", "2022-05-06"]  # one night has one job, however it is written
    assert command(monkeypatch, "nightly", *words, "--publish", "s3://key:secret@m") == 2
    assert "s3://m comes with a password, which is never sent" in " ".join(capsys.readouterr().err.split())
    options = ["--publish", "s3://models/a b", "--cold"]
    job = parcel.night(load_recipe(path), Path("/shared/runs"), "2022-05-04", options)
    assert job.entrypoint == (
        "python -m livetrain nightly recipe.yaml --runs /shared/runs --publish 's3://models/a b' --cold"
    )
    assert job.id == "nightly-din-2022-05-04"
    others = [
        parcel.night(load_recipe(path, ["train.epochs=2"]), Path("/shared/runs"), None, options),
        parcel.night(load_recipe(path), Path("/shared/others"), None, options),
        parcel.night(load_recipe(path), Path("/shared/runs"), None, options[:2]),
    ]
    assert len({job.recipe, *(other.recipe for other in others)}) == 4
    assert parcel.night(load_recipe(path), Path("/shared/runs"), None, options).recipe == job.recipe
