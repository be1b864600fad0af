"""The commands that look at runs: runs, compare."""

from pathlib import Path
from typing import Annotated

import typer

from livetrain.cli.arguments import Checkpoint, Split, Which, check_picture
from livetrain.cli.terminal import loaded, note, out, say
from livetrain.configs.errors import BadInput


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs, or a sweep's.")] = Path("runs"),
) -> None:
    """List the runs of a folder, the newest first: what became of each, its model, data and best metric.

    Example: `livetrain runs runs`
    """
    from livetrain.trainers.observe import runs as found

    listed, sweeps = found.listed(folder), found.sweeps(folder)
    if listed:
        out.print(found.runs_table(listed))
    if any(run.state in ("stopped", "failed") for run in listed):
        note("stopped and failed runs go on from their last checkpoint when they are started again under their name")
    for sweep in sweeps:
        say(f"{sweep}: a sweep; livetrain runs {sweep} lists its trials")
    if not listed and not sweeps:
        say(f"{folder}: no runs are here yet; livetrain train RECIPE --runs {folder} makes one")


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of runs; the others are compared with the first.")
    ],
    split: Annotated[
        Split | None,
        typer.Option(help="Measure all of them on this split now, by default what their tests have left."),
    ] = None,
    checkpoint: Checkpoint = Which.best,
    picture: Annotated[Path, typer.Option("--out", help="The picture of their curves to write.")] = Path("compare.png"),
) -> None:
    """Compare runs: what differs in their recipes, their figures, curves, time and memory.

    Where runs were measured on the same rows, differences have intervals: a bootstrap that draws the same users, or
    other groups of rows, for both runs.

    Example: `livetrain compare runs/first runs/wide --split test`
    """
    from livetrain import api

    check_picture(picture)
    loaded("livetrain.cluster.launch" if split else "livetrain.trainers.observe.compare")
    found = api.comparison(runs, split.value if split else None, checkpoint.value)
    from livetrain.trainers.observe import compare as comparing

    for table in comparing.tables(found):
        out.print(table)
    for line in comparing.remarks(found):
        say(line)
    try:
        comparing.draw(found).savefig(picture)
    except OSError as error:
        raise BadInput(f"{picture}: cannot write here ({error.strerror}); choose another file with --out") from error
    say(f"curves: {picture}")
