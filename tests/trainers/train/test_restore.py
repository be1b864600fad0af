"""A checkpoint's files are data: whatever stands in them, loading runs none of it."""

import functools
import operator
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, StorageMeta

import livetrain
from livetrain.configs.errors import BadInput
from livetrain.trainers.runtime import manifest
from livetrain.trainers.train import checkpoint, restore


class Calls:
    """What a pickle turns into a call of any function, when it is read as pickles are."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


@pytest.fixture
def path(tmp_path) -> Path:
    """A small checkpoint."""
    folder = tmp_path / "step-00000001"
    dcp.save({"model": {"weight": torch.arange(6.0), "bias": torch.ones(2)}}, checkpoint_id=folder, no_dist=True)
    return commit(folder)


def commit(folder: Path) -> Path:
    """Make a checkpoint's manifest fit its files, as whoever tampers with them would."""
    (folder / manifest.MANIFEST).unlink(missing_ok=True)
    manifest.commit(folder, {p.name: manifest.digest(p) for p in sorted(folder.iterdir())}, step=1)
    return folder


def layout(path: Path) -> Metadata:
    return pickle.loads((path / ".metadata").read_bytes())


def read(path: Path) -> dict[str, torch.Tensor]:
    state = {"model": {"weight": torch.zeros(6), "bias": torch.zeros(2)}}
    checkpoint.read(state, path)
    return state["model"]


def test_a_checkpoint_is_read_as_it_was_written(path):
    found = read(path)
    assert found["weight"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found["bias"].tolist() == [1, 1]
    names = {p.name for p in path.iterdir()}
    assert restore.Reader(path, names).read_metadata().state_dict_metadata == layout(path).state_dict_metadata


def test_what_is_no_tensor_is_read_too(tmp_path):
    dcp.save({"model": {"names": ["a", "b"], "count": 3}}, checkpoint_id=tmp_path / "plain", no_dist=True)
    state = {"model": {"names": None, "count": 0}}
    checkpoint.read(state, commit(tmp_path / "plain"))
    assert state["model"] == {"names": ["a", "b"], "count": 3}


@pytest.mark.parametrize(
    "call",
    [
        lambda mark: Calls(os.mkdir, str(mark)),
        lambda mark: Calls(os.system, f"mkdir {mark}"),
        lambda mark: Calls(eval, f"__import__('os').mkdir({str(mark)!r})"),
        lambda mark: Calls(exec, f"import os; os.mkdir({str(mark)!r})"),
        lambda mark: Calls(map, os.mkdir, [str(mark)]),
        lambda mark: Calls(functools.reduce, operator.add, [[], []]),
        lambda mark: Calls(torch.load, str(mark)),
        lambda mark: Calls(getattr, [], "append"),
        lambda mark: Calls(Path.mkdir, mark),
    ],
)
@pytest.mark.parametrize("place", ["whole", "part"])
def test_a_layout_that_would_run_something_runs_nothing(path, tmp_path, call, place):
    mark = tmp_path / "it ran".replace(" ", "_")
    found = layout(path)
    found.planner_data = call(mark)
    (path / ".metadata").write_bytes(pickle.dumps(found.planner_data if place == "whole" else found))
    with pytest.raises(
        BadInput, match=r"\.metadata: this file is not read \(it names .*, which no checkpoint needs"
    ) as e:
        read(commit(path))
    assert len(str(e.value).removeprefix(str(path))) < 250
    assert not mark.exists()


def test_the_crafted_files_would_run_elsewhere(path, tmp_path):
    """Otherwise the tests beside this one would prove nothing."""
    found = layout(path)
    found.planner_data = Calls(os.mkdir, str(tmp_path / "ran"))
    (path / ".metadata").write_bytes(pickle.dumps(found))
    dcp.load({"model": {"weight": torch.zeros(6), "bias": torch.zeros(2)}}, checkpoint_id=path, no_dist=True)
    assert (tmp_path / "ran").exists()


def tamper_bytes(path: Path, mark: Path) -> None:
    """Let the layout say that a weight is no tensor but a pickle, and put one there."""
    found = layout(path)
    torch.save(Calls(os.mkdir, str(mark)), path / "__0_0.distcp")
    found.state_dict_metadata["model.weight"] = BytesStorageMetadata()
    size = (path / "__0_0.distcp").stat().st_size
    found.storage_data = {MetadataIndex("model.weight"): _StorageInfo("__0_0.distcp", 0, size)}
    del found.state_dict_metadata["model.bias"]
    (path / ".metadata").write_bytes(pickle.dumps(found))
    commit(path)


def test_a_value_that_would_run_something_runs_nothing(path, tmp_path):
    tamper_bytes(path, tmp_path / "ran")
    with pytest.raises(BadInput, match="this checkpoint does not hold what the recipe's model has .* take another"):
        checkpoint.read({"model": {"weight": torch.zeros(6)}}, path)
    assert not (tmp_path / "ran").exists()
    dcp.load({"model": {"weight": torch.zeros(6)}}, checkpoint_id=path, no_dist=True)  # which is DCP's own way
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../elsewhere.distcp", "/etc/passwd", ".."])
def test_a_layout_names_files_of_its_checkpoint_only(path, name):
    found = layout(path)
    found.storage_data = {index: _StorageInfo(name, 0, 9) for index in found.storage_data}
    (path / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(BadInput, match="it names files that its manifest does not"):
        read(commit(path))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"not a pickle", pickle.dumps(3), pickle.dumps(StorageMeta()), pickle.dumps(Metadata({}))],
)
def test_a_layout_that_is_none_is_said(path, content):
    (path / ".metadata").write_bytes(content)
    with pytest.raises(BadInput, match=r"\.metadata: this file is not read"):
        read(commit(path))


def test_another_models_tensors_are_said(path):
    with pytest.raises(BadInput, match="does not hold what the recipe's model has"):
        checkpoint.read({"model": {"other": torch.zeros(6)}}, path)
    with pytest.raises(BadInput, match="does not hold what the recipe's model has"):
        checkpoint.read({"model": {"weight": torch.zeros(7), "bias": torch.zeros(2)}}, path)


def test_there_is_one_place_that_loads():
    """A second one would have to be as careful."""
    root = Path(livetrain.__file__).parent
    loading = re.compile(r"dcp\.load\(|torch\.load\(|pickle\.loads?\(")
    found = {
        path.relative_to(root).as_posix(): sorted(loading.findall(path.read_text(encoding="utf-8")))
        for folder in ("cli", "configs", "modules", "trainers", "cluster")
        for path in (root / folder).rglob("*.py")
        if loading.search(path.read_text(encoding="utf-8"))
    }
    assert found == {
        "cluster/ray_workers.py": ["pickle.loads("] * 2,  # what the driver has just sent its workers and tasks, no file
        "trainers/train/checkpoint.py": ["dcp.load("],
        "trainers/train/restore.py": ["torch.load(", "torch.load("],  # what is no tensor, and a block of one
    }
