"""`livetrain watch`: a page over a stream and the training that follows it."""

import time
from pathlib import Path
from typing import Annotated

import typer

from livetrain.cli.terminal import note, say
from livetrain.configs.errors import BadInput

_LOOK_S = 5.0


def watch(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="DIR...", help="Folders or URIs that `livetrain stream` writes, runs of `follow`."),
    ],
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=SQL]", help="A column whose mean is measured, or an expression on one row."),
    ] = None,
    per: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=A/B", help="So many of label A come of one of label B, as conversion=gift/click."),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=SQL", help="What was foretold of a label, for its calibration."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=SQL]", help="What slices the rows: a recall channel, a model's version."),
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Folder of the minutes' metrics, by default DIR/metrics.", show_default=False
        ),
    ] = None,
    hours: Annotated[int, typer.Option(min=1, max=24 * 31, help="Hours of events that the page shows.")] = 24,
    late: Annotated[
        int, typer.Option(min=0, help="Seconds behind the clock that raise an alarm; 0 for what is replayed: never.")
    ] = 300,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 lets everybody in who reaches it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8765,
    once: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page to a file instead, and end.", show_default=False)
    ] = None,
) -> None:
    """Measure the minutes of a stream as they close, and show curves, slices and alarms on a page.

    What is measured is said once, at the first call for a stream, and kept in its metrics folder beside a Parquet file
    per minute. Prometheus reads the newest figures at /metrics.

    Example: `livetrain watch data/live runs/din-follow --label click --by recall_channel`
    """
    from livetrain.trainers.runtime.manifest import write_text
    from livetrain.trainers.watch import opened
    from livetrain.trainers.watch.effects import Measures, parsed, ratios
    from livetrain.trainers.watch.page import page
    from livetrain.trainers.watch.serve import Server

    labels = parsed("--label", label or ())
    asked = Measures(labels, ratios(per or ()), parsed("--score", score or ()), parsed("--by", by or ()))
    if not labels and (per or score or by):
        raise BadInput("--label: --per, --score and --by are about labels, and none is given; add --label")
    board = opened(folders, metrics, asked if labels else None, hours, late)
    if once is not None:
        board.look(wholly=True)
        try:
            write_text(once, page(board.data()))
        except OSError as error:
            raise BadInput(f"--once: {once} cannot be written ({error.strerror}); choose another file") from error
        say(f"{once}: {board.summary()}")
        return
    with Server(board, host, port) as server:
        say(f"{server.address} shows it, {server.address}metrics is for Prometheus; Ctrl-C ends it")
        told = ""
        while True:
            board.look()
            if (summary := board.summary()) != told:
                note(f"{time.strftime('%H:%M:%S')} {summary}")
                told = summary
            time.sleep(_LOOK_S)
