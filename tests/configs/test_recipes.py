"""The recipes of configs/recipes, each of which says how its data are made."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from livetrain.cli import main as cli
from livetrain.configs.load import load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "configs/recipes").glob("*.yaml"))


def commands(path: Path) -> list[list[str]]:
    """Return the words of the commands that a recipe's first lines name, as ``# Data: livetrain data ...``."""
    head = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    assert head, f"{path} begins with no comment"
    named = re.findall(r"^#(?: Data:|  +) (livetrain (?:data|predict) .+)$", head.group(), flags=re.MULTILINE)
    assert "# Data: livetrain data " in head.group(), f"{path} does not say which command makes its data"
    return [shlex.split(line)[1:] for line in named]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_the_commands_that_make_its_data(path):
    made = []
    for words in commands(path):
        command = typer.main.get_command(cli.app)
        context = None
        while hasattr(command, "commands"):  # a group: data, and what is below it
            name, *words = words
            command, context = command.commands[name], typer.Context(command, info_name=name, parent=context)
        given = command.make_context(command.name, list(words), parent=context).params  # refuses unknown options
        made.append(str(given[next(option.name for option in command.params if "--out" in option.opts)]))
    assert made[-1].partition("/date=")[0] == load_recipe(path).data.path  # perhaps its days, one by one
    for earlier, words in zip(made[:-1], commands(path)[1:], strict=True):
        assert any(f"{word}/".startswith(f"{earlier}/") for word in words), (
            "a command that reads what the one before wrote"
        )
