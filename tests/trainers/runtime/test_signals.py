"""What a process does that is told to end, and that all ranks stop a run at one step and lose nothing."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.trainers.runtime import run_folder, runlog, signals
from livetrain.trainers.runtime.signals import Stopped
from livetrain.trainers.train import stopping
from livetrain.trainers.train.stopping import EVERY, Listener
from tests import samples

ROOT = Path(__file__).parents[3]


def process(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """A process with the signals taken over that runs `code`, and whose first line says that it may be told."""
    head = "import sys, time\nfrom pathlib import Path\n"
    head += "from livetrain.trainers.runtime import signals\nsignals.install()\n"
    tail = "sys.exit(signals.exit_code(0))\n"
    words = [sys.executable, "-c", head + textwrap.dedent(code) + tail, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env={**os.environ, **environment}, **pipes)


def told(one: subprocess.Popen, *numbers: int) -> tuple[int, list[str], str]:
    """Send signals, each once the process has written another line; return its exit code, other lines and errors."""
    lines = []
    for number in numbers:
        lines.append(one.stdout.readline().strip())
        one.send_signal(number)
    out, err = one.communicate(timeout=60)
    return one.returncode, [*lines, *out.splitlines()], err


TIDIES_UP = """
    signals._LEAVE_S = float(sys.argv[1])
    try:
        print("told", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("tidying up", flush=True)
        time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("numbers", "leave", "tidying", "code"),
    [
        ([signal.SIGINT], 60, 0, 130),
        ([signal.SIGTERM], 60, 0, 143),
        ([signal.SIGINT, signal.SIGINT], 60, 600, 130),  # the second ends what still goes on
        ([signal.SIGTERM, signal.SIGTERM], 60, 0.2, 143),  # some send it twice, and mean once
        ([signal.SIGTERM, signal.SIGINT], 60, 600, 143),
        ([signal.SIGINT, signal.SIGTERM], 0.1, 600, 143),
        ([signal.SIGTERM], 0.1, 600, 143),  # what hangs is ended
    ],
)
def test_a_command_ends_as_it_is_told(numbers, leave, tidying, code):
    ended, lines, err = told(process(TIDIES_UP, str(leave), str(tidying)), *numbers)
    assert (ended, lines, err) == (code, ["told", "tidying up"], "")


def test_the_interpreter_may_take_its_time_to_end():
    code = """
        class Slow:
            def __del__(self, sleep=time.sleep):
                sleep(1)

        kept = Slow()
        signals._LEAVE_S = 0.3
        try:
            print("told", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass
    """
    assert told(process(code), signal.SIGTERM) == (143, ["told"], "")


SWALLOWS = """
    class Slow:
        def __del__(self, sleep=time.sleep):
            print("swallows", flush=True)
            sleep(60)

    signals._LEAVE_S = 600
    try:
        one = Slow()
        del one
        time.sleep(60)
    except KeyboardInterrupt:
        print("tidying up", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_where_python_lets_nothing_be_raised_comes_again(number, code):
    """A finalizer, or a hook of a fork, prints what is raised in it and goes on."""
    assert told(process(SWALLOWS), number) == (code, ["swallows", "tidying up"], "")


def test_who_is_ended_at_once_takes_all_its_processes_along():
    code = """
        import subprocess
        script = "sleep 600 & echo $!; (sleep 600 & echo $!); wait"  # the second loses its parent
        started = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
        try:
            print(started.pid, *(started.stdout.readline().strip() for _ in range(2)), flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print("tidying up", flush=True)
            time.sleep(60)
    """
    ended, lines, err = told(process(code), signal.SIGINT, signal.SIGINT)
    assert (ended, err) == (130, "")
    assert len(lines[0].split()) == 3

    def lives(pid: str) -> bool:
        try:
            return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    deadline = time.monotonic() + 30  # a busy machine takes a moment to end what was killed
    while (left := list(filter(lives, lines[0].split()))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def test_a_training_that_listens_saves_first(tmp_path):
    code = """
        file = Path(sys.argv[1]) / signals.STOP
        file.write_text("left of a run that was killed")
        try:
            with signals.saving(file.parent):
                assert not file.exists()
                file.touch()
                print("listening", flush=True)
                while not file.read_bytes():
                    time.sleep(0.01)
                print("saved", flush=True)
        except signals.Stopped:
            print("stopped", not file.exists())
    """
    assert told(process(code, str(tmp_path)), signal.SIGTERM) == (143, ["listening", "saved", "stopped True"], "")


@pytest.mark.parametrize("listens", [True, False])
def test_a_training_that_does_not_save_in_time_is_interrupted(tmp_path, listens):
    code = """
        file = Path(sys.argv[1]) / signals.STOP
        try:
            with signals.saving(file.parent):
                if sys.argv[2] == "True":
                    file.touch()
                print("training", flush=True)
                time.sleep(600)
        except KeyboardInterrupt as error:
            print(type(error).__name__)
    """
    one = process(code, str(tmp_path), str(listens), LIVETRAIN_GRACE_S="0.3")
    assert told(one, signal.SIGTERM) == (143, ["training", "KeyboardInterrupt"], "")


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "1e300"])
def test_a_grace_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv(signals.GRACE, given)
    with pytest.raises(BadInput, match=f"^LIVETRAIN_GRACE_S: '{given}' is no number of seconds; "):
        signals.install()


def steps_until_told(run: Path, at: int) -> int:
    """Rank 0 is told at step `at`; return the step at which this rank learns of it."""
    from livetrain.trainers.runtime import ranks

    listener = Listener(run)
    for step in range(1, 100):
        if step == at and ranks.is_main():
            (run / signals.STOP).write_text("stop")
        if listener.told():
            return step
    raise AssertionError("never")


def test_all_ranks_stop_at_one_step(two_ranks, tmp_path):
    for at in (1, EVERY, EVERY + 1, 3 * EVERY - 1):
        run = tmp_path / str(at)
        run.mkdir()
        assert two_ranks.run(steps_until_told, run, at) == [-(-at // EVERY) * EVERY] * 2


def test_a_rank_that_is_alone_stops_at_once(tmp_path):
    assert steps_until_told(tmp_path, 7) == 7


def lines(run: Path) -> list[dict]:
    """What a run's log says of training and evaluations, without times."""
    times = ("time", "rows_per_s", "data_wait")
    return [
        {key: value for key, value in line.items() if key not in times and not key.startswith("ms.")}
        for line in runlog.read(run)
        if line["kind"] in ("train", "eval")
    ]


@pytest.mark.parametrize(
    ("asked", "step", "stops"),
    [
        pytest.param(1, 1, 1, marks=pytest.mark.slow),
        pytest.param(7, 7, 1, marks=pytest.mark.slow),
        (13, 11, 1),  # within the first evaluation, which follows step 11 and is made again
        pytest.param(13, 11, 2, marks=pytest.mark.slow),  # and stopped again
        pytest.param(66, 42, 1, marks=pytest.mark.slow),  # within the test split's, when all is trained
    ],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(small_run, tmp_path, monkeypatch, asked, step, stops):
    recipe, run = samples.recipe(small_run.parents[1] / "data"), tmp_path / "small"
    with monkeypatch.context() as patched:
        for left in range(stops):
            calls = iter(range(1, 1000))
            limit = asked if not left else 2
            patched.setattr(Listener, "_said", lambda self, calls=calls, limit=limit: next(calls) == limit)
            with pytest.raises(Stopped, match=f"^small was interrupted; .* from its checkpoint of step {step}$"):
                launch.train(recipe, tmp_path)
            assert run_folder.committed(run)[-1].name == f"step-{step:08d}"
            assert not (run / "result.json").exists()
            assert not (run / signals.STOP).exists()
    found = launch.train(recipe, tmp_path)
    assert lines(run) == lines(small_run)
    whole = json.loads((small_run / "result.json").read_text())
    assert {k: v for k, v in found.items() if k.startswith("test.")} == {
        k: v for k, v in whole.items() if k.startswith("test.")
    }


def test_the_word_is_looked_for_only_while_a_run_goes_on(small_run, monkeypatch):
    """`evaluate` beside a training of the same run that is told to stop is not told."""
    monkeypatch.setattr(stopping.Listener, "_said", lambda self: True)
    assert "test.click.auc" in launch.evaluate(small_run, "test", "best")


def test_an_interrupt_that_a_library_has_swallowed_is_heeded_afterwards():
    code = """
        import os, signal
        with signals.kept():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            except BaseException:
                pass
        print("went on", flush=True)
    """
    code, lines, _ = told(process(code))
    assert "went on" not in lines
    assert code == -signal.SIGINT  # which the command line would turn into 130
