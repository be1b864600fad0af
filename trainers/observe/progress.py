"""Seeing a run: a bar, or plain lines where there is no terminal, drawn from the run's own metrics.jsonl.

Reading the file rather than being called keeps the training loop free of display, and works alike when it runs in this
process, in Ray workers, or on another machine with a shared folder.
"""

import json
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from livetrain.modules.tasks.registry import leading, metrics

POLL_S = 0.25
PLAIN_LINE_S = 10.0


class Tail:
    """The lines that are appended to a JSON-lines file from now on.

    Invariants: a line is given once, whole, and only when its newline is there; what is no JSON object is passed over.
    A file that shrank or was replaced is read again from its start, but lines from before the newest one known
    (field `time`) are not given again.
    """

    def __init__(self, path: Path):
        self.path = path
        self._offset, self._inode = 0, 0
        self._newest = self._known = float("-inf")  # time of the newest line, and of the newest before a reread
        self.read()

    def read(self) -> list[dict[str, Any]]:
        """Return the lines that are new since the last call."""
        try:
            with self.path.open("rb") as file:
                chunk = self._unread(file)
        except OSError:  # not there yet, or a shared folder that is away for a moment
            return []
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [line for line in map(_parse, whole.splitlines()) if line and self._is_new(line)]

    def _unread(self, file: BinaryIO) -> bytes:
        found = os.fstat(file.fileno())
        if found.st_ino != self._inode or found.st_size < self._offset:
            self._offset, self._known = 0, self._newest
        self._inode = found.st_ino
        file.seek(self._offset)
        return file.read()

    def _is_new(self, line: dict[str, Any]) -> bool:
        moment = line.get("time", float("inf"))
        self._newest = max(self._newest, line.get("time", self._newest))
        return moment > self._known


class Watcher:
    """A context manager that shows how `run` goes, until it is left.

    Lines that an earlier attempt of the run has left are not shown.

    Args:
        run: the run's folder; metrics.jsonl need not be there yet.
        console: where to draw, by default standard output.

    Example:
        >>> from livetrain.trainers.runtime import runlog
        >>> run = Path("runs/mine")
        >>> run.mkdir()
        >>> with Watcher(run):
        ...     runlog.note(run, "note", text="checking the data")
        checking the data
    """

    def __init__(self, run: Path, console: Console | None = None):
        self.console = console or Console()
        self.state = State()
        self._tail = Tail(run / "metrics.jsonl")
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        animated = self.console.is_terminal or self.console.is_jupyter
        self._view = _Bar(self.console) if animated else _Plain(self.console)

    def __enter__(self) -> "Watcher":
        self._view.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        self._view.stop(self.state)

    def _watch(self) -> None:
        finished = False
        while not finished:
            finished = self._left.wait(POLL_S)  # one more reading after the end, for the last lines
            for line in self._tail.read():
                self.state.take(line)
                if line.get("kind") == "note":
                    self._view.note(str(line.get("text", "")))
            if finished:
                self.state.doing = None
            self._view.show(self.state)


class State:
    """What the lines so far say."""

    def __init__(self) -> None:
        self.step = self.steps = 0
        self.epoch = 0.0
        self.loss: float | None = None
        self.leading: tuple[str, float] | None = None  # metric of the first task
        self.doing: str | None = (
            "starting"  # what goes on besides steps: the newest stage or, before the first step, note
        )
        self.part: tuple[int, int] | None = None  # how many of its batches, or of what it says, are done, of how many
        self.unit = "batches"
        self._since = time.monotonic()  # when it came
        self._at = 0  # the step that the newest line was written at
        self._steps, self._rated = 0, 0.0  # steps whose speed is known, and the sum of their 1 / rows_per_s
        self._first: tuple[float, int] | None = None  # (time, step) of the first line, to judge the pace by
        self._last = (0.0, 0)

    def take(self, line: dict[str, Any]) -> None:
        """Take in one line of metrics.jsonl."""
        if line.get("kind") == "train":
            self.step, self.steps = int(line.get("step", self.step)), int(line.get("steps", self.steps))
            self.epoch = float(line.get("epoch", self.epoch))
            self.loss, self.doing, self.part = line.get("loss"), None, None
            self._rate(line)
            self._last = (float(line.get("time", time.time())), self.step)
            if self._first is None or self.step < self._first[1]:  # restarted from a checkpoint
                self._first = self._last
        elif line.get("kind") == "eval":
            self.doing, self.part = None, None
            known = metrics()
            task = next((task for key in line for task, _, name in [key.rpartition(".")] if task and name in known), "")
            found = leading([name for key in line for of, _, name in [key.rpartition(".")] if of == task])
            if found is not None and line[f"{task}.{found}"] is not None:
                title = f"{line.get('split', '')} {known[found].title}".strip()
                self.leading = (title, float(line[f"{task}.{found}"]))
        elif line.get("kind") == "stage" or (line.get("kind") == "note" and not self.steps):
            before, self.doing = self.doing, str(line.get("text", ""))
            self.part = (int(line["done"]), int(line["of"])) if "done" in line else None
            self.unit = str(line.get("unit", "batches"))
            self._at = int(line.get("step", self._at))
            if self.doing != before:
                self._since = time.monotonic()

    def _rate(self, line: dict[str, Any]) -> None:
        """Take in how fast the steps since the last line were."""
        steps, self._at = max(self.step - self._at, 1), self.step
        if speed := line.get("rows_per_s"):
            self._steps, self._rated = self._steps + steps, self._rated + steps / speed

    @property
    def rows_per_s(self) -> float | None:
        """The mean speed of this attempt's steps, which are all of one size; evaluations are not counted."""
        return self._steps / self._rated if self._rated else None

    @property
    def seconds_left(self) -> float | None:
        """The time left at this attempt's own pace, evaluations included; None before there is a pace."""
        if self._first is None or self._last[1] <= self._first[1]:
            return None
        pace = (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])
        return max(pace * (self.steps - self.step), 0.0)

    def __str__(self) -> str:
        """What a training has come to, and what else is being done, and for how long."""
        doing = []
        if self.doing is not None:
            far = f"  {self.part[0]:,}/{self.part[1]:,} {self.unit}" if self.part else ""
            doing = [f"{self.doing}{far}  {_clock(time.monotonic() - self._since)}"]
        if not self.steps:
            return "".join(doing)
        parts = [f"step {self.step:,}/{self.steps:,}", f"epoch {self.epoch:.2f}"]
        if self.rows_per_s is not None:
            parts.append(f"{self.rows_per_s:,.0f} rows/s")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.leading is not None:
            parts.append(f"{self.leading[0]} {self.leading[1]:.4f}")
        if self.seconds_left is not None and self.step < self.steps:
            parts.append(f"{_clock(self.seconds_left)} left")
        return "  ".join(parts + doing)


class _Bar:
    def __init__(self, console: Console):
        words = TextColumn("{task.description}", table_column=Column(overflow="fold"))  # two lines on a narrow terminal
        columns = (BarColumn(bar_width=20), words)
        self._progress = Progress(*columns, console=console)
        self._task: TaskID | None = None

    def start(self) -> None:
        self._progress.start()
        self._task = self._progress.add_task("starting", total=None)

    def note(self, text: str) -> None:
        self._progress.console.print(escape(text), style="dim")

    def show(self, state: State) -> None:
        if self._task is not None:
            done, of = (state.step, state.steps) if state.steps else state.part or (0, None)
            self._progress.update(self._task, completed=done, total=of, description=escape(str(state)))

    def stop(self, state: State) -> None:
        if not state.steps and self._task is not None:
            self._progress.remove_task(self._task)
        self._progress.stop()


class _Plain:
    def __init__(self, console: Console):
        self._console = console
        self._shown, self._due, self._stepped = "", 0.0, False

    def start(self) -> None:
        self._due = time.monotonic() + PLAIN_LINE_S

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, state: State) -> None:
        first = state.steps and not self._stepped
        if (first or time.monotonic() >= self._due) and str(state) != self._shown:
            self._stepped = bool(state.steps)
            self._print(state)
            self._due = time.monotonic() + PLAIN_LINE_S

    def stop(self, state: State) -> None:
        if state.steps and str(state) != self._shown:
            self._print(state)

    def _print(self, state: State) -> None:
        self._shown = str(state)
        self.note(self._shown)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
