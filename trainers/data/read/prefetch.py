"""Work done ahead of its use, in threads that never outlive it."""

import atexit
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_PATIENCE_S = 10.0  # longest wait for a thread that is inside a read when everything stops


class Loaders:
    """Threads that run jobs, first come, first served.

    Unlike a ThreadPoolExecutor's, the threads do not hold up the interpreter's exit until every job has run. As a
    context it ends with its threads, or after 10 s.
    """

    def __init__(self, threads: int) -> None:
        self.stopped = False
        self.threads = [threading.Thread(target=self._run, name="livetrain-load", daemon=True) for _ in range(threads)]
        self._jobs: SimpleQueue = SimpleQueue()
        for thread in self.threads:
            thread.start()

    def __enter__(self) -> "Loaders":
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped = True
        self.finish()
        for thread in self.threads:
            thread.join(_PATIENCE_S)

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future:
        """Queue a job; its future is cancelled if the threads are stopped first."""
        future: Future = Future()
        self._jobs.put((future, job, arguments))
        return future

    def finish(self) -> None:
        """Let the threads end after the queued jobs. No submit may follow."""
        for _ in self.threads:
            self._jobs.put(None)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job, arguments = item
            if self.stopped:
                future.cancel()
                continue
            try:
                future.set_result(job(*arguments))
            except BaseException as error:  # whoever waits for the result raises it
                future.set_exception(error)
            del item, future, job, arguments  # an idle thread keeps nothing alive


def run_ahead(make: Callable[[Loaders], Iterator[T]], depth: int, threads: int) -> Generator[T, None, None]:
    """Yield the items of an iterator that runs in a background thread, up to `depth` items ahead.

    What the iterator raises is raised here. Closing this generator, dropping it, or ending the interpreter stops the
    threads: after the jobs that are running, the queued ones are dropped.

    Args:
        make: builds the iterator; it may submit jobs to the given loaders and wait for them.
        depth: most items made and not yet taken.
        threads: threads of the loaders.
    """
    run = _Run(make, depth, threads)
    atexit.register(run.close)
    try:
        yield from run.items()
    finally:
        atexit.unregister(run.close)
        run.close()


class _Run:
    """The threads behind one `run_ahead`, which never refer to its generator.

    Garbage collection may close the generator in any thread and at any point, also inside a queue's own code, so only
    SimpleQueue is used: its put is reentrant. A token is the right to make one item.
    """

    def __init__(self, make: Callable[[Loaders], Iterator[T]], depth: int, threads: int) -> None:
        self._made: SimpleQueue = SimpleQueue()
        self._tokens: SimpleQueue = SimpleQueue()
        for _ in range(depth):
            self._tokens.put(None)
        self._loaders = Loaders(threads)
        maker = threading.Thread(target=self._fill, args=(make,), name="livetrain-batches", daemon=True)
        self._threads = [maker, *self._loaders.threads]
        maker.start()

    def items(self) -> Iterator[T]:
        while True:
            item, error, ended = self._made.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # or the traceback and its error would keep each other alive
            if ended:
                return
            self._tokens.put(None)
            yield item

    def close(self) -> None:
        self._loaders.stopped = True
        self._tokens.put(None)
        if threading.current_thread() in self._threads:
            return  # collected by one of its own threads, which cannot wait for itself
        for thread in self._threads:
            thread.join(_PATIENCE_S)

    def _fill(self, make: Callable[[Loaders], Iterator[T]]) -> None:
        try:
            items = make(self._loaders)
            while self._may_go_on() and (item := next(items, self)) is not self:
                self._made.put((item, None, False))
                del item
            self._made.put((None, None, True))
        except BaseException as error:  # the consumer raises it
            self._made.put((None, error, True))
        finally:
            self._loaders.finish()

    def _may_go_on(self) -> bool:
        self._tokens.get()
        return not self._loaders.stopped
