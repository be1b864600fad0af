"""What brings candidates: runs with towers, fitted runs, and files of lists. All answer the same question."""

from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from livetrain.configs import blend_spec
from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.columns import is_list
from livetrain.trainers.data.read.files import read_footer
from livetrain.trainers.data.read.slices import Slices
from livetrain.trainers.export import prediction_files
from livetrain.trainers.export.prediction import Predictor
from livetrain.trainers.recall.origin import Origin, ids, key_of, origin, places_of, vectors

_CELLS = 1 << 25  # scores in memory at once
Items = np.ndarray  # (N,) int64 ids of the items that may be found, by their places


class Channel(Protocol):
    """What brings candidates.

    Attributes:
        asks: columns of requests that it reads.
        knows: columns of items that it reads.
        recipe: of the run that it is; None of files of lists.
    """

    asks: list[str]
    knows: list[str]
    recipe: Recipe | None

    def meet(self, items: pa.Table, known: Items) -> None:
        """Take the items that may be found from now on: a row each, with the columns of `knows`, and their ids."""

    def lists(self, requests: pa.Table, count: int) -> np.ndarray:
        """Return (n, count) int64 places of items, the best first; -1 where there are no more."""


def channel(name: str, spec: blend_spec.Channel, runs: Path, key: str) -> Channel:
    """Open the channel that a spec names.

    Args:
        name: its own.
        spec: which.
        runs: folder of run folders, where the runs of published models lie.
        key: column that tells the blend's items apart.

    Raises:
        BadInput: the run, model or file is not there, or finds no items, or items of another column.
    """
    try:
        if spec.candidates is not None:
            made: Channel = _Lists(spec.candidates, spec.column, spec.on or "")
        else:
            found = origin(spec.run or spec.published or "", runs)
            if (own := found.recipe.column(key_of(found.recipe))) != key:  # author 7 is not video 7
                raise BadInput(
                    f"the run '{found.recipe.name}' finds items by the column '{own}', and the blend's requests want "
                    f"'{key}'; name a run that finds those"
                )
            made = _Scores(found) if found.recipe.model.fitted else _Vectors(found)
    except BadInput as error:
        raise type(error)(f"channels.{name}: {error}") from error.__cause__
    return made if (when := condition(name, spec)) is None else _Sometimes(made, when)


def condition(name: str, spec: blend_spec.Channel) -> Slices | None:
    """Return the condition of a channel that only some requests ask.

    Raises:
        BadInput: it is no SQL expression on one row.
    """
    return None if spec.when is None else Slices({"when": spec.when}, f"channels.{name}")


class _Vectors:
    """The nearest items of each user, compared with all."""

    def __init__(self, origin: Origin) -> None:
        self.recipe: Recipe | None = origin.recipe
        self._users, self._items = (Predictor(origin.of(side)) for side in ("user", "item"))
        self.asks, self.knows = self._users.columns, self._items.columns
        self._known = torch.zeros(0, 0)

    def meet(self, items: pa.Table, known: Items) -> None:
        self._known = torch.tensor(vectors(self._items, items))

    def lists(self, requests: pa.Table, count: int) -> np.ndarray:
        users = torch.tensor(vectors(self._users, requests))
        interests = users.shape[1] if users.dim() == 3 else 1
        found = np.full((len(users), count), -1)
        most, step = min(count, len(self._known)), max(_CELLS // (len(self._known) * interests), 1)
        for start in range(0, len(users), step):
            scores = users[start : start + step] @ self._known.t()
            scores = scores.amax(1) if users.dim() == 3 else scores
            found[start : start + step, :most] = scores.topk(most, dim=1).indices.numpy()
        return found


class _Scores:
    """The items to which a fitted model's table gives the largest scores."""

    def __init__(self, origin: Origin) -> None:
        self.recipe: Recipe | None = origin.recipe
        self._requests = Predictor(origin.of("user"))
        self.asks, self.knows = self._requests.columns, list[str]()
        self._known = np.zeros(0, np.int64)

    def meet(self, items: pa.Table, known: Items) -> None:
        self._known = known

    def lists(self, requests: pa.Table, count: int) -> np.ndarray:
        found, start, most = np.full((len(requests), count), -1), 0, min(count, len(self._known))
        for scores in self._requests.scores_of(requests, "the requests", self._known, _CELLS):
            best, places = torch.from_numpy(scores).topk(most, dim=1)
            found[start : start + len(scores), :most] = np.where(best.numpy() > 0, places.numpy(), -1)
            start += len(scores)
        return found


class _Lists:
    """Lists that somebody else has made, in memory; a request without one gets nothing."""

    def __init__(self, path: str, column: str, on: str) -> None:
        self.asks, self.knows, self._on = [on], list[str](), on
        self.recipe: Recipe | None = None
        files = prediction_files.find(path, "candidates")
        tables = []
        for file in files.paths:
            there = read_footer(files.filesystem, file)[1]
            for name in (on, column):
                if name not in there.names:
                    raise BadInput(f"{files.named(file)}: has no column '{name}'{nearest(name, there.names)}")
            if not is_list(there.field(column).type):
                raise BadInput(f"{files.named(file)}: column '{column}' holds no lists; write a list of items per row")
            tables += list(files.batches(file, [on, column]))
        whole = pa.concat_tables(tables)
        keys = ids(whole.column(on))
        self._keys, first = np.unique(keys, return_index=True)  # of rows with one key the first counts
        lists = carry.whole(whole.column(column)).take(pa.array(first))
        self._offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy())])
        self._values = carry.whole_ids(lists.flatten()).fill_null(-1).to_numpy()
        self._places = self._values

    def meet(self, items: pa.Table, known: Items) -> None:
        self._places = places_of(self._values, known)

    def lists(self, requests: pa.Table, count: int) -> np.ndarray:
        asked = ids(requests.column(self._on))
        found = np.full((len(asked), count), -1)
        at = np.searchsorted(self._keys, asked).clip(max=max(len(self._keys) - 1, 0))
        for row in np.flatnonzero(self._keys[at] == asked) if len(self._keys) else ():
            own = self._places[self._offsets[at[row]] : self._offsets[at[row] + 1]]
            own = own[own >= 0][:count]
            found[row, : len(own)] = own
        return found


class _Sometimes:
    """A channel that only some requests ask."""

    def __init__(self, asked: Channel, when: Slices) -> None:
        self._asked, self._when = asked, when
        self.asks = list(dict.fromkeys([*asked.asks, *when.columns["when"]]))
        self.knows, self.meet, self.recipe = asked.knows, asked.meet, asked.recipe

    def lists(self, requests: pa.Table, count: int) -> np.ndarray:
        self._when.check(requests.schema, "the requests")
        found, there = np.full((len(requests), count), -1), np.flatnonzero(self._when.marks(requests))
        if len(there):
            found[there] = self._asked.lists(requests.take(pa.array(there)), count)
        return found


def unseen(found: np.ndarray, seen: np.ndarray, items: int, count: int) -> np.ndarray:
    """Return lists without the items that a request's user had, cut to `count`.

    Args:
        found: (n, m) places, the best first; -1 is none.
        seen: (S,) request x items + place of what was had.
        items: how many there are.
        count: of what remains.

    Example:
        >>> unseen(np.array([[4, 2, 9], [2, 4, -1]]), np.array([2]), items=10, count=2).tolist()
        [[4, 9], [2, 4]]
    """
    gone = np.isin(np.arange(len(found))[:, None] * items + found, seen) | (found < 0)
    order = np.argsort(gone, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(gone, order, 1), -1, np.take_along_axis(found, order, 1))
