"""`livetrain hash` and `livetrain ids`: the ids of strings, and which ids have rows of their own."""

from pathlib import Path
from typing import Annotated

import typer

from livetrain.cli.arguments import Checkpoint, Run, Which
from livetrain.cli.terminal import loaded, out, say


def hash(
    strings: Annotated[list[str], typer.Argument(metavar="STRING...", help="Any text; nothing is trimmed.")],
) -> None:
    """Print the id that each string has as a feature, a line each: what a server has to send.

    Example: `livetrain hash "F"`
    """
    from livetrain.trainers.data.write.ids import string_id

    for text in strings:
        say(str(string_id(text)))


def ids(
    run: Run,
    asked: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID...", help="Ids to look for; what is no whole number is hashed as a string's."),
    ] = None,
    table: Annotated[str | None, typer.Option(help="This table alone.", show_default=False)] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Write all ids of --table to this Parquet file: id, row, last_use.", show_default=False
        ),
    ] = None,
    checkpoint: Checkpoint = Which.best,
) -> None:
    """Show which ids have rows of their own in a run's tables of `hash: table`, and when they were last looked up.

    Example: `livetrain ids runs/din_simulated_ids 1842 77 --table streamer`
    """
    listing = loaded("livetrain.trainers.export.ids")
    found = listing.kept(run, checkpoint.value, table)
    if write is not None:
        say(f"{listing.write(found, write):,} ids are in {write}")
    elif asked:
        out.print(listing.shown(found, asked))
    else:
        out.print(listing.summary(found))
