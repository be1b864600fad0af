"""A folder of its own for each command that is at work, so that no two meet. It goes when its command ends.

    <parent>/<prefix><machine>-<process>-<random>.scratch/   .lock: held while the command, or a worker of it, lives

A kill leaves the folder behind; the next command of its kind there removes it, for the dead hold no lock. On storage
that knows no locks a folder is left over where its process was on this machine and is gone.
"""

import contextlib
import fcntl
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

_LOCK = ".lock"
_ENDING, _DEAD = ".scratch", ".dead"
_LABEL = re.compile(r"(?P<machine>.*)-(?P<process>\d+)-[0-9a-f]{8}")


def label() -> str:
    """Return a name that no other process, and nothing else of this one, has."""
    return f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"


def ended(label: str) -> bool:
    """Return whether the process of a label was on this machine and is gone."""
    found = _LABEL.fullmatch(label)
    if found is None or found["machine"] != platform.node():
        return False
    try:
        os.kill(int(found["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        pass
    return False


@contextlib.contextmanager
def place(parent: Path, prefix: str) -> Iterator[Path]:
    """Make an empty folder in `parent` for this command, and remove it at the end.

    Args:
        parent: a folder that is there, on storage that all workers of the command share.
        prefix: of the name; says whose it is.
    """
    while True:
        path = parent / f"{prefix}{label()}{_ENDING}"
        path.mkdir()
        lock = contextlib.ExitStack()
        with contextlib.suppress(FileNotFoundError):  # taken for left over before it was held
            lock.enter_context(held(path))
            break
    try:
        with lock:
            yield path
    finally:  # the lock is closed: on a shared storage a folder with an open file does not go
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep a place from being taken for left over: what its command and each of its workers do.

    Raises:
        FileNotFoundError: its command is gone, and so is the place.
    """
    with open(path / _LOCK, "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            gone = not (path / _LOCK).exists()  # given another name on its way out
        except BlockingIOError:
            gone = True
        except OSError:
            gone = False
        if gone:
            raise FileNotFoundError(f"{path}: the command that this belongs to is gone")
        yield


def places(parent: Path, prefix: str) -> list[Path]:
    """Return the places of a prefix, of the living and the dead."""
    return [
        path
        for path in sorted(parent.iterdir())
        if path.name.startswith(prefix) and path.name.endswith(_ENDING) and _LABEL.fullmatch(_label_of(path, prefix))
    ]


def _label_of(path: Path, prefix: str) -> str:
    return path.name.removeprefix(prefix).removesuffix(_ENDING)


def sweep(parent: Path, prefix: str, wanted: Callable[[Path], bool] = lambda path: True) -> list[Path]:
    """Remove the places that nobody holds any more; return those that somebody holds.

    Args:
        parent: as of `place`.
        prefix: as of `place`.
        wanted: whether a place that nobody holds goes.
    """
    living = []
    for path in places(parent, prefix):
        with contextlib.suppress(FileNotFoundError), open(path / _LOCK, "a", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                living.append(path)
                continue
            except OSError:
                if not ended(_label_of(path, prefix)):
                    continue
            if wanted(path):  # under another name before it is let go: nobody can hold it in between
                path.rename(path.with_name(path.name + _DEAD))
    for path in parent.iterdir():
        if path.name.startswith(prefix) and path.name.endswith(_ENDING + _DEAD):
            shutil.rmtree(path, ignore_errors=True)
    return living
