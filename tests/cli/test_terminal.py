import io

import pytest
from rich.console import Console

from livetrain.cli import terminal

SENTENCE = "features.user: [no] such column in data/train; mend it, or remove the feature"


@pytest.mark.parametrize("write", [terminal.say, terminal.note, terminal.complain])
@pytest.mark.parametrize("people", [True, False])
def test_sentences_break_between_words_on_a_terminal_and_nowhere_in_a_pipe(monkeypatch, write, people):
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=people, width=20, color_system=None)
    monkeypatch.setattr(terminal, "out", console)
    monkeypatch.setattr(terminal, "err", console)
    write(SENTENCE)
    lines = drawn.getvalue().splitlines()
    assert " ".join(" ".join(lines).split()) == SENTENCE
    assert (len(lines) > 1) == people
    assert max(map(len, lines)) <= 20 or not people
