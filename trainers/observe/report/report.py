"""A run's report: report.png for the eye, and report.html for who looks closer."""

import os
from pathlib import Path

from matplotlib.figure import Figure

from livetrain.trainers.observe.report import picture
from livetrain.trainers.observe.report.contents import contents
from livetrain.trainers.runtime import manifest

NAME, PAGE = "report.png", "report.html"


def write_report(run: Path) -> Path:
    """Write `report.png` and `report.html` of a run, of the same numbers; see `contents`.

    Args:
        run: the run's folder.

    Returns:
        Path of the picture. Each file appears whole or not at all, the picture last: where it is, the other is too.

    Raises:
        BadInput: the folder holds no run, or its result.json is no JSON.
    """
    from livetrain.trainers.observe.report import html  # Bokeh takes a second, which no start of a run need wait for

    page, path, unfinished = contents(run), run / NAME, run / ".report.png.part"
    manifest.write_text(run / PAGE, html.html(page))
    picture.png(page, unfinished)
    manifest.sync(unfinished)
    os.replace(unfinished, path)
    return path


def draw(run: Path) -> Figure:
    """Draw what `report.png` of a run shows.

    Args:
        run: the run's folder.

    Raises:
        BadInput: the folder holds no run, or its result.json is no JSON.
    """
    return picture.draw(contents(run))
