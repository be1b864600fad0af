"""Saying what is being done where it takes a while and nothing else is on the screen."""

import contextlib
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PATIENCE_S = 10.0


@contextlib.contextmanager
def waiting(what: str, console: Console | None = None) -> Iterator[None]:
    """Say what is being done: on a terminal with a clock, gone at the end; elsewhere in a line after ten seconds.

    Args:
        what: in words, such as "checking the data".
        console: where to, by default standard error.
    """
    console = console or Console(stderr=True)
    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as shown:
            shown.add_task(escape(what), total=None)
            yield
        return
    line = threading.Timer(PATIENCE_S, console.print, (what,), {"markup": False, "highlight": False, "soft_wrap": True})
    line.daemon = True
    line.start()
    try:
        yield
    finally:
        line.cancel()
