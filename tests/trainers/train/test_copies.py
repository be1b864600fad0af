"""A run's checkpoints are copied to a folder or a bucket, and another machine goes on from there."""

import json
import shutil
import threading
from pathlib import Path
from unittest import mock

import pytest

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.trainers.runtime import manifest, reach, run_folder, runlog
from livetrain.trainers.runtime.place import open_place
from livetrain.trainers.train import copies
from livetrain.trainers.train.checkpoint import Saver
from livetrain.trainers.train.copies import Copies
from tests import samples, store


def written(run: Path, step: int, best: int | None = None) -> Path:
    """Write what is as a committed checkpoint of a run."""
    path = run_folder.checkpoint(run, step)
    path.mkdir(parents=True, exist_ok=True)
    (run / run_folder.LOG).write_text(json.dumps({"step": step}) + "\n")
    names = ("__0_0.distcp", "__1_0.distcp", ".metadata")
    for name in names:
        (path / name).write_bytes(f"{name} of {step} ".encode() * 1000)
    manifest.commit(path, {name: manifest.digest(path / name) for name in names}, position={"best_step": best})
    return path


def copied(one: Copies, run: Path, step: int) -> bool:
    """Copy a checkpoint as two ranks do, one after the other."""
    path = run_folder.checkpoint(run, step)
    one.begin(path)
    for rank in range(2):
        one.put(path, (rank, 2))
    return one.commit(path, run)


def folders(where: str) -> list[str]:
    found = open_place(copies_of(where)).listed()
    return sorted(name for name in found if name.startswith("step-"))


def copies_of(where: str) -> str:
    base, mark, options = where.partition("?")
    return f"{base}/run{mark}{options}"


def same(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def test_another_machine_goes_on_from_the_newest_and_has_the_best(tmp_path, where):
    here, there = tmp_path / "here/run", tmp_path / "there/run"
    there.mkdir(parents=True)
    assert copies.fetch(where, there) == []
    one = Copies(where, "run", Copies.taken(where, "run"))
    for step in (10, 20, 30):
        written(here, step, best=10)
        assert copied(one, here, step)
    shutil.rmtree(run_folder.checkpoint(here, 20))  # as it is pruned
    written(here, 40, best=10)
    assert copied(one, here, 40)
    assert folders(where) == [f"step-{step:08d}.000001" for step in (10, 30, 40)]
    assert [path.name for path in copies.fetch(where, there)] == ["step-00000040", "step-00000010"]
    for path in run_folder.committed(there):
        assert same(path, here / "checkpoints" / path.name)
    assert (there / run_folder.LOG).read_text() == (here / run_folder.LOG).read_text()
    assert copies.fetch(where, there) == []
    assert copies.fetch(where, here) == []


def test_who_was_overtaken_overwrites_nothing(tmp_path, where):
    """It may be cut off anywhere: it writes to its own folders, and the pointer is the other's."""
    here, there = tmp_path / "here/run", tmp_path / "there/run"
    old = Copies(where, "run", Copies.taken(where, "run"))
    written(here, 10)
    assert copied(old, here, 10)
    shutil.copytree(here, there)
    new = Copies(where, "run", Copies.taken(where, "run"))
    assert (old.fence, new.fence) == (1, 2)
    written(here, 20)
    written(there, 20)
    old.begin(run_folder.checkpoint(here, 20))
    assert copied(new, there, 20)
    pointer = open_place(copies_of(where)).read(copies.POINTER)
    assert not copied(old, here, 20)
    assert open_place(copies_of(where)).read(copies.POINTER) == pointer
    assert folders(where) == ["step-00000010.000001", "step-00000020.000002"]


def test_of_two_that_begin_at_once_one_has_the_run(tmp_path, where):
    for number in range(3):
        barrier, fences, refused = threading.Barrier(4), [], []

        def take(barrier=barrier, fences=fences, refused=refused) -> None:
            barrier.wait()
            try:
                fences.append(Copies.taken(where, "run"))
            except OSError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(fences) + len(refused) == 4
        assert len(set(fences)) == len(fences) >= 1
        assert all("another training of this run began just now" in text for text in refused)
        holder = json.loads(open_place(copies_of(where)).read(copies.POINTER)[0])["fence"]
        assert holder == max(fences), number


def test_a_copy_that_is_not_whole_is_named(tmp_path, where):
    here, there = tmp_path / "here/run", tmp_path / "there/run"
    there.mkdir(parents=True)
    one = Copies(where, "run", Copies.taken(where, "run"))
    written(here, 10)
    assert copied(one, here, 10)
    place = open_place(copies_of(where))
    place.remove("step-00000010.000001/.metadata")
    (tmp_path / "x").write_bytes(b"other")
    place.put(tmp_path / "x", "step-00000010.000001/.metadata")
    with pytest.raises(BadInput, match=r"000001/.metadata is damaged: .* remove last.json there to begin anew"):
        copies.fetch(where, there)
    assert run_folder.committed(there) == []
    place.remove("step-00000010.000001/manifest.json")
    with pytest.raises(BadInput, match=r"000001 is not whole, as its manifest.json is missing"):
        copies.fetch(where, there)


@pytest.mark.parametrize("checkpoints", [{"step-1/../../victim": "f"}, {"step-00000010": "../elsewhere.000001"}])
def test_a_pointer_names_no_place_elsewhere(tmp_path, checkpoints):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_text("")
    (tmp_path / "copies/run").mkdir(parents=True)
    (tmp_path / "copies/run" / copies.POINTER).write_text(json.dumps({"fence": 1, "checkpoints": checkpoints}))
    with pytest.raises(BadInput, match="is no pointer to a run's checkpoints"):
        copies.fetch(str(tmp_path / "copies"), tmp_path / "here/run")
    assert (victim / "kept").exists()


def test_a_manifest_names_no_file_elsewhere(tmp_path):
    here, where = tmp_path / "here/run", str(tmp_path / "copies")
    written(here, 10)
    one = Copies(where, "run", Copies.taken(where, "run"))
    assert copied(one, here, 10)
    (path,) = (tmp_path / "copies/run").glob(f"step-*/{manifest.MANIFEST}")
    path.write_text(path.read_text().replace("__0_0.distcp", "../../../../gone.distcp"))
    with pytest.raises(BadInput, match="names files elsewhere"):
        copies.fetch(where, tmp_path / "there/run")


def test_copies_arrive_over_a_bad_network(tmp_path, bucket, network, monkeypatch):
    monkeypatch.setattr(reach, "_FIRST_S", 0.001)
    where, here, there = bucket.replace("/in/it", "/bad"), tmp_path / "here/run", tmp_path / "there/run"
    there.mkdir(parents=True)
    network.rate = 0.4
    one = Copies(where, "run", Copies.taken(where, "run"))
    for step in (10, 20):
        written(here, step)
        assert copied(one, here, step)
    assert len(copies.fetch(where, there)) == 1
    assert sum(network.counted[fault] for fault in network.faults) >= 10
    assert same(run_folder.committed(there)[-1], run_folder.committed(here)[-1])


def test_a_store_that_ignores_conditions_or_is_away_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reach, "DEADLINE_S", 0.0)
    with store.served(conditions=False) as where, pytest.raises(BadInput, match="ignores conditions on a write"):
        copies.fetch(where, tmp_path)
    with pytest.raises(BadInput, match=r"^train.copies: s3://models/d/.* cannot be reached \(Generic S3"):
        copies.fetch("s3://k:word@models/d?scheme=http&endpoint_override=127.0.0.1:1&region=x", tmp_path)
    with pytest.raises(BadInput, match="hdfs.*checkpoints are copied in a folder or in a bucket"):
        copies.fetch("hdfs://head:8020/x", tmp_path)


class Killed(Exception):
    """What ends a run in the middle."""


@pytest.mark.slow
def test_a_run_goes_on_elsewhere_as_if_it_had_never_moved(tmp_path, bucket):
    data, where, save = samples.write(tmp_path / "data"), bucket.replace("/in/it", "/moved"), Saver.save

    def until_15(self: Saver, step: int, position: dict) -> None:
        if step > 15:
            raise Killed
        save(self, step, position)

    changes = {"train__checkpoint_every": 5, "export__after_training": False}
    whole = launch.train(samples.recipe(data, **changes), tmp_path / "whole")
    moving = samples.recipe(data, train__copies=where, **changes)
    with mock.patch.object(Saver, "save", until_15), pytest.raises(Killed):
        launch.train(moving, tmp_path / "here")
    found = launch.train(moving, tmp_path / "there")
    lines = runlog.read(tmp_path / "there/small")
    assert any(line.get("text") == "resumed at step 15" for line in lines)
    assert [line["step"] for line in lines if line["kind"] == "train"][0] <= 5  # the log came along
    assert found["step"] == whole["step"]
    assert {k: v for k, v in found.items() if k.startswith("test.")} == {
        k: v for k, v in whole.items() if k.startswith("test.")
    }
