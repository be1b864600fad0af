"""One command at a time: a lock that a process lets go of when it ends, however it ends."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from livetrain.configs.errors import BadInput, NotNow

PATIENCE_S = 20.0  # longest wait for a process that is on its way out


@contextlib.contextmanager
def alone(lock: Path, busy: str, patience: float | None = None) -> Iterator[None]:
    """Keep what a lock stands for to this process.

    A process that is dying is waited for. Storage that knows no locks is taken as it is.

    Args:
        lock: the file; its folder is made.
        busy: what is said where another process holds it.
        patience: seconds to wait, by default PATIENCE_S.

    Raises:
        NotNow: another process holds it.
        BadInput: the folder cannot be written to.
    """
    stop = time.monotonic() + (PATIENCE_S if patience is None else patience)
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            opened = open(lock, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise BadInput(f"{lock.parent}: cannot write here ({error.strerror}); choose another folder") from error
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.fstat(file.fileno()).st_nlink > 0  # or whoever had it has removed it
            except BlockingIOError:
                held = False
            except OSError as error:
                held = error.errno != errno.ESTALE
            if held:
                yield
                return
        if time.monotonic() > stop:
            raise NotNow(busy)
        time.sleep(0.2)
