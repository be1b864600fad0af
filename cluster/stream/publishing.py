"""What a follower publishes: the newest checkpoint of its line, where the gate was open.

Whether it was stands in the checkpoint, as does up to when it has learned. So publishing is a function of the run's
folder and of what is published already: who was killed between a checkpoint and its publication does it the next time.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from livetrain.cluster.stream.words import current
from livetrain.configs.errors import BadInput, without_credentials
from livetrain.trainers.data.read import minutes as stream
from livetrain.trainers.export import deltas, publish
from livetrain.trainers.export.kept import Kept
from livetrain.trainers.runtime import run_folder, scratch

_LOOK_S = 0.5
_HELD = ".publish-"  # prefix of the place of a checkpoint that is being published
_AGAIN_S = 30.0  # after which it is tried again to publish what could not be


class Publisher:
    """Publishes a follower's models. A context manager: while it lasts a thread looks for new checkpoints.

    Args:
        run: the follower's folder.
        where: folder or URI of the published versions.
        keep: versions that stay.
        say: told what was done, and what could not be.
        beside: whether a thread looks; else the follower calls `look` itself, between two increments.
    """

    def __init__(self, run: Path, where: str, keep: int, say: Callable[[str], None], beside: bool) -> None:
        self._run, self._where, self._keep, self._say = run, where, keep, say
        self._kept = Kept(where)
        self._settled: Path | None = None  # the checkpoint that nothing is left to do for
        self._said = ""
        self._later = 0.0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="publish", daemon=True) if beside else None

    def __enter__(self) -> "Publisher":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left.set()
        if kind is None:
            if self._thread is not None:
                self._thread.join()
            self._later = 0.0
            self.look()

    def _watch(self) -> None:
        while not self._left.wait(_LOOK_S):
            self.look()

    def look(self) -> None:
        """Publish what is newest, if it is to be; what fails is said, and tried again later."""
        if time.monotonic() < self._later:
            return
        found = None
        try:
            found = self._newest()
            if found is not None and found != self._settled:
                self._publish(found.parents[1], found)
                self._settled = found
        except Exception as error:  # whatever it is: the training goes on, and servers have what they had
            gone = found is not None and isinstance(error, run_folder.Damaged | FileNotFoundError)
            if gone and self._newest() != found:  # the training beside has written newer ones, and deleted this
                return
            self._later = time.monotonic() + _AGAIN_S
            self._once(f"ALARM: not published ({error}); it is tried again, and learning goes on")

    def _newest(self) -> Path | None:
        """Return the newest checkpoint of the line that is published."""
        line = current(self._run)
        found = [] if line is None else run_folder.committed(self._run / line)
        return found[-1] if found else None

    def _publish(self, line: Path, checkpoint: Path) -> None:
        content = run_folder.content(checkpoint)
        position = content["position"]
        version = version_of(position["taken"])
        pointer = publish.current(self._where)
        if not position["open"]:
            return self._once(f"not published: {version}, as its figures raised an alarm")
        if pointer is not None:
            before = deltas.newest(pointer)
            if before["version"] > version or (before["version"] == version and before.get("line") == line.name):
                return None
            if any(each.get("rejected") and each.get("line") == line.name for each in pointer["versions"]):
                return self._once(
                    f"not published: `livetrain rollback` took back a model of {line.name}; the next night's line is"
                )
        started = time.time()
        select = run_folder.recipe_in(checkpoint).select()
        about: dict[str, Any] = {
            "line": line.name,
            "step": content["step"],
            "metric": f"stream.{select}",
            "value": position["figures"].get(select),
        }
        with _held(line, checkpoint) as held:
            pointer = deltas.publish_next(
                line, self._where, version, self._keep, held, kept=self._kept, say=self._say, **about
            )
        last, now, self._said = deltas.newest(pointer), time.time(), ""
        what = f"as delta {last['number']}, {last['rows']:,} rows" if "number" in last else "as a base"
        self._say(
            f"published {version} {what}, fence {pointer['fence']}, in {now - started:.1f} s, "
            f"{now - position['taken']:,.0f} s after its last event, in {without_credentials(self._where)}"
        )
        return None

    def _once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)


@contextlib.contextmanager
def _held(line: Path, checkpoint: Path) -> Iterator[Path]:
    """Lend a checkpoint that stays: the training beside keeps its newest ones, and a large base takes longer to write.

    Raises:
        FileNotFoundError: it is gone already.
    """
    scratch.sweep(line, _HELD)
    with scratch.place(line, _HELD) as place:
        held = place / checkpoint.name
        held.mkdir()
        for file in checkpoint.iterdir():
            os.link(file, held / file.name)
        yield held


def version_of(taken: int) -> str:
    """Return the name of what has learned up to a time: it sorts as times do, and behind the night of the day before.

    Example:
        >>> version_of(1_796_040_600)
        '2026-11-30T12-10-00Z'
    """
    return stream.name_of(taken).replace(":", "-")


def check(where: str) -> None:
    """Raise BadInput where nothing can be published, before work starts.

    Raises:
        BadInput: the place cannot be read, or a later version than today's is published there.
    """
    before = publish.current(where)
    if before is not None and deltas.newest(before)["version"] > version_of(int(time.time()) + 86_400):
        raise BadInput(
            f"--publish: {without_credentials(where)} holds version {before['version']}, later than any of the stream; "
            "choose another place"
        )
