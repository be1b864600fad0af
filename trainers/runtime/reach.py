"""Storage that lies behind a network: what fails there and may pass is tried again, everywhere in one way.

Before the n-th try again one waits for a random time up to `_FIRST_S` 2^(n-1), at most `_LONGEST_S` (exponential
backoff with full jitter, https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that workers
that a store has turned away together do not come back together. After `DEADLINE_S` the last failure is raised. What is
wrong with a name or a right (`configs.errors.lasts`) is raised at once. The clients below have short tries of their
own; these here begin where theirs end.
"""

import io
import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from livetrain.configs.errors import lasts, without_credentials

T = TypeVar("T")
log = logging.getLogger("livetrain")

DEADLINE_S = 120.0  # from the first failure of one request to the last try; below the ranks' own patience (timeout_s)
_FIRST_S, _LONGEST_S = 0.1, 10.0
_QUIET_S = 5.0  # of failures that go by sooner nobody is told
_MORE = 8  # bytes that are asked for besides
_AHEAD = 8 << 20  # bytes of one request of a file that is read from its beginning to its end
_draws = random.Random()  # its own: the waits draw from nobody's seed


def patiently(work: Callable[[], T], what: str) -> T:
    """Return what `work` returns; try again while it fails with an OSError that may pass.

    Args:
        work: asks a storage for something. Done twice it must be as if done once.
        what: is asked for, for messages.

    Raises:
        OSError: the last failure, after `DEADLINE_S`, or one that lasts.
    """
    begun, tries, told = 0.0, 0, False
    while True:
        try:
            return work()
        except OSError as error:
            begun = begun or time.monotonic()
            waited, tries = time.monotonic() - begun, tries + 1
            if lasts(error) or waited >= DEADLINE_S:
                raise
            if not told and waited >= _QUIET_S:
                why = without_credentials(" ".join(str(error).split()))
                log.warning("%s: no answer (%s); trying again for up to %.0f s", what, why, DEADLINE_S)
                told = True
        wait = _draws.uniform(0, min(_LONGEST_S, _FIRST_S * 2 ** (tries - 1)))
        time.sleep(min(wait, DEADLINE_S - waited))


def from_uri(path: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a URI, or of a local path, and the path in it, as pyarrow does; see `patient`."""
    if "://" not in path:
        return fs.LocalFileSystem(), path
    filesystem, inner = patiently(lambda: fs.FileSystem.from_uri(path), without_credentials(path))
    return patient(filesystem), inner


def patient(filesystem: fs.FileSystem) -> fs.FileSystem:
    """Return a filesystem whose listings and reads are tried again, and whose files are never shorter than they are.

    One on this machine's disk is returned as it is.
    """
    local = isinstance(filesystem, fs.LocalFileSystem)
    return filesystem if local else fs.PyFileSystem(_Patient(filesystem))


def opened(filesystem: fs.FileSystem, path: str) -> "File":
    """Return a file of a filesystem, which `patient` may have returned."""
    return File(getattr(getattr(filesystem, "handler", None), "inner", filesystem), path)


class File(io.RawIOBase):
    """A file behind a network, read in whole pieces. Threads may share `at`."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._filesystem, self._path, self._place = filesystem, path, 0
        handle = patiently(self._opened, path)
        self._idle = [handle]  # one more for each thread that reads at the same time
        self.length = patiently(handle.size, path)

    def _opened(self) -> Any:
        return self._filesystem.open_input_file(self._path)

    def at(self, start: int, count: int) -> bytes | bytearray:
        """Return `count` bytes from `start` on.

        A store may answer with fewer and say so. pyarrow takes its answer for whole and leaves the rest of the memory
        as it was. So a few bytes more are asked for where there are some: those that were written to tell that all
        before them were. At the file's end its last byte has to.

        Raises:
            OSError: they do not come.
        """
        asked = min(count + _MORE, self.length - start)

        def read() -> bytearray:
            try:
                handle = self._idle.pop()
            except IndexError:
                handle = self._opened()
            mark = bytes(_draws.choices(range(128, 256), k=max(asked - count, 1)))  # no text, nor Parquet, ends so
            found = bytearray(asked)
            found[-len(mark) :] = mark
            handle.seek(start)
            came = handle.readinto(found)
            self._idle.append(handle)  # not one that has failed: some clients never read again by a lost connection
            if came < asked or found.endswith(mark):  # by chance, if ever, it is another mark the next time
                raise ConnectionError(f"not all of {count:,} bytes came")
            del found[count:]
            return found

        return patiently(read, self._path) if count else b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.length}[whence]
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.length - self._place)
        found = bytes(self.at(self._place, left if size is None or size < 0 else min(size, left)))
        self._place += len(found)
        return found

    def readinto(self, buffer: Any) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


class _Patient(fs.FileSystemHandler):
    """Does what another filesystem does; whatever only reads is tried again."""

    def __init__(self, inner: fs.FileSystem) -> None:
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Patient) and self.inner == other.inner

    def __ne__(self, other: object) -> bool:
        return not self == other

    def get_type_name(self) -> str:
        return self.inner.type_name.removeprefix("py::")

    def normalize_path(self, path: str) -> str:
        return self.inner.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return patiently(lambda: self.inner.get_file_info(paths), paths[0] if paths else "")

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return patiently(lambda: self.inner.get_file_info(selector), selector.base_dir)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(File(self.inner, path), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(io.BufferedReader(File(self.inner, path), _AHEAD), mode="r")

    # What changes something is asked once: a second try could meet the first one.

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return self.inner.open_output_stream(path, compression=None, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return self.inner.open_append_stream(path, compression=None, metadata=metadata)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.inner.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self.inner.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        self.inner.delete_dir_contents("/", accept_root_dir=True)

    def delete_file(self, path: str) -> None:
        self.inner.delete_file(path)

    def move(self, source: str, target: str) -> None:
        self.inner.move(source, target)

    def copy_file(self, source: str, target: str) -> None:
        self.inner.copy_file(source, target)
