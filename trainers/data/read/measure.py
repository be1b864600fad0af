"""What is measured of features that are made of numbers: means and deviations of what they become, and quantiles."""

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.features.registry import transforms
from livetrain.modules.mixing import mix
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.columns import is_list

SAMPLE = 1 << 16  # rows that quantiles are taken of: a quantile is off by .2 % of the rows, one standard deviation


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of D columns, each (D,) float64."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Moments":
        """Measure (n, D) numbers; NaN is left out."""
        known = ~np.isnan(numbers)
        count = known.sum(axis=0).astype(float)
        first = numbers[known.argmax(axis=0), np.arange(numbers.shape[1])] if len(numbers) else np.zeros(len(count))
        first = np.where(count > 0, first, 0.0)
        apart = np.where(known, numbers - first, 0.0)  # exact zeros where the column is constant
        mean = apart.sum(axis=0) / np.maximum(count, 1)
        return cls(count, first + mean, np.square(np.where(known, apart - mean, 0.0)).sum(axis=0))

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both parts' rows (Chan, Golub and LeVeque 1979, equation 2.1)."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        squares = self.squares + other.squares + delta * delta * self.count * share
        return Moments(count, self.mean + delta * share, squares)

    @property
    def deviation(self) -> np.ndarray:
        """Population deviation; 1 where the column is constant."""
        deviation = np.sqrt(self.squares / np.maximum(self.count, 1))
        return np.where(deviation > 0, deviation, 1.0)


@dataclass(frozen=True)
class Drawn:
    """Numbers of the rows whose keys are least: a sample that depends on the rows' files and places there alone."""

    keys: np.ndarray  # (n,) uint64
    values: np.ndarray  # (n,) float32

    @classmethod
    def of(cls, numbers: np.ndarray, first: int) -> "Drawn":
        """Draw of (n,) numbers, the rows first, first + 1, ... modulo 2^64; NaN is left out."""
        known = np.flatnonzero(~np.isnan(numbers))
        return cls(mix(known.astype(np.uint64) + np.uint64(first)), numbers[known])._cut()

    def merge(self, other: "Drawn") -> "Drawn":
        if not len(other.keys):
            return self
        return Drawn(np.concatenate([self.keys, other.keys]), np.concatenate([self.values, other.values]))._cut()

    def _cut(self) -> "Drawn":
        if len(self.keys) <= SAMPLE:
            return self
        least = np.argpartition(self.keys, SAMPLE)[:SAMPLE]
        return Drawn(self.keys[least], self.values[least])

    def quantiles(self, parts: int) -> list[float]:
        """Return the k / parts quantiles, k = 1 .. parts - 1, each one of the values; zeros where there are none."""
        values = self.values if len(self.values) else np.zeros(1, np.float32)
        return np.quantile(values, np.arange(1, parts) / parts, method="inverted_cdf").tolist()


@dataclass(frozen=True)
class Measured:
    """What some rows tell of a feature."""

    moments: Moments
    drawn: Drawn

    def merge(self, other: "Measured") -> "Measured":
        return Measured(self.moments.merge(other.moments), self.drawn.merge(other.drawn))

    def parted(self) -> tuple["Measured", "Measured"]:
        """Return it without its sample, and its sample alone, which may be merged in any order."""
        none = Moments(*(np.zeros_like(part) for part in vars(self.moments).values()))
        return Measured(self.moments, Drawn(self.drawn.keys[:0], self.drawn.values[:0])), Measured(none, self.drawn)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it, for a file; see `restored`."""
        return vars(self.moments) | vars(self.drawn)

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray]) -> "Measured":
        """Undo `arrays`."""
        moments = Moments(arrays["count"], arrays["mean"], arrays["squares"])
        return cls(moments, Drawn(arrays["keys"], arrays["values"]))


class Measure:
    """Measures a feature whose carrier is numbers, or checks what lies beside the ids of another.

    Args:
        recipe: the run.
        name: the feature's.

    Attributes:
        columns: that are read for it; none if there is nothing to measure or to check.
        dense: whether it has means and deviations, of each of its columns that are normalised.
        quantiles: the parts that it is cut into, 0 for none.
        nothing: what no rows tell.
    """

    restored = staticmethod(Measured.restored)

    def __init__(self, recipe: Recipe, name: str) -> None:
        self._name, self._feature = name, recipe.features[name]
        self._beside = recipe.beside(name)
        self._numbers = self._feature.carrier == "numbers"
        self._transform = transforms({name: self._feature})[name]
        self.columns = recipe.reads(name) if self._numbers or self._beside is not None else ()
        self.dense = self._numbers and self._feature.form == "dense"
        self._measured = self._transform.measured if self.dense else 0
        self.quantiles = self._transform.quantiles if self._numbers else 0
        self.nothing = Measured(Moments.of(np.zeros((0, self._measured))), Drawn.of(np.zeros(0, np.float32), 0))

    @property
    def question(self) -> dict[str, Any]:
        """What is asked, so that an answer of equal words is this one's."""
        return {
            "feature": self._feature.model_dump(mode="json"),
            "columns": self.columns,
            "beside": self._beside,
            "code": written(type(self._transform)),
        }

    def of(self, table: pa.Table, first: int, where: str) -> Measured:
        """Measure rows.

        Args:
            table: with the columns.
            first: number of the first row, by which it is drawn or not.
            where: the rows are, for messages.

        Raises:
            BadInput: a number is NaN, infinite or too large for float32, a list is of another length than its
                feature's vectors, or weights or vectors are not one of each id, or not finite.
        """
        name, feature, found = self._name, self._feature, self.nothing
        if self._beside is not None:
            columns, width = self._beside
            ids, *beside = (carry.whole(table.column(each)) for each in (feature.column or name, *columns))
            carry.beside(name, feature, ids, beside, width, where)
        if not self._numbers:
            return found
        arrays = [carry.whole(table.column(column)) for column in self.columns]
        if feature.second_column is None:
            _check_finite(name, arrays[0], where)
        numbers = carry.numbers(name, feature, arrays, where)
        moments = Moments.of(self._made(numbers, arrays[0])) if self._measured else found.moments
        return Measured(moments, Drawn.of(numbers, first) if self.quantiles else found.drawn)

    def _made(self, numbers: np.ndarray, array: pa.Array) -> np.ndarray:
        """Return the columns that are normalised, as the transform makes them, (n, measured) float64."""
        if self._feature.plain:
            if numbers.ndim == 1 and not is_list(array.type):  # with all digits that are stored
                numbers = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        else:
            with torch.no_grad():
                numbers = self._transform(torch.from_numpy(numbers)).numpy()
        return numbers.reshape(len(numbers), -1)[:, : self._measured].astype(np.float64)


def measures(recipe: Recipe, names: Collection[str] | None = None) -> dict[str, Measure]:
    """Return what measures or checks each of some features, by default of all; none for those without anything to."""
    found = {name: Measure(recipe, name) for name in recipe.features if names is None or name in names}
    return {name: measure for name, measure in found.items() if measure.columns}


def written(code: type | ModuleType) -> str | None:
    """Return a digest of the file that a class, or a module, is written in; None where there is no such file.

    Of a user's it is of all files of its package: its file may lean on any of them.
    """
    try:
        file = Path(inspect.getfile(code))
        top, *inner = (code.__name__ if isinstance(code, ModuleType) else code.__module__).split(".")
        files, depth = [file], len(inner) - (file.name != "__init__.py")  # folders of the package's above the file's
        if depth >= 0 and top != __name__.split(".")[0]:
            files = sorted(file.parents[depth].rglob("*.py"))
        return xxhash.xxh64_hexdigest(b"".join(path.read_bytes() for path in files))
    except (OSError, TypeError):
        return None


def _check_finite(name: str, array: pa.Array, where: str) -> None:
    """Refuse numbers that are there and that float32 does not hold, of a column or of its lists."""
    values = array.flatten() if is_list(array.type) else array
    numbers = values.drop_null().cast(pa.float64(), safe=False).to_numpy()
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(numbers.astype(np.float32))
    if bad.any():
        place = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))[bad.argmax()]
        if is_list(array.type):
            place = np.repeat(np.arange(len(array)), array.value_lengths().fill_null(0).to_numpy())[place]
        raise BadInput(
            f"{where}, row {place}: features.{name} holds {numbers[bad.argmax()]}; store finite float32 numbers, and "
            "null where there is none"
        )
