"""Closed minutes, copied to a folder or a bucket, for whoever follows the stream on another machine.

What is copied is a function of what is there and what is here: who was killed anywhere goes on behind the newest minute
that is whole there. A lane's minutes are copied in their order, each manifest last and never over another one.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from livetrain.configs.errors import BadInput, NotNow, short
from livetrain.trainers.data.read.minutes import STREAM
from livetrain.trainers.runtime import manifest
from livetrain.trainers.runtime.place import open_place

_LOOK_S, _AGAIN_S = 0.5, 10.0  # between looks for closed minutes, and after a failure


class Copies:
    """Copies of some lanes' minutes. A context manager: while it lasts a thread copies what closes.

    Args:
        out: the stream's folder.
        lanes: numbers of those that are made in it.
        where: folder or URI, see `trainers.runtime.place`.
        tell: is told, in words, what fails.

    Raises:
        BadInput: nothing can be written there, or another stream's minutes lie there.
    """

    def __init__(self, out: Path, lanes: Sequence[int], where: str, tell: Callable[[str], None]) -> None:
        self._out, self._lanes, self._tell = out, lanes, tell
        self._place = open_place(where, "a stream's minutes are copied")
        own = self._place.path(STREAM)
        if own is not None and own.resolve() == (out / STREAM).resolve():
            raise BadInput(f"--copy: {out} is where the minutes are made; name another folder, or leave --copy out")
        self._after: dict[int, str] = {}  # lane -> the newest minute that is whole there
        self._described = False
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="copies", daemon=True)

    def __enter__(self) -> "Copies":
        self._describe()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left.set()
        if kind is None:
            self._thread.join()
            try:
                self.copy()
            except OSError as failed:
                raise NotNow(f"{self._place.shown()}: not all is copied ({short(failed)}); start it again") from None

    def _watch(self) -> None:
        pause, said = _LOOK_S, ""
        while not self._left.wait(pause):
            try:
                self.copy()
                pause, said = _LOOK_S, ""
            except (OSError, BadInput) as failed:
                pause = _AGAIN_S
                if short(failed) != said:
                    said = short(failed)
                    self._tell(f"ALARM: not copied ({said}); it is tried again, and minutes are closed meanwhile")

    def copy(self) -> None:
        """Copy what has closed and is not there.

        Raises:
            OSError: the place cannot be written.
            BadInput: another stream or another process writes there.
        """
        if not self._describe():
            return
        for lane in self._lanes:
            if lane not in self._after:
                self._after[lane] = self._newest(lane)
            for minute in self._closed(lane):
                self._minute(f"{minute}/lane={lane}")
                self._after[lane] = minute

    def _describe(self) -> bool:
        """Write stream.json where there is none; return whether there is one now."""
        path = self._out / STREAM
        if self._described or not path.exists():
            return self._described
        content = path.read_bytes()
        if not self._place.swap(STREAM, None, content):
            there = self._place.read(STREAM)
            if there is None or there[0] != content:
                raise BadInput(f"{self._place.shown(STREAM)} is of another stream; name a new folder with --copy")
        self._described = True
        return True

    def _newest(self, lane: int) -> str:
        for day in sorted((name for name in self._place.listed() if name.startswith("date=")), reverse=True):
            for moment in sorted(self._place.listed(day), reverse=True):
                if manifest.MANIFEST in self._place.listed(f"{day}/{moment}/lane={lane}"):
                    return f"{day}/{moment}"
        return ""

    def _closed(self, lane: int) -> Iterator[str]:
        """Yield the minutes that the lane has closed here and that are not there, in their order."""
        after = self._after[lane]
        for day in sorted(self._out.glob("date=*")):
            if day.name < after.partition("/")[0]:
                continue
            for moment in sorted(path.name for path in day.glob("time=*")):
                minute = f"{day.name}/{moment}"
                if minute > after and (self._out / minute / f"lane={lane}" / manifest.MANIFEST).exists():
                    yield minute

    def _minute(self, folder: str) -> None:
        content = (self._out / folder / manifest.MANIFEST).read_bytes()
        self._place.remove(folder)  # of one who was killed
        self._place.make(folder)
        for name in (manifest.parsed(content) or {"files": ()})["files"]:
            self._place.put(self._out / folder / name, f"{folder}/{name}")
        self._place.sync(folder)
        if not self._place.swap(f"{folder}/{manifest.MANIFEST}", None, content):
            raise BadInput(f"{self._place.shown(folder)}: another process copies this lane there; end one of them")
