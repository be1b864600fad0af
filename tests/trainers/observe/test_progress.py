import io
import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from livetrain.trainers.observe.progress import State, Tail, Watcher, _Bar


def line(kind="train", **content) -> str:
    return json.dumps({"kind": kind, **content}) + "\n"


@pytest.fixture
def log(tmp_path):
    return tmp_path / "metrics.jsonl"


def append(path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_file_that_comes_later_is_read_from_its_start(log):
    tail = Tail(log)
    assert tail.read() == []
    append(log, line(step=1, time=1))
    assert [row["step"] for row in tail.read()] == [1]
    assert tail.read() == []


def test_lines_of_an_earlier_attempt_are_passed_over(log):
    append(log, line(step=1, time=1))
    tail = Tail(log)
    append(log, line(step=2, time=2))
    assert [row["step"] for row in tail.read()] == [2]


def test_a_resumed_runs_trimmed_file_gives_only_what_is_new(log):
    kept, lost = line(step=1, time=1), line(step=2, time=2) + line(step=3, time=3)
    append(log, kept + lost)
    tail = Tail(log)
    draft = log.with_suffix(".draft")
    draft.write_text(kept)
    draft.replace(log)
    append(log, line(step=2, time=4) + line("note", text="x") + line(step=3, time=5) + line(step=4, time=6))
    assert [row.get("step") for row in tail.read()] == [2, None, 3, 4]


def test_what_is_no_json_object_is_passed_over(log):
    tail = Tail(log)
    append(log, '{"kind": "tra{"kind": "note"}\n[1]\n\n\xff\n' + line(step=1, time=1))
    assert [row["step"] for row in tail.read()] == [1]


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=12), texts=st.lists(st.text(max_size=8), max_size=8))
def test_however_the_writes_are_cut_every_line_comes_once_and_whole(cuts, texts, tmp_path_factory):
    log = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    tail = Tail(log)
    content = "".join(line("note", text=text, time=number) for number, text in enumerate(texts)).encode()
    seen, written = [], 0
    for cut in [*sorted(cuts), len(content)]:
        with log.open("ab") as file:
            file.write(content[written:cut])
        written = max(written, cut)
        seen += tail.read()
    assert [row["text"] for row in seen] == texts


def test_the_state_is_what_the_newest_lines_say():
    state = State()
    assert state.seconds_left is None
    train = {"kind": "train", "steps": 50, "rows_per_s": 12345.6}
    state.take({**train, "time": 100.0, "step": 10, "epoch": 0.2, "loss": 0.7})
    assert state.seconds_left is None
    state.take({"kind": "eval", "split": "valid", "step": 20, "label.auc": 0.75, "label.gauc": 0.5})
    state.take(
        {"kind": "train", "time": 120.0, "step": 20, "steps": 50, "epoch": 0.4, "loss": 0.6, "rows_per_s": 12345.6}
    )
    assert state.seconds_left == 60  # 2 s per step
    assert str(state) == "step 20/50  epoch 0.40  12,346 rows/s  loss 0.6000  valid AUC 0.7500  1:00 left"


def test_the_speed_is_the_mean_of_the_steps_of_this_attempt():
    state = State()
    state.take({"kind": "note", "text": "resumed at step 40", "step": 40})
    state.take({"kind": "train", "step": 50, "steps": 90, "rows_per_s": 1000.0})  # 10 steps of 100 rows: 1 s
    state.take({"kind": "train", "step": 80, "steps": 90, "rows_per_s": 500.0})  # 30 of them: 6 s
    state.take({"kind": "eval", "split": "valid", "step": 80, "label.auc": 0.75})
    assert state.rows_per_s == pytest.approx(4000 / 7)


def test_what_goes_on_besides_steps_is_said_with_how_far_it_is():
    state = State()
    assert str(state) == "starting  0:00"
    state.take({"kind": "note", "text": "checking the data"})
    assert str(state) == "checking the data  0:00"
    state.take({"kind": "stage", "text": "looking at train", "done": 512, "of": 2048, "unit": "rows"})
    assert str(state) == "looking at train  512/2,048 rows  0:00"
    state.take({"kind": "stage", "text": "scoring test", "done": 1200, "of": 4000})
    assert str(state) == "scoring test  1,200/4,000 batches  0:00"
    state.take({"kind": "train", "step": 8, "steps": 9, "epoch": 0.9})
    state.take({"kind": "stage", "text": "scoring valid", "step": 8})
    state.take({"kind": "note", "text": "valid: no row is in slice new"})
    assert str(state) == "step 8/9  epoch 0.90  scoring valid  0:00"
    state.take({"kind": "eval", "split": "valid", "step": 8, "label.auc": 0.75})
    assert str(state) == "step 8/9  epoch 0.90  valid AUC 0.7500"


def test_the_pace_starts_anew_after_a_restart():
    state = State()
    for time, step in [(0.0, 30), (10.0, 40), (500.0, 20), (510.0, 30)]:
        state.take({"kind": "train", "time": time, "step": step, "steps": 50})
    assert state.seconds_left == 20  # 1 s per step


def watch(run, terminal: bool) -> str:
    """Watch a run whose log another thread writes; return what was drawn."""
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=terminal, width=120, color_system=None)

    def write():
        run.mkdir()
        append(run / "metrics.jsonl", line("note", text="starting 2 workers [gloo]", time=1))
        for step in (10, 20):
            append(run / "metrics.jsonl", line(step=step, steps=20, epoch=step / 20, loss=0.5, time=1.0 + step))

    with Watcher(run, console):
        writer = threading.Thread(target=write)
        writer.start()
        writer.join()
    return drawn.getvalue()


def test_without_a_terminal_there_are_plain_lines_to_the_last(tmp_path):
    lines = watch(tmp_path / "run", terminal=False).splitlines()
    assert lines[0] == "starting 2 workers [gloo]"
    assert lines[-1] == "step 20/20  epoch 1.00  loss 0.5000"
    assert len(lines) <= 3


def test_on_a_terminal_there_is_a_bar_below_the_notes(tmp_path):
    drawn = watch(tmp_path / "run", terminal=True)
    above, below = drawn.split("starting 2 workers [gloo]")
    assert "step" not in above
    assert "━" in below
    assert "step 20/20" in below


def test_on_a_narrow_terminal_nothing_is_cut_off():
    drawn = io.StringIO()
    view = _Bar(Console(file=drawn, force_terminal=True, width=60, color_system=None))
    state = State()
    state.take(
        {"kind": "train", "time": 1.0, "step": 1, "steps": 9, "epoch": 0.1, "loss": 0.5, "rows_per_s": 1234567.8}
    )
    state.take({"kind": "eval", "split": "valid", "step": 1, "label.auc": 0.75})
    view.start()
    view.show(state)
    view.stop(state)
    shown = " ".join(drawn.getvalue().split())
    assert all(part in shown for part in ("1,234,568 rows/s", "loss 0.5000", "valid AUC 0.7500"))


def test_a_run_that_fails_before_its_first_step_leaves_no_bar(tmp_path):
    drawn = io.StringIO()
    with pytest.raises(RuntimeError), Watcher(tmp_path, Console(file=drawn)):
        raise RuntimeError
    assert drawn.getvalue().strip() == ""
    assert not any(thread.name == "progress" for thread in threading.enumerate())
