"""Which files of a recipe's plugins travel, and which plugins are told to stay."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from livetrain.cluster import launch, parcel, submit
from livetrain.cluster.plugin_files import installed, plugin_files
from livetrain.configs import registry
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import ModelConfig, Recipe
from livetrain.modules.network import Network
from tests import outside, samples


@pytest.fixture
def package(tmp_path, monkeypatch) -> Iterator[Path]:
    """A package `of_mine`, in a folder that Python looks in."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "mine"), *sys.path])
    yield outside.write(tmp_path / "mine", "of_mine")
    outside.forget("of_mine")


def recipe(*plugins: str, path: str = "/shared/data") -> Recipe:
    settled = samples.recipe(Path(path), plugins=list(plugins), model={"kind": "of_mine"})
    assert settled.plugins == list(plugins)
    return settled


def test_a_package_travels_whole_but_for_what_is_hidden_or_compiled(package):
    for name in (
        "deep/er/more.py",
        "words.txt",
        ".env",
        ".git/config",
        "__pycache__/models.cpython-311.pyc",
        "old.pyc",
    ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(name.encode())
    (package.parent / "beside.py").write_text("")
    sent = recipe("of_mine.models")
    own = ("__init__.py", "deep/er/more.py", "models.py", "sizes.py", "words.txt")
    assert plugin_files(sent) == {f"of_mine/{name}": package / name for name in own}
    for job in (parcel.pack(sent, Path("/runs")), parcel.once("nightly", sent, Path("/runs"))):
        assert {name for name in job.files if not name.startswith("livetrain")} == {
            "recipe.yaml",
            *(f"of_mine/{name}" for name in own),
        }
        assert job.files["of_mine/words.txt"] == b"words.txt"
        assert b"plugins: [of_mine.models]" in job.files["recipe.yaml"]


@pytest.mark.slow
def test_a_parcel_trains_where_it_is_unpacked(package, tmp_path):
    """In its own folder, by its own command, with nothing else on Python's path: as on a node of a cluster."""
    data = samples.write(tmp_path / "data", rows=400)
    settled = samples.recipe(data, plugins=["of_mine.models"], model={"kind": "of_mine"}, train__epochs=1)
    job = parcel.pack(settled, tmp_path / "runs")
    assert job.entrypoint.startswith("python -m livetrain train ")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with parcel.staged(job.files) as folder:
        words = [sys.executable, *shlex.split(job.entrypoint)[1:]]
        done = subprocess.run(words, cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plugins: [of_mine.models]" in (tmp_path / "runs/small/config.yaml").read_text()


def test_a_module_alone_and_a_package_without_init_travel(package):
    (package / "models.py").rename(package.parent / "alone.py")
    (package / "__init__.py").unlink()
    sent = recipe("alone")
    assert plugin_files(sent) == {"alone.py": package.parent / "alone.py"}
    sent = recipe("alone", "of_mine.sizes")
    assert set(plugin_files(sent)) == {"alone.py", "of_mine/sizes.py"}
    outside.forget("alone")


def test_what_pip_installed_stays_and_is_told(package, tmp_path, monkeypatch):
    (tmp_path / "mine").rename(tmp_path / "site-packages")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages"), *sys.path])
    sent = recipe("of_mine.models", "json")
    assert plugin_files(sent) == {}
    assert installed(sent) == ["of_mine", "json"]
    said, jobs = [], []
    monkeypatch.setattr(submit, "Cluster", lambda address: SimpleNamespace(find=lambda job: None, send=jobs.append))
    submit.submit(sent, tmp_path, "http://head", detach=True, say=said.append)
    assert "the plugin of_mine is installed here and is not sent; the cluster's nodes need it installed too" in said
    assert len(jobs) == 1


def test_a_package_with_too_much_in_it_is_refused_by_its_largest_file(package):
    with (package / "data.bin").open("wb") as file:
        file.truncate(parcel.LIMIT)  # takes no room on the disk, and is not read
    with pytest.raises(BadInput, match=r"^of_mine/data\.bin: with its 512\.0 MiB the job's folder comes to 512\.0 MiB"):
        parcel.pack(recipe("of_mine.models"), Path("/runs"))


def test_a_class_of_a_function_does_not_travel(monkeypatch):
    class OfHere(ModelConfig):
        kind: Literal["of_here"] = "of_here"

    monkeypatch.setitem(registry.MODELS._configs, "of_here", OfHere)
    monkeypatch.setitem(registry.MODELS._owners, "of_here", Network)
    settled = samples.recipe(Path("/shared/data"), model={"kind": "of_here"})
    for pack in (lambda: parcel.pack(settled, Path("/runs")), lambda: parcel.once("doctor", settled, Path("/runs"))):
        with pytest.raises(BadInput, match="model: OfHere is defined in a notebook cell, a script or a function"):
            pack()


@pytest.mark.slow
def test_workers_that_lack_a_plugin_say_so(package, tmp_path):
    """This process finds the package by its own path, which a worker does not have."""
    data = samples.write(tmp_path / "data", rows=400)
    settled = samples.recipe(data, plugins=["of_mine.models"], model={"kind": "of_mine"}, cluster__workers=1)
    said = r"plugins: 'of_mine\.models' is no module that Python finds; .*; this is so on \S+, where a worker runs"
    with pytest.raises(BadInput, match=said):
        launch.train(settled, tmp_path / "runs")
    assert not (tmp_path / "runs/small").exists()
