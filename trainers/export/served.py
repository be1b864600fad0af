"""A published model as a server has it: its base, and the deltas since, each taken as a whole or not at all."""

import contextlib
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from livetrain.configs.errors import BadInput, may_pass, short
from livetrain.modules.serving import deltas
from livetrain.modules.tables import mapped
from livetrain.trainers.export import publish
from livetrain.trainers.runtime import manifest
from livetrain.trainers.runtime.place import Place, open_place

log = logging.getLogger("livetrain")


@dataclass
class _State:
    """A base, loaded, and the deltas that it has taken in."""

    models: dict[str, torch.jit.ScriptModule]
    signature: dict[str, Any]
    golden: dict[str, Any]
    pointer: dict[str, Any]
    number: int = 0
    sealed: str | None = None  # the xxh64 of the last delta's manifest


class Served:
    """The model that a pointer names, ready to score, and brought up to date by `refresh`. For any number of threads.

    Tables in files of their own are mapped copy-on-write: pages that a delta writes to become memory of this process,
    and in the end that may be all of them; a new base gives them back. While a delta is written to the tables nobody
    scores; it is read and checked before.

    Args:
        where: folder or URI of the published versions.
        files: of the export that are loaded: also ``user.pt`` and ``item.pt`` of a model with two towers.

    Attributes:
        number: of the last delta that was taken in; 0 of the base alone.
        pointer: what is served, as the pointer said.
        signature, golden: of the base.

    Raises:
        BadInput: nothing is published there, or its base is damaged, or a delta is that had to be read first.
    """

    def __init__(self, where: str, files: Sequence[str] = ("model.pt",)) -> None:
        self._place, self._files = open_place(where), tuple(files)
        self._gate = _Gate()
        self._refreshing = threading.Lock()
        pointer = publish.current(where)
        if pointer is None:
            raise BadInput(f"{self._place.shown()}: nothing is published here; publish a model first")
        self._where = where
        self._begin(pointer)

    @property
    def number(self) -> int:
        return self._state.number

    @property
    def pointer(self) -> dict[str, Any]:
        return self._state.pointer

    @property
    def signature(self) -> dict[str, Any]:
        return self._state.signature

    @property
    def golden(self) -> dict[str, Any]:
        return self._state.golden

    def score(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """Score rows, see `livetrain.modules.serving.scorer.Scorer.forward`."""
        with self.use() as models:
            return models["model.pt"](ids, lengths, dense)

    @contextlib.contextmanager
    def use(self) -> Iterator[dict[str, torch.jit.ScriptModule]]:
        """Lend the loaded files, by name: inside, all of them are and stay of one state."""
        with self._gate.shared():
            yield self._state.models

    def refresh(self) -> bool:
        """Take in what was published since; return whether anything was.

        A base or delta that is missing, damaged or another version's ends it: what was served before it is served on,
        and a new base is asked for where this process may write. A pointer with a smaller fence than the last one's is
        ignored.

        Raises:
            BadInput: the place cannot be read, or a delta cannot be taken in. What is served is whole.
        """
        with self._refreshing:
            pointer = publish.current(self._where)
            if pointer is None or pointer["fence"] < self.pointer["fence"]:
                return False
            before, listed = (self.pointer["folder"], self.number), pointer.get("deltas", [])
            seals = [None, *(each["xxh64"] for each in listed)]
            goes_on = self.number < len(seals) and seals[self.number] == self._state.sealed
            if pointer["folder"] != self.pointer["folder"] or not goes_on:
                self._begin(pointer)
            else:
                self._state.pointer = pointer
                self._follow(self._state, self._gate.alone)
            return (self.pointer["folder"], self.number) != before

    def take(self, folder: Path, content: dict[str, Any]) -> None:
        """Take in one delta that follows on what is served: all of it, or nothing.

        Args:
            folder: with its files, which are known to be whole.
            content: of its manifest.

        Raises:
            BadInput: it is of another version, or does not follow.
        """
        self._take(self._state, folder, content, self._gate.alone)

    def _follow(self, state: _State, alone: Callable[[], AbstractContextManager[None]]) -> None:
        """Take in the deltas that a state's pointer lists beyond those that it has."""
        for each in state.pointer.get("deltas", [])[state.number :]:
            try:
                with self._fetched(each["folder"], each["xxh64"], state.sealed) as (folder, content):
                    self._take(state, folder, content, alone)
            except BadInput as error:
                self._ask(state.pointer["folder"], error)
                raise
            state.sealed, state.number = each["xxh64"], each["number"]

    def _take(
        self, state: _State, folder: Path, content: dict[str, Any], alone: Callable[[], AbstractContextManager[None]]
    ) -> None:
        if (content.get("base"), content.get("number")) != (state.pointer["folder"], state.number + 1):
            raise BadInput(
                f"{folder}: this is delta {content.get('number')} of {content.get('base')}, and "
                f"{state.number + 1} of {state.pointer['folder']} is due; copy it again, or load the base"
            )
        try:
            delta = deltas.Delta(folder)
            changes = delta.changes({name: model.state_dict() for name, model in state.models.items()})
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise BadInput(f"{folder}: this delta cannot be taken in ({short(error)}); publish a new base") from error
        with alone():
            deltas.apply(changes)

    def _begin(self, pointer: dict[str, Any]) -> None:
        """Load the base that a pointer names, and let it be served with its deltas; else ask for another.

        Without them it may be older than what is served.
        """
        try:
            state = self._load(pointer)
        except BadInput as error:
            self._ask(pointer["folder"], error)
            raise
        self._follow(state, contextlib.nullcontext)
        with self._gate.alone():
            self._state = state

    def _load(self, pointer: dict[str, Any]) -> _State:
        with self._fetched(pointer["folder"], None, None) as (folder, content):
            there = [name for name in self._files if name in content["files"]]
            models = {name: torch.jit.load(str(folder / name)).eval() for name in there}
            signature = json.loads((folder / "signature.json").read_text(encoding="utf-8"))
            if "stored" in signature:
                tables = mapped.opened(folder, signature["stored"])
                for model in models.values():
                    model.attach(tables)
            golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        return _State(models, signature, golden, pointer)

    @contextlib.contextmanager
    def _fetched(self, folder: str, seal: str | None, before: str | None) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Lend a published folder's files on this machine, all checked, with their manifest's content."""
        place = self._place
        with publish.complaints(place, "read"):
            found = place.read(f"{folder}/{manifest.MANIFEST}")
        content = None if found is None else manifest.parsed(found[0])
        if found is None or content is None:
            raise BadInput(f"{place.shown(folder)} is not whole: its {manifest.MANIFEST} is missing or damaged")
        if seal is not None and manifest.digest_of([found[0]])["xxh64"] != seal:
            raise BadInput(f"{place.shown(folder)} is not what the pointer names: its {manifest.MANIFEST} is another")
        if content.get("before") != before:
            raise BadInput(f"{place.shown(folder)} does not follow on the delta before it; publish a new base")
        with contextlib.ExitStack() as stack:
            local = place.path(folder)
            if local is None:  # names of mapped files may go, once they are mapped
                local = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="livetrain-served-")))
                with publish.complaints(place, "read"):
                    for name in content["files"]:
                        _download(place, f"{folder}/{name}", local / name)
            if damaged := manifest.damage(local, content):
                raise BadInput(f"{damaged}; copy it again, or publish a new base")
            yield local, content

    def _ask(self, folder: str, why: BadInput) -> None:
        """Ask the publisher for a new base, where this process may write and the pointer still names what is wrong.

        A place that is away for a moment gives no reason to: it is read again the next time.
        """
        with contextlib.suppress(OSError, BadInput):
            now = publish.current(self._where)
            if not may_pass(why) and now is not None and now["folder"] == folder:
                self._place.swap(wanted(folder), None, f"{why}\n".encode())


def wanted(folder: str) -> str:
    """Return the name of the object in which a server says why it asks for a new base in the place of a version."""
    return f"{folder}/wanted.txt"


def _download(place: Place, name: str, path: Path) -> None:
    with path.open("xb") as file:
        for part in place.parts(name):
            file.write(part)


class _Gate:
    """Lets in any number of those who read, or one who writes; who wants to write comes before later readers."""

    def __init__(self) -> None:
        self._changed, self._readers, self._writers = threading.Condition(), 0, 0

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._writers)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be alone; one at a time calls it, see `Served.refresh`."""
        with self._changed:
            self._writers += 1
            self._changed.wait_for(lambda: not self._readers)
        try:
            yield
        finally:
            with self._changed:
                self._writers -= 1
                self._changed.notify_all()
