"""Several lanes from one command: a process each, and one that dies begins again."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_FIRST_S, _LONGEST_S = 1.0, 60.0  # before a lane begins again that has died; who has lived longer begins at the first
_LOOK_S = 0.2


@dataclass
class _Lane:
    command: Sequence[str]
    pause: float = _FIRST_S
    due: float = 0.0  # when it begins again, by the monotonic clock
    began: float = 0.0
    process: subprocess.Popen | None = field(default=None)

    def begin(self) -> None:
        self.began = time.monotonic()
        self.process = subprocess.Popen(self.command)

    def died(self) -> None:
        self.pause = _FIRST_S if time.monotonic() - self.began > _LONGEST_S else min(2 * self.pause, _LONGEST_S)
        self.due, self.process = time.monotonic() + self.pause, None


def run_lanes(commands: Mapping[int, Sequence[str]], again: Callable[[int], bool], tell: Callable[[str], None]) -> int:
    """Keep a process per lane at work until all have ended well, or one has ended otherwise.

    Without one lane no minute is closed; so where one ends that begins no more, the others are told to end too.

    Args:
        commands: of each lane.
        again: whether a lane that has ended with a code (of a signal -n) begins again, some seconds later.
        tell: is told what died, in words.

    Returns:
        The exit code: 0, or that of the lane that ended.
    """
    lanes = {number: _Lane(command) for number, command in commands.items()}
    try:
        for lane in lanes.values():
            lane.begin()
        while lanes:
            for number, lane in list(lanes.items()):
                if lane.process is None:
                    if time.monotonic() >= lane.due:
                        lane.begin()
                elif (code := lane.process.poll()) == 0:
                    del lanes[number]
                elif code is not None and again(code):
                    lane.died()
                    tell(f"lane {number} ended with {code}, and begins again in {lane.pause:.0f} s")
                elif code is not None:
                    return code
            time.sleep(_LOOK_S)
        return 0
    finally:
        at_work = [lane.process for lane in lanes.values() if lane.process is not None]
        for process in at_work:
            process.terminate()
        for process in at_work:
            process.wait()
