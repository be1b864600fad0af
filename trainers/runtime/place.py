"""A folder or a bucket that several machines write to, with one way to write that no two can both succeed at.

`swap` writes a small object only if it is still the one that was read, or only if there is none. In a folder a lock
of its file system and a hard link see to that, in a bucket the store, by conditions on the write (If-Match,
If-None-Match), which pyarrow's file systems cannot ask for and obstore can.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from livetrain.configs.errors import BadInput, short, without_credentials
from livetrain.trainers.runtime import manifest, reach

T = TypeVar("T")

BUCKETS = ("s3", "gs", "abfs", "abfss")
_PART = 1 << 23  # bytes read at a time
_TRIES = 3  # of obstore's own, after a part of a large file has failed; the others are those of `reach`
_LOCK = ".lock"
DRAFTS = ".drafts"  # what a swap has not put in its place yet, or never will, in a folder


class Place(Protocol):
    """A folder of version folders and small objects, all named by their path below it. What fails is an OSError."""

    def shown(self, name: str = "") -> str:
        """Return the whole name of something here, for messages."""

    def read(self, name: str) -> tuple[bytes, Any] | None:
        """Return a small object and the tag with which `swap` replaces it, or None where there is none."""

    def swap(self, name: str, tag: Any, content: bytes) -> bool:
        """Write a small object; do nothing and return False where it is not as `read` has found it.

        Args:
            name: no other object of this name is ever written otherwise.
            tag: of the object that is replaced; None where there must be none.
            content: what no other writer writes, so that one that was written and not confirmed is known again.
        """

    def path(self, name: str) -> Path | None:
        """Return where a file can be read as it lies, or None where it has to be copied first."""

    def make(self, folder: str) -> None:
        """Make a new folder, which must not exist."""

    def put(self, source: Path, name: str) -> None:
        """Copy a file to where there is none."""

    def sync(self, folder: str) -> None:
        """Wait until a folder's files will be there after a loss of power."""

    def parts(self, name: str) -> Iterator[bytes]:
        """Yield a file's content."""

    def listed(self, folder: str = "") -> dict[str, float | None]:
        """Return what lies in a folder: when a file was written (s, by the place's own clock), or None of a folder."""

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all that it holds; it may be gone already."""


def open_place(where: str, what: str = "models are published") -> Place:
    """Return the place that a path or a URI names.

    Args:
        where: folder or URI.
        what: happens there, for messages.

    Raises:
        BadInput: the URI is none of a folder or a bucket, or writes there cannot be conditional.
    """
    scheme = urlsplit(where).scheme if "://" in where else "file"
    if scheme in BUCKETS:
        return Bucket(where)
    if scheme != "file":
        raise BadInput(
            f"{without_credentials(where)}: {what} in a folder or in a bucket ({', '.join(BUCKETS)}), where two "
            f"writers cannot overwrite one another; {scheme} cannot rule that out, so choose another place"
        )
    return Folder(Path(reach.from_uri(where)[1]))


def check_conditions(place: Place, name: str) -> None:
    """Raise BadInput where a small object can be written over though it is not as it was read.

    Args:
        place: to be checked.
        name: of an object that `swap` has written, and nobody else writes.
    """
    found = place.read(name)
    assert found is not None
    content, tag = found
    place.swap(name, tag, content + b"again\n")
    if place.swap(name, tag, content) or place.swap(name, None, content):
        raise BadInput(
            f"{place.shown()}: this storage ignores conditions on a write (If-Match, If-None-Match), so two writers "
            "could overwrite one another; choose another place"
        )


class Folder:
    """A place on this machine's disk, or on a shared file system whose locks (flock) reach all its machines."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def shown(self, name: str = "") -> str:
        return str(self._root / name)

    def read(self, name: str) -> tuple[bytes, Any] | None:
        content = _content(self._root / name)
        return None if content is None else (content, content)

    def swap(self, name: str, tag: Any, content: bytes) -> bool:
        path = self._root / name
        draft = self._root / DRAFTS / uuid.uuid4().hex
        for folder in (path.parent, draft.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if tag is None:
                os.link(draft, path)
            else:
                with (self._root / _LOCK).open("ab") as lock:  # released with the file, also by a kill
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if _content(path) != tag:
                        return False
                    draft.replace(path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        self._sync_up(path.parent)
        return True

    def path(self, name: str) -> Path | None:
        return self._root / name

    def make(self, folder: str) -> None:
        (self._root / folder).mkdir(parents=True)

    def put(self, source: Path, name: str) -> None:
        with source.open("rb") as original, (self._root / name).open("xb") as copy:
            shutil.copyfileobj(original, copy, _PART)
            copy.flush()
            os.fsync(copy.fileno())

    def sync(self, folder: str) -> None:
        self._sync_up(self._root / folder)

    def _sync_up(self, folder: Path) -> None:
        """Sync a folder and those that it lies in, up to the one that the place itself lies in."""
        for path in (folder, *folder.parents):
            if path == self._root.parent:
                with contextlib.suppress(PermissionError):  # it is others', so the place was there before
                    manifest.sync(path)
                return
            manifest.sync(path)

    def parts(self, name: str) -> Iterator[bytes]:
        with (self._root / name).open("rb") as file:
            yield from iter(lambda: file.read(_PART), b"")

    def listed(self, folder: str = "") -> dict[str, float | None]:
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root / folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # deleted by another publisher meanwhile
                    found[entry.name] = None if entry.is_dir() else entry.stat().st_mtime
        return found

    def remove(self, name: str) -> None:
        path = self._root / name
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        shutil.rmtree(path, ignore_errors=True)  # another publisher may be deleting it too
        if path.exists():
            raise OSError(f"{path} cannot be deleted")


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


class Bucket:
    """A place in an object store whose writes can be conditional."""

    def __init__(self, uri: str) -> None:
        """Open a place by its URI.

        Raises:
            BadInput: obstore is not installed, or it cannot open the URI.
        """
        try:
            import obstore
            from obstore import exceptions
            from obstore.store import from_url
        except ImportError as error:
            raise BadInput(
                f"{without_credentials(uri)}: writing to a bucket needs obstore; pip install 'livetrain[publish]'"
            ) from error
        self._name = without_credentials(uri.split("?")[0]).rstrip("/")
        self._obstore, self._failed = obstore, exceptions.BaseError
        self._differs = (exceptions.AlreadyExistsError, exceptions.PreconditionError)
        try:
            self._store = from_url(self._name, **_options(uri), retry_config={"max_retries": _TRIES})
        except exceptions.BaseError as error:
            raise BadInput(f"{self._name} cannot be opened ({short(error)}); correct the URI") from error

    def _asked(self, name: str, work: Callable[[], T]) -> T:
        """Do `work`, again where it fails and that may pass; what lasts is an OSError whose first line is short."""

        def once() -> T:
            try:
                return work()
            except self._failed as error:
                raise OSError(short(error)) from error

        return reach.patiently(once, self.shown(name))

    def shown(self, name: str = "") -> str:
        return f"{self._name}/{name}".rstrip("/")

    def read(self, name: str) -> tuple[bytes, Any] | None:
        def read() -> tuple[bytes, Any]:
            found = self._obstore.get(self._store, name)
            tag = {key: found.meta[key] for key in ("e_tag", "version") if found.meta[key] is not None}
            return bytes(found.bytes()), tag

        try:
            return self._asked(name, read)
        except FileNotFoundError:
            return None

    def swap(self, name: str, tag: Any, content: bytes) -> bool:
        def put() -> bool:
            try:
                self._obstore.put(self._store, name, content, mode="create" if tag is None else tag)
            except (*self._differs, FileNotFoundError):  # or somebody has deleted it
                return False
            return True

        if self._asked(name, put):
            return True
        found = self.read(name)
        return found is not None and found[0] == content  # it was written, and the answer lost on its way

    def path(self, name: str) -> Path | None:
        return None

    def make(self, folder: str) -> None:
        if self.listed(folder):
            raise FileExistsError(f"{self.shown(folder)} exists")

    def put(self, source: Path, name: str) -> None:
        self._asked(name, lambda: self._obstore.put(self._store, name, source))

    def sync(self, folder: str) -> None:
        """Do nothing: what a store has confirmed stays."""

    def parts(self, name: str) -> Iterator[bytes]:
        size = self._asked(name, lambda: self._obstore.head(self._store, name)["size"])
        for start in range(0, size, _PART):
            yield self._asked(name, partial(self._part, name, start, min(_PART, size - start)))

    def _part(self, name: str, start: int, length: int) -> bytes:
        found = bytes(self._obstore.get_range(self._store, name, start=start, length=length))
        if len(found) != length:
            raise ConnectionError(f"{len(found):,} of {length:,} bytes came")
        return found

    def listed(self, folder: str = "") -> dict[str, float | None]:
        found = self._asked(folder, lambda: self._obstore.list_with_delimiter(self._store, prefix=folder or None))
        folders = {path.rstrip("/").rpartition("/")[2]: None for path in found["common_prefixes"]}
        return folders | {o["path"].rpartition("/")[2]: o["last_modified"].timestamp() for o in found["objects"]}

    def remove(self, name: str) -> None:
        def remove() -> None:
            below = [each["path"] for each in self._obstore.list(self._store, prefix=name).collect()]
            with contextlib.suppress(FileNotFoundError):
                self._obstore.delete(self._store, below or name)

        self._asked(name, remove)


def _options(uri: str) -> dict[str, Any]:
    """Return what a bucket's URI asks of obstore: the user and the options that pyarrow takes in data.path too."""
    parts = urlsplit(uri)
    asked = dict(parse_qsl(parts.query))
    found: dict[str, Any] = {}
    if parts.scheme == "s3":
        scheme, endpoint = asked.pop("scheme", "https"), asked.pop("endpoint_override", None)
        if endpoint is not None:
            found["endpoint"] = endpoint if "://" in endpoint else f"{scheme}://{endpoint}"
            found["client_options"] = {"allow_http": found["endpoint"].startswith("http://")}
        user = {
            "access_key_id": parts.username,
            "secret_access_key": parts.password,
            "region": asked.pop("region", None),
        }
        found |= {key: unquote(value) for key, value in user.items() if value}
    if asked:
        known = " (known: endpoint_override, region, scheme)" if parts.scheme == "s3" else ""
        raise BadInput(
            f"{without_credentials(uri)}: '{next(iter(asked))}' is no option of this URI{known}; leave it out"
        )
    return found
