"""What commands write to: results to standard output, what is being done to standard error."""

from rich.console import Console
from rich.text import Text

from livetrain.configs.errors import without_credentials

out, err = Console(), Console(stderr=True)

FAILED, BAD_INPUT, WORSE, NOT_NOW = 1, 2, 3, 4  # exit codes


def say(sentence: str) -> None:
    """Write a sentence of the result."""
    out.print(sentence, highlight=False, markup=False, soft_wrap=True)


def note(sentence: str) -> None:
    """Write what is being done."""
    err.print(Text(sentence, "dim"), soft_wrap=True)


def complain(sentence: str) -> None:
    """Write what is wrong."""
    err.print(Text(without_credentials(sentence), "red"), soft_wrap=True)
