"""Work of many parts, done ahead of its use, a bounded number of parts at a time, by threads or otherwise."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import pyarrow as pa

P = TypeVar("P")
R = TypeVar("R")


class Spread(Protocol):
    """Does some work on every part, and yields what comes of it in the parts' order."""

    def __call__(self, work: Callable[[P], R], parts: Iterable[P]) -> Iterator[R]: ...


def in_threads(work: Callable[[P], R], parts: Iterable[P], threads: int | None = None) -> Iterator[R]:
    """Yield work(part) of every part in their order, with at most twice as many parts begun as there are threads.

    Args:
        work: may raise; its error is raised here in its part's turn, and no other part is begun then.
        parts: taken one by one as threads are free.
        threads: by default one per processor.

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
