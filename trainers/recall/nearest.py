"""Items by their vectors: exact, by HNSW or by IVF-PQ, all of them faiss's, and filtered while they are searched.

A filter leaves a share s of the N items. A search that looks at e items to find enough of all would then find s e, so
it looks at e / s: of a graph (HNSW) that many nodes are visited, of lists (IVF) that many times as many are read. Where
as many items are left as would be visited, they are all compared, each with the query.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from livetrain.configs.errors import BadInput

Kind = Literal["exact", "hnsw", "ivf_pq"]
Stored = Literal["none", "float16", "int8"]
LINKS = 32  # of a node of the graph to others, and twice as many on the lowest level
_BUILT_WITH = 128  # nodes that are kept while a node's neighbours are looked for, as the graph is built
_STORED = {"none": "Flat", "float16": "SQfp16", "int8": "SQ8"}
_POINTS = 39  # vectors of a cluster that faiss asks for to place its centre well
_CODES = 256  # centres of each part of a vector: a byte per part
_PART = 2  # numbers of a part
Mask = np.ndarray  # (N,) bool: which items may be found


def faiss() -> ModuleType:
    """Return the library.

    Raises:
        BadInput: it is not installed.
    """
    try:
        import faiss as library
    except ImportError:
        raise BadInput("an index of vectors needs faiss; install it: pip install 'livetrain[index]'") from None
    return library


class Nearest:
    """An index of vectors: which items have the largest inner product with a query.

    Args:
        index: faiss's.

    Attributes:
        kind: exact, hnsw or ivf_pq.
        effort: what a search looks at, of an approximate kind: nodes that are kept (efSearch), or lists (nprobe).

    Example:
        >>> import numpy as np
        >>> vectors = np.eye(4, dtype=np.float32)
        >>> index = Nearest.build(vectors, "exact", "none")
        >>> query = vectors[:1] + 0.5 * vectors[2:3]
        >>> places, scores = index.search(query, 2, None)
        >>> places.tolist(), scores.tolist()
        ([[0, 2]], [[1.0, 0.5]])
        >>> index.search(query, 1, np.array([False, True, True, False]))[0].tolist()
        [[2]]
    """

    def __init__(self, index: Any) -> None:
        self._index, library = index, faiss()
        self.kind: Kind = "exact"
        if isinstance(index, library.IndexHNSW):
            self.kind = "hnsw"
        elif isinstance(index, library.IndexIVF):
            self.kind = "ivf_pq"

    @classmethod
    def build(cls, vectors: np.ndarray, kind: Kind, stored: Stored) -> "Nearest":
        """Return an index of items.

        Args:
            vectors: (N, width) float32.
            kind: exact; hnsw, a graph; or ivf_pq, lists of items near a centre, a byte for two numbers of a vector.
            stored: how exact and hnsw keep vectors: float32, float16, or a byte per number.

        Raises:
            BadInput: faiss is not installed, or ivf_pq is asked for fewer items than it has codes.
        """
        library, (count, width) = faiss(), vectors.shape
        name = _STORED[stored]
        if kind == "hnsw":
            name = f"HNSW{LINKS},{name}"
        elif kind == "ivf_pq":
            least = _POINTS * _CODES
            if count < least:
                raise BadInput(
                    f"--kind ivf_pq: it takes {least:,} items to place its codes, and here are {count:,}; use hnsw"
                )
            parts = next(parts for parts in range(max(width // _PART, 1), 0, -1) if width % parts == 0)
            name = f"IVF{min(4 * int(count**0.5), count // _POINTS)},PQ{parts}x8np"  # np: no polysemous codes
        index = library.index_factory(width, name, library.METRIC_INNER_PRODUCT)
        if kind == "hnsw":
            index.hnsw.efConstruction = _BUILT_WITH
        index.train(vectors)
        index.add(vectors)
        return cls(index)

    @classmethod
    def read(cls, file: Path) -> "Nearest":
        """Return the index that a file holds."""
        return cls(faiss().read_index(str(file)))

    def write(self, file: Path) -> None:
        """Write the index as faiss's own file, which its C++ library reads too, `effort` included."""
        faiss().write_index(self._index, str(file))

    @property
    def count(self) -> int:
        """Items."""
        return self._index.ntotal

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self._index.d

    @property
    def effort(self) -> int:
        if self.kind == "exact":
            return self.count
        return self._index.hnsw.efSearch if self.kind == "hnsw" else self._index.nprobe

    @effort.setter
    def effort(self, value: int) -> None:
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = value
        elif self.kind == "ivf_pq":
            self._index.nprobe = value

    def efforts(self) -> Sequence[int]:
        """Return what `effort` may be, rising by twos; the last looks at everything."""
        most = self._index.nlist if self.kind == "ivf_pq" else self.count
        found = [1 << power for power in range(0 if self.kind == "ivf_pq" else 4, 63) if 1 << power < most]
        return [most] if self.kind == "exact" else [*found, most]

    def search(self, queries: np.ndarray, count: int, allowed: Mask | None) -> tuple[np.ndarray, np.ndarray]:
        """Find the items with the largest products, the largest first.

        Args:
            queries: (B, width) float32; or (B, K, width), of which an item's score is the largest of K products.
            count: items per query.
            allowed: which items may be found, by their places; all by default.

        Returns:
            (B, count) int64 places of items, -1 where there are no more, and (B, count) float32 products, there -inf.
        """
        if queries.ndim == 3:
            every = self.search(queries.reshape(-1, queries.shape[-1]), count, allowed)
            places, scores = (part.reshape(len(queries), -1) for part in every)
            return _merged(places, scores, count)
        asked = min(count, self.count)
        places, scores = np.full((len(queries), count), -1), np.full((len(queries), count), -np.inf, np.float32)
        index, parameters = self._filtered(asked, allowed)
        found, made = index.search(np.ascontiguousarray(queries, np.float32), asked, params=parameters)[::-1]
        places[:, :asked] = found
        scores[:, :asked] = np.where(found < 0, -np.inf, made)
        return places, scores

    def _filtered(self, count: int, allowed: Mask | None) -> tuple[Any, Any]:
        """Return what is searched for `count` items, and with which of faiss's parameters."""
        if allowed is None:
            return self._index, None
        library, left = faiss(), max(int(allowed.sum()), 1)
        selector = library.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        effort = -(-max(self.effort, count) * self.count // left)  # of an exact search it is not asked for
        if self.kind == "hnsw" and effort < left:
            return self._index, library.SearchParametersHNSW(sel=selector, efSearch=effort)
        if self.kind == "ivf_pq":
            lists = min(-(-self.effort * self.count // left), self._index.nlist)
            return self._index, library.SearchParametersIVF(sel=selector, nprobe=lists)
        index = self._index.storage if self.kind == "hnsw" else self._index
        return library.downcast_index(index), library.SearchParameters(sel=selector)


def _merged(places: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best `count` of each row's items, each once, with the best of its scores."""
    order = np.argsort(-scores, axis=1, kind="stable")
    places, scores = (np.take_along_axis(part, order, 1) for part in (places, scores))
    by_place = np.argsort(places, axis=1, kind="stable")  # of an item's entries the best comes first
    told = np.take_along_axis(places, by_place, 1)
    again = np.zeros(places.shape, bool)
    np.put_along_axis(again, by_place[:, 1:], told[:, 1:] == told[:, :-1], 1)
    scores = np.where(again | (places < 0), -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    places, scores = (np.take_along_axis(part, order, 1) for part in (places, scores))
    return np.where(np.isneginf(scores), -1, places), scores
