"""Watching a stream and what follows it: minutes are measured, kept, drawn, and judged."""

from collections.abc import Sequence
from pathlib import Path

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read import minutes
from livetrain.trainers.watch.board import Board, Watched
from livetrain.trainers.watch.effects import Measures
from livetrain.trainers.watch.follower import WatchedFollower, is_follower
from livetrain.trainers.watch.stream import WatchedStream


def opened(folders: Sequence[str], metrics: Path | None, measures: Measures | None, hours: int, late: int) -> Board:
    """Return a board over some folders.

    Args:
        folders: each a stream's, local or a URI, or a follower's.
        metrics: where the minutes' metrics of the stream are kept; None: in its folder.
        measures: of the stream; None for what was measured before.
        hours: of events that are shown.
        late: s behind the clock that are late; 0: never.

    Raises:
        NotNow: a folder has nothing yet.
        BadInput: more than one stream is asked for at once, or measures of none, or what `Store` raises.
    """
    watched: list[Watched] = []
    for folder in folders:
        if "://" not in folder and not (Path(folder) / minutes.STREAM).exists() and is_follower(Path(folder)):
            watched.append(WatchedFollower(Path(folder), hours))
            continue
        if any(isinstance(each, WatchedStream) for each in watched):
            raise BadInput(f"{folder}: one page shows one stream; start another `livetrain watch` for this one")
        if metrics is None and "://" in folder:
            raise BadInput("--metrics: the stream is no local folder; name one for its metrics")
        watched.append(WatchedStream(folder, metrics or Path(folder) / "metrics", measures, hours, late))
    if (measures or metrics) and not any(isinstance(each, WatchedStream) for each in watched):
        asked = "--label" if measures else "--metrics"
        raise BadInput(
            f"{asked}: is of a stream, and {folders[0]} is a follower's run; name the stream's folder as well"
        )
    return Board(watched)
