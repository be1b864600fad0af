"""The command `livetrain init`."""

from pathlib import Path
from typing import Annotated

import typer

from livetrain.cli.terminal import note, say
from livetrain.configs.errors import BadInput


def init(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="CSV, TSV, JSON lines, Parquet or ORC; paths or URIs.")
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the two files.")] = Path(),
    name: Annotated[
        str | None, typer.Option(help="Of the dataset and the run, by default the log's file name.", show_default=False)
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN|NAME=EXPRESSION", help="What to predict, instead of what is guessed."),
    ] = None,
) -> None:
    """Look at tables, guess what their columns are, and write a spec and a recipe that trains on them.

    Example: `livetrain init clicks.csv products.csv`
    """
    from livetrain.trainers.data.sources.table import guessed, starter

    labels: dict[str, str] = {}
    for given in label or []:
        own, _, expression = given.partition("=")
        own = own.strip()
        if not own:
            raise BadInput(f"--label {given}: write COLUMN, or NAME=EXPRESSION")
        labels[guessed.plain(own, labels)] = expression.strip() or own
    spec, recipe, found = starter.init(files, folder, name, labels)
    for reason in starter.reasons(found):
        note(reason)
    say(f"{spec} and {recipe} are written; read their comments, then")
    say(f"  livetrain data table {spec} --out data/{recipe.stem}")
    say(f"  livetrain train {recipe}")
