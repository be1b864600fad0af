"""The command that makes samples by the minute."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from livetrain.cli.arguments import here
from livetrain.cli.terminal import FAILED, say


def stream(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="A YAML file; see docs/guide/streams.md.", show_default=False)
    ],
    folder: Annotated[
        Path, typer.Option("--out", parser=here, metavar="PATH", help="Folder for the minutes: new, or to go on with.")
    ],
    lane: Annotated[
        list[int] | None,
        typer.Option(help="Make this lane alone, as on a machine of its own, or these; by default all of them."),
    ] = None,
    copy: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder or URI that closed minutes are copied to, for followers.", show_default=False
        ),
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="End when all is closed that is there now, the last minute too.")
    ] = False,
) -> None:
    """Make samples by the minute from topics of exposures and actions, until it is told to end.

    A command that was killed goes on where its newest manifest says; it loses and doubles nothing.

    Example: `livetrain stream rooms_stream.yaml --out minutes`
    """
    from livetrain.configs.errors import BadInput
    from livetrain.configs.stream_spec import load_stream
    from livetrain.trainers.data.stream.copies import Copies
    from livetrain.trainers.data.stream.lane import run_lane
    from livetrain.trainers.data.stream.lanes import run_lanes

    loaded = load_stream(spec)
    lanes = sorted(set(lane or range(loaded.spec.lanes)))
    if wrong := [each for each in lanes if not 0 <= each < loaded.spec.lanes]:
        raise BadInput(f"--lane {wrong[0]}: {spec} has lanes 0 to {loaded.spec.lanes - 1}; name one of them")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if copy is None else Copies(folder, lanes, copy, say):
        if len(lanes) == 1:
            run_lane(loaded, folder, lanes[0], drain, lambda words: say(f"lane {lanes[0]}: {words}"))
            return
        command = [sys.executable, "-m", "livetrain", "stream", str(spec), "--out", str(folder)]
        command += ["--drain"] if drain else []
        commands = {each: [*command, "--lane", str(each)] for each in lanes}
        # What a signal has ended was killed, as for its memory; what fails may pass, as a full disk does.
        if code := run_lanes(commands, lambda code: code < 0 or (code == FAILED and not drain), say):
            raise typer.Exit(code)
