"""Where a feature store lies: a folder of LMDB on this machine, or a Redis that others share.

Both are a map from text to bytes with one write that is atomic, `flip`. Everything else a store is made of is in
`layout.py`.
"""

import contextlib
import fcntl
import secrets
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from livetrain.configs.errors import BadInput, NotNow, short, without_credentials

_MAP = 1 << 40  # bytes of address space; the file grows as it is filled
_LEASE_S = 120  # for which a fill of Redis may be silent
_BATCH = 5_000  # keys of one round trip, or of one transaction


class Store(Protocol):
    """A map from text to bytes.

    Raises:
        NotNow: of every method: it does not answer.
    """

    def get(self, keys: list[str]) -> list[bytes | None]: ...
    def put(self, pairs: Iterable[tuple[str, bytes]]) -> None: ...
    def change(self, keys: list[str], made: Callable[[list[bytes | None]], list[bytes]]) -> None:
        """Replace the values of keys that nobody else changes by what is made of them."""

    def keys(self, prefix: str) -> Iterator[str]: ...
    def delete(self, keys: Iterable[str]) -> None: ...
    def flip(self, key: str, made: Callable[[bytes | None], bytes]) -> None:
        """Replace one value by what is made of it, as one step that others see whole or not at all."""

    def alone(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Keep other fills out; what it yields is called from time to time, and says that this one goes on.

        Raises:
            NotNow: another one is at work, or has taken over.
        """

    def close(self) -> None: ...


def open_store(place: str, create: bool = False) -> Store:
    """Open a store by its folder or its URL.

    Args:
        place: a folder, or redis://HOST:PORT/DB (rediss:// with TLS).
        create: make the folder where there is none.

    Raises:
        BadInput: there is none, or the package that it needs is not installed.
    """
    if place.startswith(("redis://", "rediss://", "unix://")):
        return _Redis(place)
    if "://" in place:
        raise BadInput(f"--store {without_credentials(place)}: a store is a folder, or redis://HOST:PORT/DB")
    folder = Path(place)
    if not create and not (folder / "data.mdb").exists():
        raise BadInput(f"--store {place}: there is no feature store; make one with `livetrain store fill`")
    return _Lmdb(folder)


class _Lmdb:
    """One file, mapped into memory, that many processes read while one writes."""

    def __init__(self, folder: Path):
        try:
            import lmdb
        except ImportError:
            raise BadInput(
                f"--store {folder}: needs LMDB, which is not installed; pip install 'livetrain[store]'"
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._error = folder, lmdb.Error
        try:
            # No read-ahead: a store that is larger than memory is read here and there. Where a machine loses its power
            # the newest transaction may be lost, and the store is whole.
            self._map = lmdb.open(str(folder), map_size=_MAP, readahead=False, metasync=False, max_readers=4096)
        except lmdb.Error as error:
            raise BadInput(f"--store {folder}: is no feature store ({short(error)}); name another folder") from None

    @contextlib.contextmanager
    def _step(self, write: bool = False) -> Iterator[Any]:
        try:
            if write:
                self._map.reader_check()  # for one that was killed all that is replaced is kept, and the file grows
            with self._map.begin(write=write) as step:
                yield step
        except self._error as error:  # the disk is full
            raise NotNow(f"{self._folder}: the feature store does not answer ({short(error)})") from None

    def get(self, keys: list[str]) -> list[bytes | None]:
        with self._step() as reading:
            return [reading.get(key.encode()) for key in keys]

    def put(self, pairs: Iterable[tuple[str, bytes]]) -> None:
        for batch in _batches(pairs):
            with self._step(write=True) as writing:
                for key, value in batch:
                    writing.put(key.encode(), value)

    def change(self, keys: list[str], made: Callable[[list[bytes | None]], list[bytes]]) -> None:
        for batch in _batches(keys):
            with self._step(write=True) as writing:
                for key, value in zip(batch, made([writing.get(key.encode()) for key in batch]), strict=True):
                    writing.put(key.encode(), value)

    def keys(self, prefix: str) -> Iterator[str]:
        with self._step() as reading:
            cursor, start = reading.cursor(), prefix.encode()
            there = cursor.set_range(start)
            while there and (key := bytes(cursor.key())).startswith(start):
                yield key.decode()
                there = cursor.next()

    def delete(self, keys: Iterable[str]) -> None:
        for batch in _batches(keys):
            with self._step(write=True) as writing:
                for key in batch:
                    writing.delete(key.encode())

    def flip(self, key: str, made: Callable[[bytes | None], bytes]) -> None:
        with self._step(write=True) as writing:
            writing.put(key.encode(), made(writing.get(key.encode())))

    @contextlib.contextmanager
    def alone(self) -> Iterator[Callable[[], None]]:
        with (self._folder / "fill.lock").open("w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NotNow(f"{self._folder}: another fill is at work; wait until it ends") from None
            yield lambda: None

    def close(self) -> None:
        self._map.close()


class _Redis:
    """A Redis, reached by one connection a thread."""

    def __init__(self, url: str):
        try:
            import redis
        except ImportError:
            raise BadInput("--store redis://: needs a client; pip install 'livetrain[store]'") from None
        self._name, self._error = without_credentials(url), redis.RedisError
        try:
            self._map = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2)
        except ValueError as error:
            raise BadInput(f"--store {self._name}: {short(error)}; write redis://HOST:PORT/DB") from None

    def _asked(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (self._error, OSError) as error:
            raise NotNow(f"{self._name}: the feature store does not answer ({short(error)})") from None

    def get(self, keys: list[str]) -> list[bytes | None]:
        return self._asked(lambda: self._map.mget(keys)) if keys else []

    def put(self, pairs: Iterable[tuple[str, bytes]]) -> None:
        for batch in _batches(pairs):
            self._asked(partial(self._map.mset, dict(batch)))

    def change(self, keys: list[str], made: Callable[[list[bytes | None]], list[bytes]]) -> None:
        for batch in _batches(keys):
            self.put(zip(batch, made(self.get(batch)), strict=True))

    def keys(self, prefix: str) -> Iterator[str]:
        found = self._map.scan_iter(match=prefix + "*", count=_BATCH)
        while (key := self._asked(lambda: next(found, None))) is not None:
            yield key.decode()

    def delete(self, keys: Iterable[str]) -> None:
        for batch in _batches(keys):
            self._asked(partial(self._map.unlink, *batch))

    def flip(self, key: str, made: Callable[[bytes | None], bytes]) -> None:
        # The client's `transaction` watches the key, and calls again where somebody has changed it meanwhile.
        def step(pipe: Any) -> None:
            value = made(pipe.get(key))
            pipe.multi()
            pipe.set(key, value)

        self._asked(lambda: self._map.transaction(step, key))

    @contextlib.contextmanager
    def alone(self) -> Iterator[Callable[[], None]]:
        mine = secrets.token_hex(8).encode()
        if not self._asked(lambda: self._map.set("fill", mine, nx=True, ex=_LEASE_S)):
            raise NotNow(f"{self._name}: another fill is at work; wait until it ends, {_LEASE_S} s if it was killed")

        def goes_on() -> None:
            if self._asked(lambda: self._map.get("fill")) != mine:
                raise NotNow(f"{self._name}: this fill was silent for {_LEASE_S} s, and another took over")
            self._asked(lambda: self._map.expire("fill", _LEASE_S))

        try:
            yield goes_on
        finally:
            with contextlib.suppress(NotNow):
                if self._asked(lambda: self._map.get("fill")) == mine:
                    self._asked(lambda: self._map.delete("fill"))

    def close(self) -> None:
        self._map.close()


def _batches(things: Iterable[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for thing in things:
        batch.append(thing)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
