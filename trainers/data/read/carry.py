"""From the Arrow columns of a feature to what carries it: ids per row, or numbers per row."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livetrain.configs.clock import PER_SECOND
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Feature
from livetrain.trainers.data.read.columns import is_list, is_text
from livetrain.trainers.data.read.records import Column, running
from livetrain.trainers.data.write.ids import string_ids


def whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, copied only where it comes in several chunks."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def floats(array: pa.Array) -> np.ndarray:
    """Return a column of numbers, (n,) float32; a null is NaN."""
    return array.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)


def whole_ids(array: pa.Array) -> pa.Array:
    """Return integers or strings as int64 ids; strings are hashed."""
    if is_text(array.type):
        return string_ids(array)
    return array if array.type == pa.int64() else array.cast(pa.int64())


def ids(feature: Feature, array: pa.Array) -> Column:
    """Return a feature's ids; a null is no id or an empty list, a null element is left out.

    Args:
        feature: whose carrier is ids.
        array: (n,) its column.
    """
    if feature.holds in ("time", "unix time"):
        array = _seconds(array, feature)
    if pa.types.is_large_list_view(array.type):  # of `repeated`
        values, begins = array.values, array.offsets.to_numpy()
        ends = begins + array.sizes.to_numpy()
    elif is_list(array.type) or array.null_count:
        values, offsets = _lists(array) if is_list(array.type) else (array, np.arange(len(array) + 1))
        begins, ends = offsets[:-1], offsets[1:]
    else:
        return Column(whole_ids(array).to_numpy())
    values = whole_ids(values)
    if values.null_count:
        before = running(values.is_valid().to_numpy(zero_copy_only=False))
        values, begins, ends = values.drop_null(), before[begins], before[ends]
    return Column(values.to_numpy(), begins, ends)


def repeated(array: pa.ListArray | pa.LargeListArray, rows: np.ndarray) -> pa.LargeListViewArray:
    """Return rows of a column of ids' lists; they share the column's values, and a null list is empty."""
    values, offsets = _lists(array)
    offsets, sizes = offsets[:-1][rows], np.diff(offsets)[rows]
    return pa.LargeListViewArray.from_arrays(pa.array(offsets), pa.array(sizes), values)


def _lists(array: pa.ListArray | pa.LargeListArray) -> tuple[pa.Array, np.ndarray]:
    """Return the elements of all lists, nulls among them, and the lists' offsets; a null list is empty."""
    if array.null_count:  # a null list may have values in memory
        return array.flatten(), running(array.value_lengths().fill_null(0).to_numpy())
    offsets = array.offsets.to_numpy().astype(np.int64)
    return array.values.slice(offsets[0], offsets[-1] - offsets[0]), offsets - offsets[0]


def weights_of(ids: pa.Array, weights: pa.Array, where: str) -> np.ndarray:
    """Return the weights of a column of lists, (N,) float32, of those ids that are not null.

    Args:
        ids: lists of n rows.
        weights: lists of numbers of n rows. A null weighs 1, and so do all ids of a row whose list is null.
        where: what the columns are, for messages.

    Raises:
        BadInput: a row has more weights than ids, or fewer, or one that is not finite in float32.
    """
    (values, offsets), (given, ends) = _lists(ids), _lists(weights)
    told = _told(offsets, ends, weights, f"{where}row", "weight", "for weights of 1")
    numbers = np.ones(len(values), np.float32)
    with np.errstate(over="ignore"):
        numbers[told] = given.cast(pa.float32(), safe=False).fill_null(1).to_numpy()
    if not np.isfinite(numbers).all():
        place = int((~np.isfinite(numbers)).argmax())
        row = _row(offsets, place)
        raise BadInput(f"{where}row {row} has the weight {numbers[place]}; store finite float32 numbers")
    return numbers[values.is_valid().to_numpy(zero_copy_only=False)] if values.null_count else numbers


def vectors_of(ids: pa.Array, vectors: pa.Array, width: int, where: str) -> np.ndarray:
    """Return the vectors of a column of lists, (N, width) float32, of those ids that are not null; NaN is missing.

    Args:
        ids: lists of n rows.
        vectors: lists of vectors of n rows. A null vector is missing, and so are all of a row whose list is null.
        width: numbers of each vector.
        where: what the columns are, for messages.

    Raises:
        BadInput: a row has more vectors than ids, or fewer, a vector has another width, or a number that is not finite
            in float32.
    """
    (values, offsets), (given, ends) = _lists(ids), _lists(vectors)
    told = _told(offsets, ends, vectors, f"{where}row", "vector", "where a row has none")
    lengths = pc.fill_null(pc.list_value_length(given), width).to_numpy()
    if (bad := lengths != width).any():
        place = int(bad.argmax())
        raise BadInput(
            f"{where}row {_row(ends, place)} has a vector of {lengths[place]} numbers, but the width is {width}; write "
            f"vectors of {width} numbers, and null where there is none"
        )
    flat, there = given.flatten(), given.is_valid().to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        known = floats(flat)
    bad = ~np.isfinite(known)
    if flat.null_count:
        bad &= flat.is_valid().to_numpy(zero_copy_only=False)
    if bad.any():
        place = np.flatnonzero(there)[bad.argmax() // width]
        raise BadInput(
            f"{where}row {_row(ends, place)} has a vector with {known[bad.argmax()]}; store finite float32 numbers, "
            "and null where there is none"
        )
    numbers = np.full((len(values), width), np.nan, np.float32)
    numbers[told[there]] = known.reshape(-1, width)
    return numbers[values.is_valid().to_numpy(zero_copy_only=False)] if values.null_count else numbers


def gaps_of(ids: pa.Array, times: pa.Array, until: pa.Array, feature: Feature, where: str) -> np.ndarray:
    """Return how many whole seconds after each id the next one of its row came, (N,) float32; NaN is missing.

    Args:
        ids: lists of n rows; of a null among them there is none, and the gap before it is longer.
        times: lists of times of n rows. Null is not known, and so are all of a row whose list is null.
        until: (n,) the time that counts as the next one of a row's newest id.
        feature: the ids'.
        where: what the columns are, for messages.

    Raises:
        BadInput: a row has more times than ids, or fewer, or an earlier one after a later one.
    """
    (values, offsets), (given, ends) = _lists(ids), _lists(times)
    told = _told(offsets, ends, times, f"{where}row", "time", "where a row has none")
    found, last = _times(given, feature.time_unit), _times(until, feature.time_unit)
    seconds, known = np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    seconds[told], known[told] = found.whole, found.known
    if values.null_count:
        there = values.is_valid().to_numpy(zero_copy_only=False)
        seconds, known, offsets = seconds[there], known[there], running(there)[offsets]
    following, follows = np.append(seconds[1:], 0), np.append(known[1:], False)
    full = np.flatnonzero(np.diff(offsets))
    newest = offsets[1:][full] - 1
    following[newest], follows[newest] = last.whole[full], last.known[full]
    known &= follows
    late = known & (following < seconds)
    if late.any():
        row = _row(offsets, int(late.argmax()))
        raise BadInput(
            f"{where}row {row} has a time that is later than the next one, or than that in until; store each row's "
            "ids and times by rising time"
        )
    return np.where(known, following - seconds, np.nan).astype(np.float32)


def beside(
    name: str, feature: Feature, ids: pa.Array, columns: Sequence[pa.Array], width: int, where: str
) -> np.ndarray:
    """Return what lies beside a feature's ids, its weights, vectors or gaps between times, (N, width) float32.

    Args:
        name: of the feature.
        feature: whose carrier is ids.
        ids: (n,) its column.
        columns: (n,) each, those of what lies beside: see `Recipe.beside`.
        width: numbers of each id.
        where: the rows come from, for messages.

    Raises:
        BadInput: as `weights_of`, `vectors_of` and `gaps_of`.
    """
    if feature.up_to:
        return gaps_of(ids, columns[0], columns[1], feature, f"{where}, features.{name}.times: ").reshape(-1, 1)
    if feature.carried:
        return vectors_of(ids, columns[0], width, f"{where}, features.{name}.vectors: ")
    return weights_of(ids, columns[0], f"{where}, features.{name}.weights: ").reshape(-1, 1)


def _told(offsets: np.ndarray, ends: np.ndarray, beside: pa.Array, row: str, what: str, null: str) -> np.ndarray:
    """Return the places of those ids of lists that something lies beside: all but those of rows where it is null.

    Args:
        offsets: of the ids' lists.
        ends: of the lists of what lies beside them.
        beside: the column of the latter.
        row: how a message about one begins.
        what: lies beside an id.
        null: what a null list is for.

    Raises:
        BadInput: a row's two lists differ in length.
    """
    wanted, found = np.diff(offsets), np.diff(ends)
    told = beside.is_valid().to_numpy(zero_copy_only=False)
    if (bad := told & (wanted != found)).any():
        at = int(bad.argmax())
        raise BadInput(
            f"{row} {at} has {found[at]} {what}s and {wanted[at]} ids; store one {what} of each id, or null {null}"
        )
    return np.flatnonzero(np.repeat(told, wanted))


def _row(offsets: np.ndarray, place: int) -> int:
    """Return the row that an element of a column of lists is in."""
    return int(np.searchsorted(offsets, place, side="right")) - 1


def numbers(name: str, feature: Feature, arrays: Sequence[pa.Array], where: str) -> np.ndarray:
    """Return a feature's numbers, float32, NaN where there is none: (n,), or (n, w) of w > 1 per row.

    Args:
        name: of the feature.
        feature: whose carrier is numbers.
        arrays: (n,) its columns.
        where: the rows come from, for messages.

    Raises:
        BadInput: a list has another length than the feature's vectors.
    """
    if feature.holds == "vector":
        return _vectors(name, feature.numbers, arrays[0], where)
    if feature.second_column is not None:
        since, until = (_times(array, feature.time_unit) for array in arrays)
        apart = until.whole.astype(np.float64) - since.whole + (until.rest - since.rest)
        return np.where(since.known & until.known, apart, np.nan).astype(np.float32)
    return floats(arrays[0])


def missing(feature: Feature, rows: int) -> np.ndarray:
    """Return the numbers of rows that have none."""
    return np.full(rows if feature.numbers == 1 else (rows, feature.numbers), np.nan, np.float32)


def _vectors(name: str, width: int, array: pa.Array, where: str) -> np.ndarray:
    lengths = pc.fill_null(pc.list_value_length(array), width).to_numpy()
    if (bad := lengths != width).any():
        row = int(bad.argmax())
        raise BadInput(
            f"{where}, row {row}: features.{name} holds a list of {lengths[row]} numbers, but its width is {width}; "
            f"correct the width, or write lists of {width} numbers, and null where there is none"
        )
    known = floats(array.flatten())
    if array.null_count:
        found = np.full((len(array), width), np.nan, np.float32)
        found[array.is_valid().to_numpy(zero_copy_only=False)] = known.reshape(-1, width)
        return found[:, 0] if width == 1 else found
    return known if width == 1 else known.reshape(-1, width)


class _Times(NamedTuple):
    """Times since 1970 in whole seconds, downwards, and what is left of them; and which of them are known."""

    whole: np.ndarray  # (n,) int64
    rest: np.ndarray  # (n,) float64, from 0 to 1
    known: np.ndarray  # (n,) bool


def _times(array: pa.Array, unit: str | None) -> _Times:
    """Return a column of timestamps, or of integers of that unit."""
    unit = array.type.unit if pa.types.is_timestamp(array.type) else unit
    assert unit is not None  # the columns' check asks for it
    ticks, each = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), PER_SECOND[unit]
    whole, rest = np.divmod(ticks, each)
    return _Times(whole, rest / each, array.is_valid().to_numpy(zero_copy_only=False))


def seconds(array: pa.Array, unit: str) -> np.ndarray:
    """Return timestamps, or integers of that unit since 1970, as float64 seconds; nan where there is none."""
    times = _times(array, unit)
    return np.where(times.known, times.whole + times.rest, np.nan)


def _seconds(array: pa.Array, feature: Feature) -> pa.Array:
    times = _times(array, feature.time_unit)
    return pa.array(times.whole, mask=~times.known)
