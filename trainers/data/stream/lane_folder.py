"""A lane's folder: who works in it, and what its newest manifest says."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from livetrain.configs.errors import BadInput, NotNow, short
from livetrain.trainers.data.read.minutes import STREAM
from livetrain.trainers.runtime import manifest


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """Keep other processes out of a lane's folder, and clear its work."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "_lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotNow(f"{home}: another process makes this lane; wait until it ends") from None
        shutil.rmtree(home / "work", ignore_errors=True)
        (home / "work").mkdir()
        yield


def newest(out: Path, lane: int) -> tuple[int, dict[str, Any]] | None:
    """Return when the last minute that a lane has closed begins (s), and its manifest.

    Raises:
        BadInput: the manifest is damaged.
    """
    for day in sorted(out.glob("date=*"), reverse=True):
        for moment in sorted(day.glob("time=*"), reverse=True):
            folder = moment / f"lane={lane}"
            if not (folder / manifest.MANIFEST).exists():
                continue
            content = manifest.read(folder)
            if content is None or not content.keys() >= {"start", "end", "resume"}:
                raise BadInput(
                    f"{folder / manifest.MANIFEST}, the newest of the lane, is no manifest, and says where the stream "
                    "goes on; restore it from a copy, or begin in a new folder"
                )
            return content["start"], content
    return None


def described(out: Path) -> dict[str, Any] | None:
    """Return what a stream's folder is said to be of, or None of a new one.

    Raises:
        BadInput: it is damaged.
    """
    path = out / STREAM
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise BadInput(f"{path} cannot be read ({short(error)}); restore it") from None


def difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the first key in which two specs differ."""
    return next((key for key in sorted({*one, *other}) if one.get(key) != other.get(key)), None)
