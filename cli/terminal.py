"""What commands write to: results to standard output, what is being done to standard error."""

import importlib
import os
import sys
from types import ModuleType

from rich.console import Console
from rich.text import Text

from livetrain.configs.errors import without_credentials
from livetrain.trainers.observe.waiting import waiting

WIDE = 160  # columns of a table in a pipe or a file, which have no width of their own


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = WIDE
    return console


out, err = _console(), _console(stderr=True)

FAILED, BAD_INPUT, WORSE, NOT_NOW = 1, 2, 3, 4  # exit codes


def say(sentence: str) -> None:
    """Write a sentence of the result."""
    _write(out, sentence)


def note(sentence: str) -> None:
    """Write what is being done."""
    _write(err, sentence, "dim")


def complain(sentence: str) -> None:
    """Write what is wrong."""
    _write(err, without_credentials(sentence), "red")


def _write(console: Console, sentence: str, style: str = "") -> None:
    """Write lines that break between words on a terminal, which would break them anywhere; elsewhere they are whole."""
    console.print(Text(sentence, style), soft_wrap=not console.is_terminal)


def loaded(module: str) -> ModuleType:
    """Return a module that brings in torch and Ray, which take seconds, and say so meanwhile."""
    if module not in sys.modules:
        with waiting("loading PyTorch and Ray", err):
            importlib.import_module(module)
    return sys.modules[module]
