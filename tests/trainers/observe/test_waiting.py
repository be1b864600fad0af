import io
import time

from rich.console import Console

from livetrain.trainers.observe import waiting as module
from livetrain.trainers.observe.waiting import waiting


def said(terminal: bool, seconds: float) -> str:
    drawn = io.StringIO()
    with waiting("loading [all]", Console(file=drawn, force_terminal=terminal, width=60, color_system=None)):
        time.sleep(seconds)
    return drawn.getvalue()


def test_in_a_pipe_what_takes_long_is_one_line_and_what_does_not_is_none(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    assert said(terminal=False, seconds=0.3) == "loading [all]\n"
    monkeypatch.setattr(module, "PATIENCE_S", 60.0)
    assert said(terminal=False, seconds=0) == ""


def test_on_a_terminal_there_is_a_clock():
    drawn = said(terminal=True, seconds=0.2)
    assert "loading [all]" in drawn
    assert "0:00:00" in drawn
