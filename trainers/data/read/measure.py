"""What is measured of features that are made of numbers: means and deviations of what they become, and quantiles."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

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
    """Numbers of the rows whose keys are least: a sample that depends on the rows' numbers alone."""

    keys: np.ndarray  # (n,) uint64
    values: np.ndarray  # (n,) float32

    @classmethod
    def of(cls, numbers: np.ndarray, first: int) -> "Drawn":
        """Draw of (n,) numbers, the rows first, first + 1, ...; NaN is left out."""
        known = np.flatnonzero(~np.isnan(numbers))
        return cls(mix((known + first).astype(np.uint64)), numbers[known])._cut()

    def merge(self, other: "Drawn") -> "Drawn":
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
    """What some rows tell."""

    moments: Moments
    drawn: Sequence[Drawn]

    def merge(self, other: "Measured") -> "Measured":
        both = zip(self.drawn, other.drawn, strict=True)
        return Measured(self.moments.merge(other.moments), [one.merge(another) for one, another in both])


class Measure:
    """Measures a recipe's features whose carrier is numbers, and checks what lies beside ids.

    Args:
        recipe: the run.
        names: the features; all by default.

    Attributes:
        columns: that are read for it.
    """

    def __init__(self, recipe: Recipe, names: Collection[str] | None = None) -> None:
        chosen = {name: f for name, f in recipe.features.items() if names is None or name in names}
        self._features = {name: f for name, f in chosen.items() if f.carrier == "numbers"}
        self._names = {name: recipe.columns(name) for name in self._features}
        self._transforms = transforms(self._features)
        self._measured = {n: t.measured for n, t in self._transforms.items() if self._features[n].form == "dense"}
        self._parts = {n: t.quantiles for n, t in self._transforms.items() if t.quantiles}
        self._listed = {n: (f, *beside) for n, f in chosen.items() if (beside := recipe.beside(n)) is not None}
        read = [*self._names.values(), *(recipe.reads(name) for name in self._listed)]
        self.columns = list(dict.fromkeys(column for names in read for column in names))

    @property
    def nothing(self) -> Measured:
        """What no rows tell."""
        none = np.zeros(0, np.float32)
        return Measured(Moments.of(np.zeros((0, sum(self._measured.values())))), [Drawn.of(none, 0)] * len(self._parts))

    def of(self, table: pa.Table, first: int, where: str) -> Measured:
        """Measure rows.

        Args:
            table: with the columns.
            first: number of the first row.
            where: the rows are, for messages.

        Raises:
            BadInput: a number is NaN, infinite or too large for float32, a list is of another length than its
                feature's vectors, or weights or vectors are not one of each id, or not finite.
        """
        for name, (feature, column, width) in self._listed.items():
            ids, beside = (carry.whole(table.column(each)) for each in (feature.column or name, column))
            carry.beside(name, feature, ids, beside, width, where)
        moments, drawn = [np.zeros((len(table), 0))], []
        for name, feature in self._features.items():
            arrays = [carry.whole(table.column(column)) for column in self._names[name]]
            if feature.second_column is None:
                _check_finite(name, arrays[0], where)
            numbers = carry.numbers(name, feature, arrays, where)
            if self._measured.get(name):
                moments.append(self._made(name, numbers, arrays[0]))
            if name in self._parts:
                drawn.append(Drawn.of(numbers, first))
        return Measured(Moments.of(np.concatenate(moments, axis=1)), drawn)

    def _made(self, name: str, numbers: np.ndarray, array: pa.Array) -> np.ndarray:
        """Return the columns that are normalised, as the transform makes them, (n, measured) float64."""
        if self._features[name].plain:
            if numbers.ndim == 1 and not is_list(array.type):  # with all digits that are stored
                numbers = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        else:
            with torch.no_grad():
                numbers = self._transforms[name](torch.from_numpy(numbers)).numpy()
        return numbers.reshape(len(numbers), -1)[:, : self._measured[name]].astype(np.float64)

    def tell(self, found: Measured) -> tuple[dict[str, list[float]], ...]:
        """Return the means, deviations and quantiles by feature."""
        ends = np.cumsum(list(self._measured.values()))[:-1].astype(int)
        by_feature = [np.split(part, ends) for part in (found.moments.mean, found.moments.deviation)]
        mean, std = ({n: p.tolist() for n, p in zip(self._measured, parts, strict=False)} for parts in by_feature)
        cuts = zip(self._parts.items(), found.drawn, strict=True)
        return mean, std, {name: drawn.quantiles(parts) for (name, parts), drawn in cuts}


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
