"""How much memory a piece of work takes: the resident pages that no file could give back."""

import os
import threading
import time
from types import TracebackType


class Anonymous:
    """Watches this process's anonymous resident memory (RssAnon) until it is left. A context manager.

    Pages of mapped files do not count, whether they were written or not: the system drops them when it wants them.

    Attributes:
        most: bytes beyond what the process held before; looked at every millisecond.
    """

    def __enter__(self) -> "Anonymous":
        self._done, self._before, self.most = threading.Event(), resident(os.getpid()), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._look()  # for a watcher that a busy machine has not let run
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            self._look()
            time.sleep(0.001)

    def _look(self) -> None:
        self.most = max(self.most, resident(os.getpid()) - self._before)


def resident(process: int) -> int:
    """Return the anonymous resident bytes of a process."""
    with open(f"/proc/{process}/status", encoding="utf-8") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
