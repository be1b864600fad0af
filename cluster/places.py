"""A command's own place in a run's folder, and what killed commands have left in theirs.

Each command that is at work on a run has a place of its own (see runtime/scratch.py), where it and its workers tell one
another: the id of Ray's reservation for the workers, the outcome, or why they refused.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from livetrain.configs.errors import BadInput, NotNow
from livetrain.trainers.runtime import scratch

TRAINING, EVALUATION = ".train-", ".evaluate-"
PLACEMENT, OUTCOME, REFUSAL = "placement.txt", "outcome.json", "refused.json"

_PATIENCE_S = 20.0  # longest wait for workers that are on their way out


@contextlib.contextmanager
def taken(run: Path, kind: str) -> Iterator[Path]:
    """Yield a command's own place in a run's folder.

    Raises:
        BadInput: the folder cannot be written to.
    """
    stack = contextlib.ExitStack()
    try:
        place = stack.enter_context(scratch.place(run, kind))
    except OSError as error:
        raise BadInput(f"{run}: cannot write here ({error.strerror}); mend the folder, or copy it elsewhere") from error
    with stack:
        yield place


def clear(place: Path, may_go: Callable[[Path], bool]) -> None:
    """Remove what commands of a place's kind have left beside it when they were killed.

    Workers of a training are waited for: they may still write to the run.

    Args:
        place: this command's own.
        may_go: whether one that nobody holds may go.

    Raises:
        NotNow: workers of an earlier start of the training do not end.
    """
    kind = TRAINING if place.name.startswith(TRAINING) else EVALUATION
    stop = time.monotonic() + _PATIENCE_S
    while set(scratch.sweep(place.parent, kind, may_go)) - {place} and kind == TRAINING:
        if time.monotonic() > stop:
            raise NotNow(
                f"{place.parent}: workers of an earlier start still train this run; wait for them, or end them"
            )
        time.sleep(0.2)


def release(run: Path) -> None:
    """End the workers of a training whose own driver is gone or is to go, and free what Ray holds for them, at once.

    Ray does so itself where all that the driver has started ends with it; a trial's driver is only a part of a sweep.
    """
    for place in scratch.places(run, TRAINING) if run.exists() else ():
        free(place)


def free(place: Path) -> bool:
    """Free what Ray holds for the workers of a place, if it holds anything; the place may go then."""
    import ray
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    note = place / PLACEMENT
    if note.exists():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(note.read_text(encoding="utf-8")))))
        note.unlink(missing_ok=True)
    return True
