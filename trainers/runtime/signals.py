"""How a command ends when it is told to: Ctrl-C at once, SIGTERM (Kubernetes, `kill`, `ray job stop`) after saving.

Both raise KeyboardInterrupt in the main thread, the one exception that Ray's own waiting lets through. While a training
listens, SIGTERM first leaves a word in the run's folder, which `trainers.train.stopping` reads. A command that still
goes on after LIVETRAIN_GRACE_S is interrupted all the same, and one that does not end then is ended.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from livetrain.configs.errors import BadInput

INTERRUPTED, TERMINATED = 130, 143  # exit codes: 128 and the signal
STOP = ".stop"  # in a run's folder while a training listens; it says so once the training is to stop
AGAIN = ".again"  # there too; it says so once the training's workers are to save and start again, as others than they
GRACE = "LIVETRAIN_GRACE_S"
_GRACE_S, _LEAVE_S = 22.0, 7.0  # to save, then to tidy up: together less than the 30 s after which Kubernetes kills
_AGAIN_S = 0.01
_PR_SET_CHILD_SUBREAPER = 36  # of <linux/prctl.h>


class Stopped(KeyboardInterrupt):
    """A training was told to stop, and has saved what it had."""


class Again(Exception):
    """Workers have saved what they had, and are to start again, as others than they are."""


class _Orders:
    """What this process was told, and the file by which it tells a training."""

    def __init__(self) -> None:
        self.installed = self.interrupted = self.terminated = self.leaving = self.lost = False
        self.file: Path | None = None
        self.grace = _GRACE_S
        self.process = os.getpid()

    def install(self) -> None:
        self.installed = True
        # What loses its parent becomes this process's own child, so that `_end_now` finds it.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGINT, self.on_interrupt)
        signal.signal(signal.SIGTERM, self.on_terminate)
        signal.signal(signal.SIGALRM, self.on_alarm)
        sys.unraisablehook = self.on_unraisable

    def on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.leaving:  # once more: what is being tidied up is left
            _end_now(exit_code(INTERRUPTED))
        self.interrupted = self.leaving = True
        raise KeyboardInterrupt

    def on_terminate(self, number: int, frame: FrameType | None) -> None:
        if self.terminated:  # some send it twice
            return
        self.terminated = True
        if self.leaving:
            signal.setitimer(signal.ITIMER_REAL, _LEAVE_S)
        elif self._tell():
            signal.setitimer(signal.ITIMER_REAL, self.grace, _LEAVE_S)
        else:
            self._leave()

    def on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self.lost:
            self.lost = False
            raise KeyboardInterrupt
        if self.leaving:
            _end_now(TERMINATED)
        self._leave()

    def on_unraisable(self, raised: "sys.UnraisableHookArgs") -> None:
        """Raise an interrupt once more, shortly, where a finalizer or a hook of a fork would print it and go on."""
        if not issubclass(raised.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(raised)
        elif os.getpid() == self.process:  # a child on its way to exec has a signal handler no longer
            self.lost = True
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, signal.getitimer(signal.ITIMER_REAL)[0])

    def _tell(self) -> bool:
        """Tell the training to stop; return whether there is one that listens."""
        try:
            if self.file is not None and self.file.exists():
                self.file.write_text("stop", encoding="utf-8")
                return True
        except OSError:
            pass
        return False

    def _leave(self) -> None:
        self.leaving = True
        signal.setitimer(signal.ITIMER_REAL, _LEAVE_S)
        raise KeyboardInterrupt


_orders = _Orders()


def _end_now(code: int) -> NoReturn:
    """End this process and all that it has started, which would notice by itself only after a while."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_bytes().rpartition(b")")[2].split()[1])
    ours = {os.getpid()}
    while found := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= found
    for pid in ours - {os.getpid()}:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os._exit(code)


def install() -> None:
    """Take over Ctrl-C and SIGTERM, for a command that has this process to itself.

    Raises:
        BadInput: LIVETRAIN_GRACE_S is no number of seconds.
    """
    given = os.environ.get(GRACE) or str(_GRACE_S)
    try:
        _orders.grace = float(given)
    except ValueError:
        _orders.grace = 0.0
    if not 0 < _orders.grace < 1e6:
        _orders.grace = _GRACE_S
        raise BadInput(f"{GRACE}: '{given}' is no number of seconds; give what a checkpoint takes, as in {GRACE}=120")
    _orders.install()


def terminated() -> bool:
    """Return whether SIGTERM has come."""
    return _orders.terminated


def exit_code(code: int) -> int:
    """Return the exit code of a command that would end with `code` but for what it was told; it has nothing left to do.

    No alarm may follow: the interpreter's end, long as it is where torch and Ray were, takes its handler away.
    """
    if _orders.installed:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if _orders.terminated:
        return TERMINATED
    return INTERRUPTED if _orders.interrupted else code


def ending() -> bool:
    """Return whether this process was told to end, by whichever signal."""
    return _orders.terminated or _orders.interrupted


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep the signals as they are over code that takes them for itself, as starting Ray does.

    Raises:
        KeyboardInterrupt: on leaving, where one came meanwhile and was swallowed.
    """
    try:
        yield
    finally:
        if _orders.installed and threading.current_thread() is threading.main_thread():
            _orders.install()
    heed()


def heed() -> None:
    """Raise KeyboardInterrupt where one was raised before and a library has swallowed it, as Ray's start may."""
    if _orders.leaving:
        raise KeyboardInterrupt


@contextlib.contextmanager
def saving(run: Path) -> Iterator[None]:
    """Have SIGTERM wait, while this lasts, for a training of `run` to save, once there is one that listens.

    Raises:
        Stopped: on leaving, where SIGTERM has come.
    """
    file = run / STOP
    _silence(run)
    _orders.file = file
    try:
        yield
    finally:
        _orders.file = None
        _silence(run)
    if _orders.terminated:
        raise Stopped


def _silence(run: Path) -> None:
    for name in (STOP, AGAIN):
        (run / name).unlink(missing_ok=True)


def ask(run: Path) -> bool:
    """Ask a training's workers to save and start again; return whether one listens that was not asked yet."""
    file = run / AGAIN
    try:
        if file.exists() and not file.read_bytes():
            file.write_text("again", encoding="utf-8")
            return True
    except OSError:
        pass
    return False


def asked(run: Path, name: str = AGAIN) -> bool:
    """Return whether a training has been told by a file of its run's folder, by default that it starts again."""
    try:
        return bool((run / name).read_bytes())
    except OSError:
        return False
