"""What `livetrain index` has built, ready to be searched; items go off the air and come back while it is.

index.json     what it is: kind, key, items, recall against an exact search, latency, bytes, the model
keys.txt       the items, one per line: line n (from 0) is place n
index.faiss    of vectors: faiss's file
table.*.bin    of an inverted table: keys (int64), offsets (int64), places (int32), scores and rest
                   (float32), see modules.recall.fitted.Table
manifest.json  sizes and hashes, written last
"""

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from livetrain.configs.errors import BadInput
from livetrain.trainers.export import publish
from livetrain.trainers.recall.inverted import Request, SearchedTable
from livetrain.trainers.recall.nearest import Mask, Nearest
from livetrain.trainers.runtime import manifest

ABOUT, KEYS, VECTORS = "index.json", "keys.txt", "index.faiss"
Key = int | str


@dataclass(frozen=True)
class _Air:
    """Which keys are on the air: all but some, or only some."""

    keys: frozenset[Key] = frozenset()
    only: bool = False

    def changed(self, on: Iterable[Key], off: Iterable[Key]) -> "_Air":
        listed, other = (on, off) if self.only else (off, on)
        return _Air((self.keys | {*listed}) - {*other}, self.only)

    def mask(self, places: dict[Key, int]) -> Mask | None:
        """Return which places are on the air; None where all are."""
        if not self.only and not self.keys:
            return None
        mask = np.full(len(places), not self.only)
        mask[[places[key] for key in self.keys if key in places]] = self.only
        return mask


class _Version(NamedTuple):
    """One published index, and what a search needs of it; never changed, only replaced."""

    folder: Path
    fence: int
    about: dict[str, Any]
    keys: np.ndarray  # (N,) int64, or object of str
    places: dict[Key, int]
    searcher: "Nearest | SearchedTable"
    air: _Air
    mask: Mask | None


class Index:
    """An index of items, to be searched by any number of threads while items come and go.

    What `change`, `only` and `refresh` do is seen by every search that begins after they have returned, and each search
    sees all of one change or nothing of it. What is on the air is kept by keys, so it outlives a `refresh`.

    Memory: the index, and a table from keys to places.

    Args:
        where: folder of published indexes, or of one of them.

    Raises:
        BadInput: no index is there, or a file of it is damaged; or faiss is not installed, for one of vectors.

    Example:
        >>> index = Index("indexes/small")
        >>> len(index), index.about["kind"], index.about["recall"]
        (50, 'exact', 1.0)
        >>> user = np.ones((1, index.about["width"]), np.float32)
        >>> keys, scores = index.search(user, 3)
        >>> keys.shape, bool((scores[0, :-1] >= scores[0, 1:]).all())
        ((1, 3), True)
        >>> index.change(off=keys[0, :1])
        >>> bool(keys[0, 0] in index.search(user, 3)[0])
        False
    """

    def __init__(self, where: str | Path) -> None:
        self._where = Path(where)
        self._changing = threading.Lock()
        folder, fence = Path(where), -1
        if not (folder / ABOUT).exists():
            pointer = publish.current(str(folder))
            if pointer is None:
                raise BadInput(f"{folder}: no index is here; build one with `livetrain index RUN --out {folder}`")
            folder, fence = folder / pointer["folder"], pointer["fence"]
        self._now = _read(folder, fence, _Air())

    def __len__(self) -> int:
        """Return how many items there are, on the air or not."""
        return len(self._now.keys)

    @property
    def about(self) -> dict[str, Any]:
        """The content of index.json."""
        return self._now.about

    @property
    def keys(self) -> np.ndarray:
        """(N,) the items' keys, int64 or strings, by their places."""
        return self._now.keys

    @property
    def version(self) -> str:
        """The version's folder, such as ``2026-05-01.000007``."""
        return self._now.folder.name

    def search(self, query: "np.ndarray | Request", count: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the best items that are on the air.

        Args:
            query: what the model's user side answers. Of vectors (B, width), or (B, K, width) of K interests, of which
                an item's score is the largest; of an inverted table the requests' keys, see `Request`.
            count: items per query.

        Returns:
            (B, count) keys and (B, count) float32 scores, the best first. A score of -inf says that there is no
            further item; the key beside it means nothing.

        Raises:
            BadInput: the query is not of the index's kind or width.
        """
        now = self._now  # once: whatever changes meanwhile is not seen
        if isinstance(now.searcher, SearchedTable):
            if isinstance(query, np.ndarray):
                raise BadInput(f"{now.folder}: an inverted table is asked by keys, not by vectors")
            places, scores = now.searcher.search(query, count, now.mask)
        else:
            if not isinstance(query, np.ndarray) or query.ndim not in (2, 3) or query.shape[-1] != now.searcher.width:
                raise BadInput(f"{now.folder}: is asked by rows of {now.searcher.width} numbers")
            places, scores = now.searcher.search(query, count, now.mask)
        return now.keys[np.maximum(places, 0)], scores

    def change(self, on: Iterable[Key] = (), off: Iterable[Key] = ()) -> None:
        """Put items on the air, and take others off it, at once. Keys that the index lacks are kept for later ones.

        Raises:
            BadInput: a key is not of the type of the index's, or is in both; nothing has changed.
        """
        with self._changing:
            shown, hidden = (_keys(keys, name, self._now) for keys, name in ((on, "on"), (off, "off")))
            if both := {*shown}.intersection(hidden):
                raise BadInput(f"on, off: the item {min(both, key=str)!r} is in both; name it in one of them")
            self._put(self._now._replace(air=self._now.air.changed(shown, hidden)))

    def only(self, keys: Iterable[Key]) -> None:
        """Have these items on the air, and no others.

        Raises:
            BadInput: a key is not of the type of the index's; nothing has changed.
        """
        with self._changing:
            self._put(self._now._replace(air=_Air(frozenset(_keys(keys, "keys", self._now)), only=True)))

    def refresh(self) -> bool:
        """Take the version that is published now, if it has a larger fence than all that were taken.

        Returns:
            Whether there was one.

        Raises:
            BadInput: it is damaged, or its keys are of another type than those that are on the air or off it; the one
                before stays.
        """
        with self._changing:
            if self._now.fence < 0:
                return False
            pointer = publish.current(str(self._where))
            if pointer is None or pointer["fence"] <= self._now.fence:
                return False
            newer = _read(self._where / pointer["folder"], pointer["fence"], self._now.air)
            now, then = self._now.about["key"]["type"], newer.about["key"]["type"]
            if newer.air.keys and now != then:  # no key would be found again, and what is off the air would be served
                raise BadInput(
                    f"{newer.folder}: its items are {then} and what was put on the air or off it is {now}; open the "
                    "index anew"
                )
            self._now = newer
            return True

    def _put(self, version: _Version) -> None:
        self._now = version._replace(mask=version.air.mask(version.places))


def _read(folder: Path, fence: int, air: _Air) -> _Version:
    """Read a version, whose files must be as its manifest says."""
    files = manifest.read(folder)
    if files is None or (damaged := manifest.damage(folder, files)):
        raise BadInput(f"{damaged if files else f'{folder}: holds no whole index'}; build it again")
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    keys = read_keys(folder / KEYS, about["key"]["type"])
    inverted = about["kind"] == "inverted"
    searcher = SearchedTable.read(folder, np.arange(len(keys))) if inverted else Nearest.read(folder / VECTORS)
    places = {key: place for place, key in enumerate(keys.tolist())}
    return _Version(folder, fence, about, keys, places, searcher, air, air.mask(places))


def write_keys(file: Path, keys: np.ndarray) -> None:
    """Write the items' keys, a line each.

    Raises:
        BadInput: a key holds a line's end.
    """
    lines = list(map(str, keys.tolist()))
    if broken := [line for line in lines if "\n" in line or "\r" in line]:
        raise BadInput(f"the item {broken[0]!r} holds a line's end; give it another id")
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_keys(file: Path, kind: str) -> np.ndarray:
    """Return the items' keys: (N,) int64, or object of str where `kind` is string."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return np.array(lines, object if kind == "string" else np.int64)


def _keys(keys: Iterable[Any], name: str, of: _Version) -> list[Key]:
    """Return keys as the index has them; raise BadInput where one is of another type, which would never be found."""
    if isinstance(keys, str):
        raise BadInput(f"{name}: got the text {keys!r}, wanted a list of keys; put it in brackets")
    kind, column = of.about["key"]["type"], of.about["key"]["column"]
    wanted = str if kind == "string" else Integral
    found = keys.tolist() if isinstance(keys, np.ndarray) else list(keys)
    for key in found:
        if isinstance(key, bool) or not isinstance(key, wanted):
            raise BadInput(
                f"{name}: {key!r} is {type(key).__name__}, and the index's keys are {kind} ('{column}'); give "
                "them as keys.txt has them"
            )
    return [str(key) if kind == "string" else int(key) for key in found]
