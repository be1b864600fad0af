"""The contract of a fitted model that finds items: a table from keys to items with scores.

What such a model has learned is an inverted table: of each key a list of items with a score each. A request has keys
with weights, and what an item is worth to it is a sum over its keys:

    score(request, item) = sum_k weight_k(request) * table[k, item]

A table may say of its keys how much a request's later keys still count, so that smaller slices come before larger ones.
Kinds differ by how the table is fitted and by which keys a request has: of item CF and EASE the items of the user's
history, of popular items the slice that the request is of, of tags those that the user likes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from torch import nn

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.registry import MODELS
from livetrain.configs.schema import FittedConfig, Recipe
from livetrain.modules.fitted import FittedModel, State

NO_ID = np.iinfo(np.int64).min  # in the place of an id that a column lacks


class Lists(NamedTuple):
    """A feature's ids in n rows, one row after the other."""

    values: np.ndarray  # (N,) int64; strings are hashed, as everywhere
    lengths: np.ndarray  # (n,) int64, N = their sum; 0 or 1 of an id feature

    @property
    def rows(self) -> np.ndarray:
        """(N,) the row of each value."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


class Rows(NamedTuple):
    """Some rows of the training split, as they follow one another in its files.

    Files come in the order of their names, so partitions ``date=...`` come in time order.
    """

    first: int  # number of the first row within the split
    label: np.ndarray  # (n,) bool: the task's label is 1
    ids: dict[str, Lists]  # of the key, and of each feature in `Fitted.features`
    columns: dict[str, np.ndarray]  # (n,) of each of the config's `also_reads`: int64 ids, or float64 (times: seconds)
    day: int | None = None  # of the partition that they are of, in days from 1970-01-01; None without data.days


class Table(NamedTuple):
    """An inverted table of K keys and E entries; see `table`."""

    keys: np.ndarray  # (K,) int64, rising
    offsets: np.ndarray  # (K + 1,) int64: entries [offsets[k], offsets[k + 1]) are those of key k
    items: np.ndarray  # (N,) int64, rising: all items
    places: np.ndarray  # (E,) int32: the place of each entry's item in `items`, rising within a key
    scores: np.ndarray  # (E,) float32
    rest: np.ndarray  # (K,) float32: what a row's later keys still count beside this one; (0,) where all count in full


class Fitted(FittedModel):
    """A kind of model that is fitted. A subclass is registered by `register_fitted`.

    Args:
        config: the recipe's section `model`.
        recipe: the run.

    Attributes:
        recipe: the run.
        key: the item's feature.
        features: those that `fit` and `request` read besides the key; a subclass sets them.
        incremental: whether a fit may go on from what an earlier one has learned, which `fit` then gets as `before`; a
            subclass may set it.
        notes: what the last fit has to say of its rows; the run's log tells it.

    Raises:
        BadInput: the config names a feature that is not there, or is of another type.
    """

    def __init__(self, config: FittedConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        self.features = list[str]()
        self.key = self.feature("key", config.key, "id")

    def feature(self, key: str, name: str, form: str) -> str:
        """Return a feature's name, once it is known to be one of ids of a form, "id" or "sequence".

        Raises:
            BadInput: it is not, or tells the wanted item; the message names ``model.<key>``.
        """
        known = {n: f for n, f in self.recipe.features.items() if f.carrier == "ids" and f.form == form}
        if name not in known:
            what = "id" if form == "id" else "sequence"
            raise BadInput(f"model.{key}: there is no {what} feature '{name}'{nearest(name, known)}")
        return name if key == "key" else self.not_of(key, name, [self.recipe.column(self.key)], "which item is wanted")

    def not_of(self, key: str, name: str, columns: list[str], told: str) -> str:
        """Return a feature's name, once it is known to read none of these columns, which tell the wanted item.

        Args:
            key: that names the feature, without ``model.``.
            name: the feature.
            columns: those of the wanted item.
            told: what a request would know of it, in words.

        Raises:
            BadInput: it reads one.
        """
        if shared := {*self.recipe.reads(name)} & {*columns}:
            raise BadInput(
                f"model.{key}: '{name}' reads the column '{min(shared)}', which tells {told}, and a request does not "
                "know that; name a feature of the request or of its user"
            )
        return name

    def fit(self, rows: Iterator[Rows], before: State | None = None) -> State:
        """Return what there is to learn of the training split's rows.

        Args:
            rows: all of them; what holds more of them than one part says so in its docstring.
            before: what an earlier fit has learned, of an `incremental` kind that begins with it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no fit")

    def table(self, state: State) -> Table:
        """Return the inverted table of what `fit` has learned."""
        raise NotImplementedError(f"{type(self).__name__} has no table")

    def request(self) -> nn.Module:
        """Return what makes keys of requests, such as `modules.recall.keys.HistoryKeys`.

        torch.jit.script must accept it. It is called with ids, lengths and dense by feature, as an exported file is,
        and returns (M,) int64 keys of B rows one row after the other, (B,) int64 how many each row has, and (M,)
        float32 weights.
        """
        raise NotImplementedError(f"{type(self).__name__} has no request")


def register_fitted(kind: str, config: type[FittedConfig]) -> Callable[[type[Fitted]], type[Fitted]]:
    """Make the decorated `Fitted` that of ``model.kind: kind``.

    Args:
        kind: the name in recipes.
        config: subclass of configs.schema.FittedConfig, whose fields are the keys of the recipe's section `model`.

    Raises:
        TypeError: the class is no `Fitted`.
    """

    return MODELS.entering(kind, config, Fitted, "livetrain.Fitted")


def table(
    keys: np.ndarray,
    items: np.ndarray,
    scores: np.ndarray,
    most: int | None = None,
    rest: tuple[np.ndarray, np.ndarray] | None = None,
) -> Table:
    """Return the inverted table of some entries.

    Args:
        keys: (E,) int64.
        items: (E,) int64; no key has an item twice.
        scores: (E,) finite.
        most: entries of each key that stay: those with the largest scores, of equal ones those with the least item.
        rest: all keys, rising, and of each what a row's later keys still count beside it.

    Example:
        >>> found = table(np.array([5, 5, 5, 3]), np.array([9, 7, 8, 7]), np.array([0.1, 0.4, 0.2, 1.0]), most=2)
        >>> found.keys, found.offsets, found.items, found.places
        (array([3, 5]), array([0, 1, 3]), array([7, 8]), array([0, 0, 1], dtype=int32))
    """
    keys, items, scores = (np.asarray(part) for part in (keys, items, scores))
    if most is not None and len(keys):
        order = np.lexsort((items, -scores, keys))
        begins = np.flatnonzero(np.diff(keys[order], prepend=keys[order[0]] - 1))
        ranks = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
        kept = order[ranks < most]
        keys, items, scores = keys[kept], items[kept], scores[kept]
    known, places = np.unique(items, return_inverse=True)
    order = np.lexsort((places, keys))
    own, counts = np.unique(keys, return_counts=True)
    return Table(
        own.astype(np.int64),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        known.astype(np.int64),
        places[order].astype(np.int32),
        scores[order].astype(np.float32),
        np.zeros(0, np.float32) if rest is None else rest[1][np.searchsorted(rest[0], own)].astype(np.float32),
    )
