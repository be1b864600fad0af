"""Places of commands: one of its own for each, gone with it, and cleared away after a kill."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from livetrain.trainers.runtime import manifest, scratch

HOLD = """
import sys, time
from pathlib import Path
from livetrain.trainers.runtime import scratch
with scratch.place(Path(sys.argv[1]), ".train-") as place:
    if sys.argv[2] == "worker":  # holds another one's place, as a worker does
        with scratch.held(Path(sys.argv[3])):
            print("held", flush=True)
            time.sleep(600)
    print(place, flush=True)
    time.sleep(600)
"""


def start(folder: Path, *words: str) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-c", HOLD, str(folder), *(words or ("command",))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(scratch.__file__).parents[2])
    return process, process.stdout.readline().strip()


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_place_is_ones_own_and_goes_with_its_command(tmp_path):
    with scratch.place(tmp_path, ".train-") as one, scratch.place(tmp_path, ".train-") as other:
        assert one != other
        assert scratch.places(tmp_path, ".train-") == sorted([one, other])
        assert set(scratch.sweep(tmp_path, ".train-")) == {one, other}
        assert one.is_dir()
        assert other.is_dir()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    (dead, left), (living, kept) = start(tmp_path), start(tmp_path)
    kill(dead)
    try:
        assert Path(left).is_dir()
        assert [str(path) for path in scratch.sweep(tmp_path, ".train-")] == [kept]
        assert not Path(left).exists()
        assert Path(kept).is_dir()
    finally:
        kill(living)


def test_a_place_is_held_while_a_worker_of_its_command_lives(tmp_path):
    (tmp_path / "other").mkdir()
    command, place = start(tmp_path)
    worker, _ = start(tmp_path / "other", "worker", place)
    kill(command)
    assert [str(path) for path in scratch.sweep(tmp_path, ".train-")] == [place]
    kill(worker)
    assert scratch.sweep(tmp_path, ".train-") == []
    assert not Path(place).exists()


def test_one_may_be_kept_though_nobody_holds_it(tmp_path):
    dead, left = start(tmp_path)
    kill(dead)
    assert scratch.sweep(tmp_path, ".train-", lambda path: False) == []
    assert Path(left).is_dir()


def test_nothing_else_is_removed(tmp_path):
    for name in (".train-", ".train-data", ".train-host-12-abc.scratch", ".evaluate-h-1-00000000.scratch", "x.scratch"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.iterdir())
    assert scratch.sweep(tmp_path, ".train-") == []
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("machine", "process", "left"),
    [(platform.node(), os.getpid(), True), (platform.node(), 2**22 + 1, False), ("elsewhere", 2**22 + 1, True)],
)
def test_on_storage_without_locks_the_process_decides(tmp_path, monkeypatch, machine, process, left):
    """One on another machine may live."""

    def flock(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / f".train-{machine}-{process}-0123abcd.scratch"
    path.mkdir()
    assert scratch.sweep(tmp_path, ".train-") == []
    assert path.exists() == left
    with scratch.place(tmp_path, ".train-") as place:
        assert scratch.sweep(tmp_path, ".train-") == []
        assert place.is_dir()


def test_a_file_is_written_whole_and_drafts_of_the_dead_go(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    dead, living = (f".a.json.{platform.node()}-{process}-0123abcd.draft" for process in (2**22 + 1, os.getpid()))
    for name in (dead, living, ".a.json.elsewhere-1-0123abcd.draft", ".b.json.elsewhere-1-0123abcd.draft"):
        (tmp_path / name).touch()
    manifest.write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}'
    assert not (tmp_path / dead).exists()
    assert len(list(tmp_path.iterdir())) == 4

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        manifest.write_text(path, "half")
    assert path.read_text() == '{\n "a": 1\n}'
    assert len(list(tmp_path.iterdir())) == 4


def test_a_place_that_is_swept_can_be_held_by_nobody_any_more(tmp_path, monkeypatch):
    """Its owner may come between its making and its lock."""
    path = tmp_path / f".train-{scratch.label()}.scratch"
    path.mkdir()
    removed = []

    def late(folder: Path, **_) -> None:
        with pytest.raises(FileNotFoundError), scratch.held(path):
            pass
        removed.append(folder)

    monkeypatch.setattr(scratch.shutil, "rmtree", late)
    scratch.sweep(tmp_path, ".train-")
    assert len(removed) == 1
