"""Requests as a server has logged them: what the model was given, what it answered, and what became of it.

A row is a request, in the layout of docs/guide/requests.md: what belongs to the user is a value or a list, what each
candidate has is a list of these. Columns have the features' names, and values are as the exported file takes them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from livetrain.configs.errors import BadInput, nearest, short
from livetrain.configs.schema import Recipe
from livetrain.trainers.export.rows import Inputs

OWN = ("request_id", "time", "model", "version", "fence", "delta", "stored", "order", "prerank", "channel")
"""Columns of a log that are no features; besides there are `scores.TASK`."""
BESIDE = ("weights", "vectors", "times")
"""What may lie beside the ids of a feature, in a column FEATURE.KIND."""


@dataclass(frozen=True)
class Given:
    """What the model was given of one feature, in rows.

    Args:
        values: (N,) or (N, width) float32, NaN where it is missing; or int64 ids of all rows one after the other.
        counts: (N,) how many ids each row has; None of numbers.
        beside: what lies beside the ids, a float32 weight, vector or time of each; None where nothing does.
    """

    values: np.ndarray
    counts: np.ndarray | None = None
    beside: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Given":
        """Return some rows, (M,) their numbers."""
        if self.counts is None:
            return Given(self.values[rows])
        begins, counts = np.cumsum(self.counts) - self.counts, self.counts[rows]
        return self._of(_places(begins[rows], counts), counts)

    def newest(self, limit: int) -> "Given":
        """Return the last `limit` ids of each row at most."""
        if self.counts is None:
            return self
        counts = np.minimum(self.counts, limit)
        return self._of(_places(np.cumsum(self.counts) - counts, counts), counts)

    def _of(self, places: np.ndarray, counts: np.ndarray) -> "Given":
        return Given(self.values[places], counts, None if self.beside is None else self.beside[places])


def _places(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return begins[r], begins[r] + 1, ... of each row r, `counts` of them."""
    ends = np.cumsum(counts)
    return np.arange(int(counts.sum())) + np.repeat(begins - (ends - counts), counts)


class RequestLog:
    """Some logged requests.

    Args:
        table: of requests.
        recipe: of the model that answered them.
        place: where they lie, for messages.

    Attributes:
        counts: (R,) candidates of each request.
        mine: the features that are the user's.

    Raises:
        BadInput: the log lacks a feature, or a column has another form than its feature.
    """

    def __init__(self, table: pa.Table, recipe: Recipe, place: str):
        self.table, self._recipe, self._place = table, recipe, place
        self.features = [name for name, f in recipe.features.items() if f.carrier != "features"]
        if missing := [name for name in self.features if name not in table.column_names]:
            hint = nearest(missing[0], table.column_names)
            raise BadInput(f"{place}: the log has no feature '{missing[0]}'{hint}; give the log of this model")
        for name in self.features:
            if recipe.beside(name) is not None and self.kind(name) is None:
                raise BadInput(f"{place}: the log has no '{name}.weights', which the ids of '{name}' have beside them")
        self.mine = [name for name in self.features if not self._of_candidates(name)]
        self.counts = self._counted()

    def kind(self, name: str) -> str | None:
        """Return what lies beside a feature's ids: weights, vectors or times; None where nothing does."""
        if self._recipe.beside(name) is None:
            return None
        return next((kind for kind in BESIDE if f"{name}.{kind}" in self.table.column_names), None)

    def _lists(self, name: str) -> bool:
        feature = self._recipe.features[name]
        return feature.lists if feature.carrier == "ids" else feature.numbers > 1

    def _of_candidates(self, name: str) -> bool:
        kind = self.table.schema.field(name).type
        if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
            if self._lists(name):
                raise BadInput(f"{self._place}: column '{name}' holds {kind}, and its feature is a list")
            return False
        return not self._lists(name) or pa.types.is_nested(kind.value_type)

    def _counted(self) -> np.ndarray:
        found: np.ndarray | None = None
        first = ""
        for name in self.features:
            if name in self.mine:
                continue
            counts = pc.fill_null(pc.list_value_length(self.table[name]), 0).to_numpy().astype(np.int64)
            if found is not None and (found != counts).any():
                raise BadInput(f"{self._place}: '{name}' and '{first}' have other numbers of candidates in one request")
            found, first = counts, name
        if found is None:
            raise BadInput(
                f"{self._place}: no feature of the model is a candidate's; give the log of a model that ranks"
            )
        return found

    @property
    def request(self) -> np.ndarray:
        """(N,) of each candidate its request's row."""
        return np.repeat(np.arange(len(self.table)), self.counts)

    def given(self, name: str) -> Given:
        """Return what the model was given of a feature: a row per request, or per candidate."""
        column = self.table[name].combine_chunks()
        if name not in self.mine:
            column = pc.list_flatten(column)
        feature = self._recipe.features[name]
        if feature.carrier == "numbers":
            width = feature.numbers
            if width == 1:
                return Given(column.cast(pa.float32()).fill_null(float("nan")).to_numpy(zero_copy_only=False))
            rows = [[np.nan] * width if each is None else each for each in column.to_pylist()]
            return Given(np.array(rows, np.float32).reshape(-1, width))
        if not self._lists(name):
            there = column.is_valid().to_numpy(zero_copy_only=False)
            return Given(column.drop_null().cast(pa.int64()).to_numpy(), there.astype(np.int64))
        counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        return Given(pc.list_flatten(column).cast(pa.int64()).to_numpy(), counts, self._beside(name))

    def _beside(self, name: str) -> np.ndarray | None:
        if (kind := self.kind(name)) is None:
            return None
        column = self.table[f"{name}.{kind}"]
        for _ in range(1 if name in self.mine else 2):
            column = pc.list_flatten(column)
        beside = self._recipe.beside(name)
        width = 1 if beside is None else beside[1]
        values = column if width == 1 else pc.list_flatten(column)
        found = values.cast(pa.float32()).fill_null(float("nan")).to_numpy()
        return found if width == 1 else found.reshape(-1, width)

    def by_candidate(self, name: str, rows: np.ndarray | None = None) -> Given:
        """Return what the model was given of a feature, a row per candidate; of `rows` alone, (M,) their numbers."""
        found = self.given(name)
        if name in self.mine:
            return found.take(self.request if rows is None else self.request[rows])
        return found if rows is None else found.take(rows)

    def inputs(self) -> Inputs:
        """Return the first request as `rank` takes it."""
        ids: dict[str, torch.Tensor] = {}
        lengths: dict[str, torch.Tensor] = {}
        dense: dict[str, torch.Tensor] = {}
        for name in self.features:
            found = self.given(name)
            if found.counts is None:
                dense[name] = torch.tensor(found.values)
            else:
                ids[name], lengths[name] = torch.tensor(found.values), torch.tensor(found.counts)
            if found.beside is not None:
                dense[name] = torch.tensor(found.beside)
        return ids, lengths, dense


def read(place: str) -> pa.Table:
    """Return a log's requests, all in memory.

    Args:
        place: a folder, of a day or of days, or one file.

    Raises:
        BadInput: there is no log.
    """
    tables = [_read(path) for path in paths(place)]
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def holding(place: str, request: str) -> str:
    """Return the file of a log that holds a request.

    Args:
        place: a folder, of a day or of days, or one file.
        request: its id.

    Raises:
        BadInput: there is no log, or not that request in it.
    """
    for path in paths(place):
        if pc.any(pc.equal(_read(path, ["request_id"])["request_id"], request)).as_py():
            return str(path)
    raise BadInput(f"{place}: has no request '{request}'; a log holds the share of them that the server was told to")


def paths(place: str) -> list[Path]:
    """Return a log's files.

    Args:
        place: a folder, of a day or of days, or one file.

    Raises:
        BadInput: there is none.
    """
    folder = Path(place)
    paths = [folder] if folder.is_file() else sorted(_files(folder))
    if not paths:
        raise BadInput(f"{place}: holds no log of requests; name the folder that the server's `log.path` names")
    return paths


def schema(path: Path) -> pa.Schema:
    """Return the columns of a log's file.

    Raises:
        BadInput: it is none.
    """
    with _readable(path):
        found = pq.read_schema(path)
    if missing := [name for name in ("request_id", "time") if name not in found.names]:
        raise BadInput(f"{path}: has no column '{missing[0]}', so it is no log of requests; name the server's log")
    return found


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    schema(path)
    with _readable(path):
        return pq.read_table(path, columns=columns, partitioning=None)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: is no log of requests ({short(error)}); remove it, or name another folder") from None


def _files(folder: Path) -> Iterable[Path]:
    hidden = (".", "_")
    return (path for path in folder.glob("**/*.parquet") if not path.name.startswith(hidden) and path.is_file())
