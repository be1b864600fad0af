"""`livetrain hash`: the ids of strings."""

from typing import Annotated

import typer

from livetrain.cli.terminal import say


def hash(
    strings: Annotated[list[str], typer.Argument(metavar="STRING...", help="Any text; nothing is trimmed.")],
) -> None:
    """Print the id that each string has as a feature, a line each: what a server has to send.

    Example: `livetrain hash "F"`
    """
    from livetrain.trainers.data.write.ids import string_id

    for text in strings:
        say(str(string_id(text)))
