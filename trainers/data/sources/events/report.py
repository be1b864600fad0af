"""What a preparation shows: a bar while it runs, or plain lines where there is no terminal, and a table at its end."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Bar:
    """A context manager that draws the days that are done; call it with (what is being done, days done, days).

    Example:
        >>> with Bar(Console()) as bar:
        ...     bar("sorting date=2025-05-26", 1, 3)
        sorting date=2025-05-26 (1 of 3 days done)
    """

    def __init__(self, console: Console):
        self._console, self._animated = console, console.is_terminal or console.is_jupyter
        doing = TextColumn("{task.description}")
        self._bar = Progress(
            BarColumn(bar_width=20), MofNCompleteColumn(), doing, TimeRemainingColumn(), console=console
        )

    def __enter__(self) -> "Bar":
        if self._animated:
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._animated:
            self._bar.stop()

    def __call__(self, what: str, done: int, days: int) -> None:
        if self._animated:
            self._bar.update(self._task, description=what, completed=done, total=days or None)
        else:
            counted = f" ({done} of {days} days done)" if days else ""
            self._console.print(f"{what}{counted}", style="dim", markup=False, highlight=False, soft_wrap=True)


def days_table(prepared: dict[str, Any]) -> Table:
    """Return what dataset.json reports: rows by day, and every count that is not zero."""
    made = Table(title=f"{prepared['dataset']}: {sum(day['rows'] for day in prepared['days'].values()):,} rows")
    made.add_column("what")
    made.add_column("count", justify="right")
    for day, content in prepared["days"].items():
        made.add_row(f"rows of date={day}", f"{content['rows']:,}")
    made.add_section()
    for part in ("raw", "days"):
        for words, count in prepared["report"][part].items():
            if count:
                made.add_row(words, f"{count:,}")
    return made
