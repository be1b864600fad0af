"""The command that makes samples by the minute."""

import subprocess
import sys
import time
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
        int | None,
        typer.Option(help="Make this lane alone, as where each has a machine of its own; by default all of them."),
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
    from livetrain.trainers.data.stream.lane import run_lane

    loaded = load_stream(spec)
    lanes = loaded.spec.lanes
    if lane is not None and not 0 <= lane < lanes:
        raise BadInput(f"--lane {lane}: {spec} has lanes 0 to {lanes - 1}; name one of them")
    folder.mkdir(parents=True, exist_ok=True)
    if lane is not None or lanes == 1:
        run_lane(loaded, folder, lane or 0, drain, lambda words: say(f"lane {lane or 0}: {words}"))
        return
    command = [sys.executable, "-m", "livetrain", "stream", str(spec), "--out", str(folder)]
    command += ["--drain"] if drain else []
    children = [subprocess.Popen([*command, "--lane", str(each)]) for each in range(lanes)]
    try:
        while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
            time.sleep(0.2)
        code = next((child.returncode for child in children if child.returncode), 0)
    finally:  # without one of them no minute is closed, so that all end
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
    raise typer.Exit(code if code >= 0 else FAILED)
