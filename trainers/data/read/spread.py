"""How data are looked at: work of many parts, a bounded number of them at a time, by threads or otherwise."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow as pa

P = TypeVar("P")
R = TypeVar("R")


class Spread(Protocol):
    """Does some work on every part, and yields what comes of it in the parts' order.

    Args:
        work: of one part; what it raises is raised here in its part's turn, and no other part is begun then.
        parts: taken one by one, as there is room.
        threads: how many of this process would do, by default one per processor.
    """

    def __call__(
        self, work: Callable[[P], R], parts: Iterable[P], threads: int | None = None
    ) -> Generator[R, None, None]: ...


def in_threads(work: Callable[[P], R], parts: Iterable[P], threads: int | None = None) -> Generator[R, None, None]:
    """Do what `Spread` says in threads of this process, with at most twice as many parts begun as there are threads.

    Example:
        >>> list(in_threads(lambda part: part**2, range(5), threads=2))
        [0, 1, 4, 9, 16]
    """
    threads = threads or pa.cpu_count()
    begun: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for part in parts:
                begun.append(pool.submit(work, part))
                if len(begun) >= 2 * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


Tell = Callable[[str, str, int, int], None]  # (of what is looked at, "rows" or "files", how many so far, of how many)


@dataclass(frozen=True)
class Looking:
    """How data are looked at of which nothing is kept.

    Args:
        spare: a local folder that keeps what is learned of partitions that cannot be written to.
        spread: does the work.
        told: how far it is.
        name: of what is looked at.
    """

    spare: Path | None = None
    spread: Spread = in_threads
    told: Tell = lambda name, unit, done, of: None
    name: str = ""

    def at(self, name: str) -> "Looking":
        """Return the same, of what has this name."""
        return replace(self, name=name)

    def tell(self, unit: str, done: int, of: int) -> None:
        """Tell how far it is."""
        self.told(self.name, unit, done, of)


HERE = Looking()  # by this process's threads, without a word
