"""The corpus of malformed recipes, overrides and command lines: one sentence each, or the right run."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from livetrain.cli import main as cli
from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model
from livetrain.trainers.evaluate.selection import check_select
from livetrain.trainers.train import memory
from tests.corpus import recipes

FREE = 16 * 2**30  # bytes that the machine has, in these tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "base.yaml").write_text(recipes.RECIPE, encoding="utf-8")
    (folder / "over.yaml").write_text("base: base.yaml\ntrain: {epochs: 5}\n", encoding="utf-8")
    return folder


def settled(path: Path, overrides: list[str]) -> Recipe:
    """Do what a command does with a recipe before it looks at the data."""
    recipe = load_recipe(path, overrides)
    check_select(recipe)
    memory.check(recipe, Model(recipe, device="meta", tables_device="meta"), free=FREE)
    return recipe


def check_sentence(said: str, piece: str) -> None:
    assert piece in said
    assert len(said) < 300, said
    assert said.isprintable(), said
    for foreign in ("Input should", "Value error", "validation error", "Traceback", "another value"):
        assert foreign not in said


def check_right(recipe: Recipe, key: str, value: Any, folder: Path) -> None:
    """The recipe holds the value, and is itself again once it was written and read."""
    found: Any = recipe
    for part in key.split("."):
        found = (
            found[int(part)]
            if isinstance(found, list)
            else found[part]
            if isinstance(found, dict)
            else getattr(found, part)
        )
    assert (found, type(found)) == (value, type(value))
    (folder / "dumped.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(folder / "dumped.yaml") == recipe


def name(value: Any) -> str:
    return ascii(value)[:60]


def test_the_corpus_is_large():
    refused = recipes.REFUSED, recipes.FILES_REFUSED, recipes.COMMANDS_REFUSED
    assert sum(map(len, refused)) + len(recipes.RIGHT) + len(recipes.FILES_RIGHT) >= 350


@pytest.mark.parametrize("override", recipes.REFUSED, ids=name)
@pytest.mark.some(80)
def test_an_override_is_refused(folder, override):
    with pytest.raises(BadInput) as caught:
        settled(folder / "base.yaml", [override])
    check_sentence(str(caught.value), recipes.REFUSED[override])


@pytest.mark.parametrize("override", recipes.RIGHT, ids=name)
@pytest.mark.some(17)
def test_an_override_is_right(folder, override):
    check_right(settled(folder / "base.yaml", [override]), *recipes.RIGHT[override], folder)


@pytest.mark.parametrize("case", recipes.FILES_REFUSED)
@pytest.mark.some(25)
def test_a_file_is_refused(folder, case):
    content, piece = recipes.FILES_REFUSED[case]
    (folder / "recipe.yaml").write_bytes(content)
    with pytest.raises(BadInput) as caught:
        settled(folder / "recipe.yaml", [])
    check_sentence(str(caught.value), piece)
    assert "recipe.yaml" in str(caught.value) or "tables.keys" in str(caught.value)


@pytest.mark.parametrize("case", recipes.FILES_RIGHT)
def test_a_file_is_right(folder, case):
    content, key, value = recipes.FILES_RIGHT[case]
    (folder / "recipe.yaml").write_bytes(content)
    check_right(settled(folder / "recipe.yaml", []), key, value, folder)


@pytest.mark.parametrize("words", recipes.COMMANDS_REFUSED, ids=name)
@pytest.mark.some(17)
def test_a_command_is_refused(folder, words, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["livetrain", *(word.format(recipe="base.yaml") for word in words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = "".join(capfd.readouterr())
    assert (end.value.code, said.count("\n")) == (2, 1), said
    check_sentence(said.rstrip("\n"), recipes.COMMANDS_REFUSED[words])


def test_many_overrides(folder):
    overrides = [f"train.epochs={n + 1}" for n in range(1000)]
    assert load_recipe(folder / "base.yaml", overrides).train.epochs == 1000
    with pytest.raises(BadInput) as caught:
        load_recipe(folder / "base.yaml", [*overrides, "cluster.workers=5"])
    check_sentence(str(caught.value), "do not divide among 5 workers")


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "none.yaml")
    for kind, piece in {
        "pipe": "it is no file",
        "folder": "it is no file",
        "loop": "levels of symbolic links",
        "gone": "there is no such recipe file",
    }.items():
        with pytest.raises(BadInput) as caught:
            load_recipe(tmp_path / f"{kind}.yaml")
        check_sentence(str(caught.value), piece)


def test_bases_that_are_too_many(tmp_path):
    for number in range(100):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\n", encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        load_recipe(tmp_path / "0.yaml")
    check_sentence(str(caught.value), "more than 32 files are built on one another")
