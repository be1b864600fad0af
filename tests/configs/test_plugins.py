"""Models from outside the tree: named in a recipe, installed as a plugin, or defined where only this process is."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from livetrain.cli import main as cli
from livetrain.configs import plugins
from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe, load_recipe, override
from livetrain.configs.registry import MODELS
from tests import outside

BARE = {
    "data": {"path": "data"},
    "features": {"user": {"type": "id", "table": "user"}, "rate": {"type": "dense"}},
    "tables": {"user": {"rows": 8, "dim": 4}},
    "tasks": {"click": {"label": "label"}},
}


def recipe(kind: str, *named: str, **more: Any) -> dict[str, Any]:
    return {**BARE, "model": {"kind": kind}, "plugins": list(named), **more}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Iterator[Path]:
    """A package `of_mine`, where Python finds it, with the model `of_mine`."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield outside.write(tmp_path, "of_mine")
    outside.forget("of_mine")
    plugins._installed.cache_clear()


def test_a_plugin_that_the_recipe_names_is_imported_by_loading(package, tmp_path):
    with pytest.raises(BadInput, match="there is no model 'of_mine'.*; one of your own needs its module under plugins"):
        load_recipe(recipe("of_mine"))
    settled = load_recipe(recipe("of_mine", "of_mine.models"), model={"scale": 0.5})
    assert (type(settled.model).__module__, settled.model.scale) == ("of_mine.models", 0.5)
    (tmp_path / "mine.yaml").write_text(dump_recipe(settled))
    outside.forget("of_mine")
    assert "of_mine" not in MODELS
    assert dump_recipe(load_recipe(tmp_path / "mine.yaml")) == dump_recipe(settled)
    with pytest.raises(BadInput, match=r"unknown key model.scal \(did you mean 'scale'\?\)"):
        load_recipe(settled, **{"model.scal": 2})


def test_a_plugin_is_found_where_the_command_was_started(package, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    with pytest.raises(BadInput, match=r"plugins: 'of_mine\.models' is no module that Python finds"):
        load_recipe(recipe("of_mine", "of_mine.models"))
    monkeypatch.chdir(tmp_path)
    assert load_recipe(recipe("of_mine", "of_mine.models")).model.kind == "of_mine"


def test_what_a_kind_comes_from_is_named_for_later(package):
    __import__("of_mine.models")
    assert load_recipe(recipe("of_mine")).plugins == ["of_mine.models"]
    assert load_recipe(recipe("of_mine", "of_mine")).plugins == ["of_mine"]  # its package brings it along
    assert load_recipe(recipe("dnn") | {"model": {"kind": "dnn", "units": [4]}}).plugins == []
    moved = override(load_recipe(recipe("of_mine")), {"train.epochs": 2})
    assert (moved.plugins, moved.train.epochs) == (["of_mine.models"], 2)


def test_a_recipe_that_arrives_brings_its_plugins_along(package):
    sent = pickle.dumps(load_recipe(recipe("of_mine", "of_mine.models")))
    outside.forget("of_mine")
    arrived = pickle.loads(sent)
    assert arrived.model.kind in MODELS
    assert arrived.plugins == ["of_mine.models"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "plugins: 'of_mine.models' is no module that Python finds; install it, or start where its folder lies"),
        ("import of_nobody.at_all", "plugins: 'of_mine.models' needs the module 'of_nobody', which is not installed"),
        ("1 / 0", "plugins: 'of_mine.models' cannot be imported (ZeroDivisionError: division by zero); mend it"),
        ("x = (", "plugins: 'of_mine.models' cannot be imported (SyntaxError: '(' was never closed"),
        ("raise SystemExit(0)", "plugins: 'of_mine.models' cannot be imported (SystemExit: 0); mend it"),
    ],
)
def test_a_plugin_that_is_missing_or_broken_is_one_sentence(package, tmp_path, monkeypatch, capfd, text, sentence):
    (package / "models.py").unlink() if text is None else (package / "models.py").write_text(text)
    (tmp_path / "mine.yaml").write_text(
        dump_recipe(load_recipe(recipe("lr"))).replace("plugins: []", "plugins: [of_mine.models]")
    )
    monkeypatch.setattr(sys, "argv", ["livetrain", "train", str(tmp_path / "mine.yaml"), "--runs", str(tmp_path)])
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capfd.readouterr().err
    assert end.value.code == 2
    assert sentence in said
    assert f"{tmp_path / 'mine.yaml'}, line " in said
    assert said.count("\n") == 1
    assert len(said) < 300 + len(str(tmp_path))


def install(folder: Path, module: str) -> None:
    """Make what pip leaves of a distribution `of-mine` whose entry point names a module."""
    (folder / "of_mine-1.0.dist-info").mkdir()
    (folder / "of_mine-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: of-mine\nVersion: 1.0\n")
    (folder / "of_mine-1.0.dist-info/entry_points.txt").write_text(f"[livetrain.plugins]\nmine = {module}\n")


def test_an_installed_plugin_needs_no_name_and_gets_one(package, tmp_path):
    install(tmp_path, "of_mine.models")
    plugins._installed.cache_clear()
    assert load_recipe(recipe("of_mine")).plugins == ["of_mine.models"]


def test_an_installed_plugin_that_is_broken_is_named_with_its_owner(package, tmp_path):
    install(tmp_path, "of_mine.no_such")
    plugins._installed.cache_clear()
    with pytest.raises(
        BadInput, match=r"plugins: 'of_mine\.no_such', which is installed as a plugin of of-mine, is no"
    ):
        load_recipe(recipe("lr"))
