"""A follower in this process: what it learns, says and publishes, and what it comes to where it is killed."""

import itertools
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from livetrain.cluster.stream import anchor, follow, following, publishing
from livetrain.cluster.stream.windows import Stream
from livetrain.configs.errors import BadInput, NotNow
from livetrain.trainers.export import deltas, export, prediction, publish
from livetrain.trainers.runtime import run_folder, runlog
from livetrain.trainers.train import checkpoint, increments, loop
from tests import minutes as made
from tests.minutes import BEGIN


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> Path:
    """A folder with days and a night that was trained on two of them."""
    folder = tmp_path_factory.mktemp("night")
    made.days(folder, made.DAYS)
    made.night(made.recipe(folder), folder / "runs")
    return folder


class Follower:
    """A follower in a folder of its own, of the night that all tests share."""

    def __init__(self, night: Path, folder: Path) -> None:
        shutil.copytree(night / "runs", folder / "runs", symlinks=True)
        self.folder, self.where = folder, str(folder / "models")
        self.night, self.changes = night, {"follow__path": str(folder / "live")}

    def follow(self, every: int = 120, **options):
        recipe = made.recipe(self.night, **self.changes)
        return follow.follow(recipe, self.folder / "runs", self.where, every, once=True, **options)

    @property
    def line(self) -> Path:
        return self.folder / "runs/din-follow/2022-05-04"

    @property
    def notes(self) -> list[str]:
        return [line["text"] for line in runlog.read(self.line.parent) if line["kind"] == "note"]

    def lines(self, kind: str) -> list[dict]:
        return [line for line in runlog.read(self.line) if line["kind"] == kind]

    def published(self) -> dict | None:
        return publish.current(self.where)


@pytest.fixture
def follower(night, tmp_path) -> Follower:
    return Follower(night, tmp_path)


@pytest.fixture
def unpublished(monkeypatch) -> None:
    """Leave the exports out of a test that is about something else."""
    monkeypatch.setattr(publishing.Publisher, "look", lambda publisher: None)


def independent(run: Path, export: Path, parts: list[Path]) -> dict[str, float]:
    """Return a file's figures on minutes, by scikit-learn."""
    table = pa.concat_tables([pq.read_table(part / "part-0.parquet") for part in parts])
    scores = prediction.score(prediction.predictor(prediction.weights_of(run, export)), table)
    score, label = np.asarray(scores["click_score"], np.float64), table["label"].to_numpy()
    return {
        "click.auc": roc_auc_score(label, score),
        "click.log_loss": log_loss(label, score),
        "click.pcoc": score.sum() / label.sum(),
    }


def test_an_increment_is_judged_by_the_model_that_has_not_learned_it(follower):
    minutes = made.write(follower.folder, 2)
    follower.follow()
    minutes += made.write(follower.folder, 2, first=2)
    before = Path(follower.where) / follower.published()["folder"]
    follower.follow()
    runs, found = follower.folder / "runs", follower.lines("eval")
    first = independent(runs / "din-2022-05-04", runs / "din-2022-05-04/export", minutes[:2])
    second = independent(follower.line, before, minutes[2:])
    for line, expected in zip(found, (first, second), strict=True):
        assert {name: line[name] for name in expected} == pytest.approx(expected, abs=2e-6)
        assert line["rows"] == 200
    base, last = follower.published(), deltas.newest(follower.published())
    assert (base["version"], base["fence"]) == ("2022-05-03T00-02-00Z", 2)
    assert (last["version"], last["number"], last["value"]) == ("2022-05-03T00-04-00Z", 1, found[1]["click.auc"])
    signature = json.loads((Path(follower.where) / base["folder"] / "signature.json").read_text())
    assert signature["metrics"]["stream.click.auc"] == found[0]["click.auc"] == base["value"]


class Killed(BaseException):
    pass


def dies(monkeypatch, owner, name: str, at: int = 1, after: bool = False) -> None:
    whole, calls = getattr(owner, name), []

    def dying(*arguments, **options):
        calls.append(name)
        if len(calls) != at:
            return whole(*arguments, **options)
        if after:
            whole(*arguments, **options)
        raise Killed

    monkeypatch.setattr(owner, name, dying)


STAGES = {
    "before it is judged": (loop.Trainer, "evaluate"),
    "while it is learned": (loop.Meter, "add"),
    "before its checkpoint": (increments.Line, "save"),
    "before the checkpoint's manifest": (checkpoint.manifest, "commit"),
    "before it is published": (publishing.Publisher, "look"),
    "behind its export": (publish, "publish"),
    "before the pointer": (publish, "_point"),
}


@pytest.mark.some(2)
@pytest.mark.parametrize("stage", STAGES)
def test_who_is_killed_comes_to_the_same(follower, monkeypatch, night, tmp_path_factory, stage):
    whole = Follower(night, tmp_path_factory.mktemp("whole"))
    with monkeypatch.context() as patched:
        patched.setattr(publishing.Publisher, "look", lambda publisher: None)
        made.write(whole.folder, 6)
        whole.follow()
        made.write(follower.folder, 2)
        follower.follow()  # so there is a checkpoint to go on from, and another one to come
    made.write(follower.folder, 4, first=2)
    with monkeypatch.context() as patched:
        dies(patched, *STAGES[stage])
        with pytest.raises(Killed):
            follower.follow()
    assert follower.published() is None
    if stage in ("before the checkpoint's manifest", "while it is learned"):
        for left in (follower.line / "checkpoints").glob("step-*"):
            assert (
                left.name == min(p.name for p in (follower.line / "checkpoints").iterdir())
                or not (left / "manifest.json").exists()
            )
    follower.follow()
    assert made.state(follower.line) == made.state(whole.line)
    assert [line["click.auc"] for line in follower.lines("eval")] == [x["click.auc"] for x in whole.lines("eval")]
    assert [line["samples"] for line in follower.lines("train")] == [x["samples"] for x in whole.lines("train")]
    assert follower.published()["version"] == "2022-05-03T00-06-00Z"


def test_the_gate_keeps_a_spoilt_model_from_servers_and_learning_goes_on(follower):
    made.write(follower.folder, 10, rows=300, spoilt=(9,))
    follower.follow(60)
    taken = follower.lines("increment")
    assert [line["open"] for line in taken] == [True] * 9 + [False]
    assert "click.auc" in taken[-1]["alarms"]
    assert taken[-1]["step"] > taken[-2]["step"]
    assert follower.published() is None  # it was the newest, and the ones before it had no checkpoint
    assert any(note.startswith("ALARM: click.auc is 0.") and "expected at least" in note for note in follower.notes)
    assert any("not published: 2022-05-03T00-10-00Z" in note for note in follower.notes)
    step = follower.lines("increment")[-1]["step"]
    made.write(follower.folder, 5, rows=300, first=10)
    follower.follow(60)
    assert follower.lines("increment")[-1]["open"]
    assert follower.lines("increment")[-1]["step"] > step
    assert any(note.startswith("over: click.auc is") for note in follower.notes)
    assert follower.published()["version"] == "2022-05-03T00-15-00Z"


@pytest.mark.slow
@pytest.mark.usefixtures("unpublished")
def test_nothing_is_shed_unless_asked_and_what_is_shed_is_told(follower):
    made.write(follower.folder, 6)
    follower.follow(60)
    taken = follower.lines("increment")
    assert [line["end"] for line in taken] == [BEGIN + 60 * k for k in range(1, 7)]
    assert [line["behind_s"] for line in taken] == [60.0 * k for k in range(5, -1, -1)]
    assert all(line["behind_clock_s"] > 86_400 for line in taken)
    assert "5 min behind the stream" in next(note for note in follower.notes if "00:00 to" in note)
    shutil.rmtree(follower.line.parent)
    follower.changes["follow__shed_after"] = "3m"
    follower.follow(60)
    (left,) = follower.lines("left_out")
    assert (left["start"], left["end"], left["minutes"], left["rows"]) == (BEGIN, BEGIN + 180, 3, 300)
    assert [line["end"] for line in follower.lines("increment")] == [BEGIN + 60 * k for k in (4, 5, 6)]
    assert follower.lines("increment")[-1]["shed_rows"] == 300
    assert any("LEFT OUT: 2022-05-03 00:00 to 2022-05-03 00:03, 3 minutes of 300 events" in n for n in follower.notes)


@pytest.mark.slow
@pytest.mark.usefixtures("unpublished")
def test_a_minute_without_samples_and_a_gap_are_passed_over(follower):
    live = made.open_stream(follower.folder)
    made.minute(live, BEGIN + 600, made.table(follower.folder, 1, 100))
    made.minute(live, BEGIN + 660, None)
    made.minute(live, BEGIN + 720, None)
    made.minute(live, BEGIN + 780, None)
    found = follower.follow()
    assert found["taken"] == BEGIN + 840
    assert any("begins at 2022-05-03T00:00:00Z" in line["text"] for line in follower.lines("note"))
    assert [line["rows"] for line in follower.lines("increment")] == [100, 0]
    assert len(follower.lines("eval")) == 1
    said = [line["text"] for line in runlog.read(follower.line.parent) if line["kind"] == "stage"]
    assert all(one != other for one, other in itertools.pairwise(said))
    assert "there is no minute of 2022-05-03 00:00 to 2022-05-03 00:10, so none is learned" in follower.notes


@pytest.mark.usefixtures("unpublished")
@pytest.mark.some(1)
@pytest.mark.parametrize("harm", ["flipped", "gone"])
def test_a_damaged_minute_stops_or_is_left_out(follower, harm):
    part = made.write(follower.folder, 4)[1] / "part-0.parquet"
    if harm == "gone":
        part.unlink()
    else:
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    with pytest.raises(
        BadInput, match=r"part-0.parquet is (missing|damaged).* write the minute again, or set data.on_"
    ):
        follower.follow(60)
    follower.changes["data__on_corrupt"] = "skip"
    follower.follow(60)
    assert [line["end"] for line in follower.lines("increment")] == [BEGIN + 60, BEGIN + 180, BEGIN + 240]
    (left,) = follower.lines("left_out")
    assert (left["minutes"], left["rows"]) == (1, 100)


@pytest.mark.usefixtures("unpublished")
def test_labels_that_are_none_are_refused_before_they_are_learned(follower):
    live = made.open_stream(follower.folder)
    wrong = made.table(follower.folder, 1, 100)
    place = wrong.schema.get_field_index("label")
    made.minute(live, BEGIN, wrong.set_column(place, "label", pa.array([7] * 100, pa.int8())))
    with pytest.raises(BadInput, match="label"):
        follower.follow(60)


def test_a_checkpoint_that_is_deleted_while_it_is_published_is_published(follower, monkeypatch):
    """As the training beside goes on, and keeps its newest ones alone."""
    publish_next = deltas.publish_next

    def late(run, where, version, keep, which, **about):
        shutil.rmtree(run / "checkpoints" / which.name)
        return publish_next(run, where, version, keep, which, **about)

    monkeypatch.setattr(deltas, "publish_next", late)
    made.write(follower.folder, 2)
    follower.follow()
    assert follower.published()["version"] == "2022-05-03T00-02-00Z"
    assert not any("ALARM" in note for note in follower.notes)
    assert not list(follower.line.glob(".publish-*"))


def test_a_thread_publishes_beside_ranks_that_are_elsewhere(follower, monkeypatch):
    """As under Ray; a folder that cannot be listed for a moment does not end it."""
    with monkeypatch.context() as patched:
        patched.setattr(publishing.Publisher, "look", lambda publisher: None)
        made.write(follower.folder, 2)
        follower.follow()
    found, said, threads = publishing.Publisher._newest, [], []

    def newest(publisher):
        threads.append(threading.current_thread().name)
        if len(threads) == 1:
            raise FileNotFoundError("the folder is away")
        return found(publisher)

    monkeypatch.setattr(publishing.Publisher, "_newest", newest)
    monkeypatch.setattr(publishing, "_AGAIN_S", 0.0)
    with publishing.Publisher(follower.line.parent, follower.where, 7, said.append, beside=True):
        end = time.monotonic() + 60
        while follower.published() is None and time.monotonic() < end:
            time.sleep(0.05)
    assert follower.published()["version"] == "2022-05-03T00-02-00Z"
    assert threads[:2] == ["publish", "publish"]
    assert [text.partition("(")[0].partition(":")[0] for text in said[:1]] == ["ALARM"]
    assert any(text.startswith("published 2022-05-03T00-02-00Z as a base") for text in said)
    assert any(
        "becomes a base, as no delta can follow: " in text and "nothing is published here" in text for text in said
    )


def test_nights_that_cannot_be_looked_at_end_no_learning(follower, monkeypatch):
    made.write(follower.folder, 4)
    looks, newest = [], anchor.newest

    def spoilt(*arguments):
        looks.append(1)
        if len(looks) > 1:
            raise BadInput("current.json is no pointer to a published model; choose another place")
        return newest(*arguments)

    monkeypatch.setattr(anchor, "newest", spoilt)
    monkeypatch.setattr(publishing.Publisher, "look", lambda publisher: None)
    follower.follow()
    assert len(looks) > 1
    assert follower.lines("increment")[-1]["end"] == BEGIN + 240
    assert sum("ALARM: no new night is seen: current.json is no pointer" in note for note in follower.notes) == 1


@pytest.mark.usefixtures("unpublished")
def test_a_stream_whose_storage_fails_for_a_moment_is_read_again(follower, monkeypatch):
    made.write(follower.folder, 2)
    reads, whole = [], following.damage

    def away(*arguments):
        reads.append(1)
        if len(reads) == 1:
            raise BadInput("part-0.parquet: cannot be read") from OSError("the network is away")
        return whole(*arguments)

    monkeypatch.setattr(following, "damage", away)
    with pytest.raises(NotNow, match=r"not all that is closed is learned: part-0.parquet: cannot be read"):
        follower.follow(60)  # for --once is no wait
    said = [line["text"] for line in runlog.read(follower.line.parent) if line["kind"] == "stage"]
    assert "waiting: part-0.parquet: cannot be read" in said
    follower.follow(60)
    assert follower.lines("increment")[-1]["end"] == BEGIN + 120


def test_a_follower_waits_for_what_may_pass_and_ends_with_what_does_not(follower, monkeypatch):
    found = [BadInput("away"), BadInput("follow.path: no stream")]
    found[0].__cause__ = OSError("the network is away")
    monkeypatch.setattr(follow, "_follow", lambda *_: (_ for _ in ()).throw(found.pop(0)))
    monkeypatch.setattr(follow, "_AGAIN_S", 0.0)
    with pytest.raises(BadInput, match="no stream"):
        follow.follow(made.recipe(follower.night, **follower.changes), follower.folder / "runs", follower.where, 60)
    assert any("waiting, and trying again" in note and "away" in note for note in follower.notes)


@pytest.mark.slow
def test_a_place_that_is_lost_ends_no_learning(follower, monkeypatch):
    made.write(follower.folder, 2)
    with monkeypatch.context() as patched:
        patched.setattr(publish, "_copy", lambda *_: (_ for _ in ()).throw(OSError("the network is away")))
        follower.follow()
    assert follower.published() is None
    assert sum("ALARM: not published" in note and "the network is away" in note for note in follower.notes) == 1
    assert follower.lines("increment")[-1]["end"] == BEGIN + 120
    follower.follow()  # nothing is left to learn
    assert follower.published()["version"] == "2022-05-03T00-02-00Z"


@pytest.mark.slow
def test_what_was_taken_back_is_not_published_again(follower, monkeypatch):
    made.write(follower.folder, 2)
    follower.follow()
    made.write(follower.folder, 2, first=2)
    with monkeypatch.context() as patched:
        patched.setattr(deltas, "publish_delta", lambda *_, **__: (_ for _ in ()).throw(deltas.NeedsBase("a base")))
        follower.follow()
    publish.rollback(follower.where)
    made.write(follower.folder, 2, first=4)
    follower.follow()
    assert follower.lines("increment")[-1]["end"] == BEGIN + 360
    assert follower.published()["version"] == "2022-05-03T00-02-00Z"
    assert any("took back a model of 2022-05-04" in note for note in follower.notes)


DAY = 86_400


@pytest.mark.slow
@pytest.mark.parametrize("handover", ["beside", "restart"])
def test_a_new_night_takes_over(follower, monkeypatch, tmp_path_factory, handover):
    """Beside the old line until it has caught up: versions and fences rise, and none is left out."""
    other = tmp_path_factory.mktemp("other")
    made.days(other, [*made.DAYS, "2022-05-05"])
    follower.night = other
    recipe = made.recipe(other, train__seed=3)
    days = {"train": "2022-05-02..2022-05-03", "valid": "2022-05-04..2022-05-04", "test": "2022-05-05..2022-05-05"}
    moved = recipe.data.model_copy(update={"days": type(recipe.data.days)(**days)})
    made.night(recipe.model_copy(update={"data": moved}), other / "runs", "2022-05-05")
    follower.changes["follow__handover"] = handover
    live = made.open_stream(follower.folder)
    tables = [made.table(follower.folder, k, 100) for k in range(10)]
    begin = BEGIN + DAY - 120  # the second night has learned up to 05-04
    for k in range(6):
        made.minute(live, begin + 60 * k, tables[k])
    looks, later = [], list(range(6, 10))
    whole = Stream.look

    def look(stream: Stream) -> None:
        looks.append(1)
        if len(looks) == 8:  # all is learned, and then the night is there
            shutil.copytree(other / "runs/din-2022-05-05", follower.folder / "runs/din-2022-05-05")
        if len(looks) >= 8 and later:
            k = later.pop(0)
            made.minute(live, begin + 60 * k, tables[k])
        stream._due = 0.0
        whole(stream)

    seen = []
    publishes = deltas.publish_next

    def told(*arguments, **about):
        pointer = publishes(*arguments, **about)
        seen.append((about["line"], deltas.newest(pointer) | {"fence": pointer["fence"]}))
        return pointer

    monkeypatch.setattr(Stream, "look", look)
    monkeypatch.setattr(deltas, "publish_next", told)
    found = follower.follow(60)
    assert (found["line"], found["taken"]) == ("2022-05-05", begin + 600)
    assert json.loads((follower.line.parent / "line.json").read_text()) == {"line": "2022-05-05"}
    assert not (follower.line / "checkpoints").exists()
    last = runlog.read(follower.line.parent / "2022-05-05")
    assert [x["end"] for x in last if x["kind"] == "increment"] == [BEGIN + DAY + 60 * k for k in range(1, 9)]
    old = follower.lines("increment")[-1]["end"]
    assert (old > begin + 360) == (handover == "beside")  # it went on while the other caught up
    assert (len([line for line, _ in seen if line == "2022-05-04"]) > 1) == (handover == "beside")
    versions = [pointer["version"] for _, pointer in seen]
    fences = [pointer["fence"] for _, pointer in seen]
    assert versions == sorted(versions)
    assert fences == sorted(set(fences))
    assert seen[-1][0] == "2022-05-05"
    assert {line for line, _ in seen} == {"2022-05-04", "2022-05-05"}
    assert seen[-1][1]["version"] == "2022-05-04T00-08-00Z"


def test_a_night_that_was_taken_back_is_no_anchor(follower, monkeypatch):
    recipe, runs = made.recipe(follower.night), follower.folder / "runs"
    shutil.copytree(runs / "din-2022-05-04", runs / "din-2022-05-05", symlinks=True)
    assert anchor.newest(recipe, runs, None).name == "din-2022-05-05"
    for day in ("2022-05-04", "2022-05-05"):
        publish.publish(runs / f"din-{day}/export", follower.where, day, 7, run=f"din-{day}")
    assert anchor.newest(recipe, runs, follower.where).name == "din-2022-05-05"
    publish.rollback(follower.where)
    assert anchor.newest(recipe, runs, follower.where).name == "din-2022-05-04"


def test_what_is_missing_is_said_before_work_starts(follower, tmp_path):
    with pytest.raises(NotNow, match="follow.path: .*stream.json is not there; start `livetrain stream` first"):
        follower.follow()
    made.open_stream(follower.folder)
    with pytest.raises(BadInput, match="--every: 90s is no multiple of the 1m of the stream"):
        follower.follow(90)
    recipe = made.recipe(follower.night)
    with pytest.raises(NotNow, match="--runs: .* has no night of din .* run `livetrain nightly` first"):
        follow.follow(recipe, tmp_path / "none", follower.where, 60, once=True)
    with pytest.raises(BadInput, match="follow: the recipe has no such section"):
        follow.follow(recipe.model_copy(update={"follow": None}), tmp_path / "none", follower.where, 60)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "online"])
def test_new_ids_have_rows_when_they_are_learned(tmp_path, monkeypatch, when):
    """Of a table whose rows belong to ids: a room that no night has seen is admitted with its first increment."""
    made.days(tmp_path, made.DAYS)
    changes = {"tables__movie": {"rows": 16384, "dim": 8, "hash": "table", "assign": when}}
    made.night(made.recipe(tmp_path, **changes), tmp_path / "runs")
    made.write(tmp_path, 4)
    recipe = made.recipe(tmp_path, **changes)
    counted, assign = [], increments.ids.assign

    def assigned(sharded, recipe, source, time):
        counted.append(time)
        return assign(sharded, recipe, source, time)

    monkeypatch.setattr(increments.ids, "assign", assigned)
    follow.follow(recipe, tmp_path / "runs", str(tmp_path / "models"), 120, once=True)
    assert counted == [BEGIN // 60 + 2, BEGIN // 60 + 4]  # each increment once
    said = [line for line in runlog.read(tmp_path / "runs/din-follow/2022-05-04") if line["kind"] == "increment"]
    tables = [line["tables"]["movie"] for line in said]
    assert [set(line["tables"]) for line in said] == [{"movie"}] * 2
    assert tables[0]["admitted"] <= tables[1]["admitted"] == tables[1]["ids"] + tables[1]["evicted"]
    kept = []
    for run in (tmp_path / "runs/din-2022-05-04", tmp_path / "runs/din-follow/2022-05-04"):
        model = export.plain_model(run_folder.recipe_of(run), run_folder.find_checkpoint(run, "last"))
        kept.append({name: value for name, value in model.state_dict().items() if name.endswith("keys")})
    assert kept[0].keys() == kept[1].keys() != set()
    assert any(not torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
