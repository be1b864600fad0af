"""Seeing a sweep: a live table of its trials in a terminal or a notebook, elsewhere a line per event."""

import threading
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from livetrain.cluster.sweep.trials import Record, Trial
from livetrain.cluster.sweep.words import last_line, number, short

REFRESH_S = 0.5
STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "waiting": "dim"}
SHOWN = 40  # trials in the live table: more do not fit a screen


class Board:
    """A context manager that shows a sweep until it is left.

    Args:
        sweep: its trials are read anew at every refresh.
        console: where to draw, by default standard output.
    """

    def __init__(self, sweep: Record, console: Console | None = None) -> None:
        self._sweep, self.console = sweep, console or Console()
        self._starts: dict[int, float] = {}
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._cell: Any = None  # the notebook's output that is drawn anew
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweep", daemon=True)

    def __enter__(self) -> "Board":
        self._begun = time.monotonic()
        if self._live:
            self._live.start()
        elif self.console.is_jupyter:
            from IPython.display import display

            self._cell = display(self._table(), display_id=True)
        if self._live or self._cell:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._live:
            self._live.stop()

    def started(self, trial: Trial) -> None:
        """Take note that a trial starts, or starts again."""
        self._starts[trial.number] = time.monotonic()
        self._line(f"trial {trial.name} starts: {values(trial)}")

    def ended(self, trial: Trial) -> None:
        """Take note of a trial's end."""
        shown = ", ".join(
            f"{metric.text} {number(score)}"
            for metric, score in zip(self._sweep.metrics, trial.scores, strict=False)
        )  # fmt: skip
        self._line(f"trial {trial.name} {trial.state} at epoch {trial.epoch:.2f}{': ' if shown else ''}{shown}")
        if trial.error:
            self._line(f"trial {trial.name}: {last_line(trial.error)}")

    def seconds(self, trial: Trial) -> float:
        """Return the time since a trial started, in this process."""
        return time.monotonic() - self._starts.get(trial.number, time.monotonic())

    def _line(self, text: str) -> None:
        if not (self._live or self._cell):
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _watch(self) -> None:
        finished = False
        while not finished:
            finished = self._left.wait(REFRESH_S)
            if self._live:
                self._live.update(self._table(), refresh=True)
            else:
                self._cell.update(self._table())

    def _table(self) -> Table:
        shown = trials_table(self._sweep, SHOWN)
        shown.caption, shown.caption_justify = self._status(), "left"
        return shown

    def _status(self) -> str:
        states = [trial.state for trial in self._sweep.trials]
        counts = ", ".join(f"{states.count(state)} {state}" for state in STYLES if state in states)
        minutes, seconds = divmod(round(time.monotonic() - self._begun), 60)
        return f"{counts or 'starting'} of {self._sweep.settings.samples} trials, {minutes}:{seconds:02d}"


def trials_table(sweep: Record, limit: int | None = None) -> Table:
    """Return a sweep's trials as a table, best first, with the errors of those that failed."""
    shown = Table(title=sweep.folder.name, title_justify="left", header_style="bold")
    for head in ("trial", "state", "epoch", *(metric.text for metric in sweep.metrics)):
        shown.add_column(head, justify="left" if head == "state" else "right")
    for key in sweep.space.domains:
        shown.add_column(short(key, sweep.space.domains), overflow="fold")
    front = {trial.number for trial in sweep.front} if len(sweep.metrics) > 1 else set()
    if front:
        shown.add_column("Pareto")
    if any(trial.state == "failed" for trial in sweep.trials):
        shown.add_column("error", overflow="fold")
    for trial in sweep.ranked()[:limit]:
        cells: list[str | Text] = [trial.name, Text(trial.state, STYLES[trial.state]), f"{trial.epoch:.2f}"]
        cells += [number(score) for score in trial.scores or [None] * len(sweep.metrics)]
        cells += [number(trial.values.get(key)) for key in sweep.space.domains]
        cells += ["*" if trial.number in front else ""] if front else []
        shown.add_row(*cells, *([last_line(trial.error)] if trial.error else []))
    return shown


def values(trial: Trial) -> str:
    """Return a trial's values on one line."""
    return ", ".join(f"{key}={number(value)}" for key, value in trial.values.items())
