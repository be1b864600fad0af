"""Popular items: those with most positive rows of late, in a row's slice and in the larger ones around it."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from livetrain.configs.clock import HOUR
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.configs.values import Count, Positive
from livetrain.modules.fitted import State
from livetrain.modules.recall.fitted import Rows, register_fitted
from livetrain.trainers.recall.slices import Sliced, SlicedConfig


class PopularConfig(SlicedConfig):
    """Items by how many positive rows they have."""

    kind: Literal["popular"] = "popular"
    hours: Count | None = Field(
        None, description="clock hours before the end of training whose rows count, as 24; by default all"
    )
    prior: Positive = Field(
        100, description="rows by which the shares in a slice lean on those in the larger slice around it"
    )


@register_fitted("popular", PopularConfig)
class Popular(Sliced):
    """score(item in slice s) = (n_si + prior * score(item in the slice around s)) / (n_s + prior)

    n_si counts the positive rows of the item in the slice, and n_s all positive rows of the slice. So a score is the
    item's share with that in the larger slice as what was known before, and a slice with two rows is not ruled by
    them; a slice without any falls back to the larger one. The slice of all rows is within nothing: there it is
    n_i / (n + prior).

    What counts lies in the last `hours` up to the newest row of the training split, which is before every row that is
    evaluated: an evaluation measures lists that are as old as its split is later, a server gets lists that are as new
    as their publishing.

    Memory: 32 bytes per slice, item and hour that are seen together.

    Args:
        config: see `PopularConfig`.
        recipe: the run.

    Raises:
        BadInput: `hours` without `time`, or a feature of `by` that is not there.
    """

    def __init__(self, config: PopularConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        if config.hours is not None and config.time is None:
            raise BadInput("model.hours: count back from the newest row; name the column with its time in model.time")
        self.hours, self.prior = config.hours, float(config.prior)

    def fit(self, rows: Iterator[Rows], before: State | None = None) -> State:
        counts, newest = _counted([]), -(2**62)
        for part in rows:
            hour = np.zeros(len(part.label), np.int64)
            if self.hours is not None and self.time is not None:
                known = ~np.isnan(part.columns[self.time])
                hour[known] = part.columns[self.time][known] // HOUR
                hour[~known] = -(2**62)
                newest = max(newest, int(hour.max(initial=newest)))
            keys, items, row = self.sliced(part, part.label)
            added = pa.table({"key": keys, "item": items, "hour": hour[row], "count": np.ones(len(row))})
            if self.hours is not None:
                counts = _after(counts, newest - self.hours)
                added = _after(added, newest - self.hours)
            counts = _counted([counts, added])
        every = counts.group_by(["key", "item"]).aggregate([("count", "sum")])
        keys, items, number = (every[name].to_numpy() for name in ("key", "item", "count_sum"))
        slices, place = np.unique(keys, return_inverse=True)
        total = np.bincount(place, number, len(slices))
        return {
            "keys": keys,
            "items": items,
            "scores": number / (total + self.prior)[place],
            "slices": slices,
            "rest": self.prior / (total + self.prior),
        }


def _after(counts: pa.Table, hour: int) -> pa.Table:
    """Return the counts of later hours."""
    return counts.filter(counts["hour"].to_numpy() > hour)


def _counted(parts: list[pa.Table]) -> pa.Table:
    """Return how many rows there are of each slice, item and hour."""
    kinds = {"key": pa.int64(), "item": pa.int64(), "hour": pa.int64(), "count": pa.float64()}
    none = pa.table({name: pa.array([], kind) for name, kind in kinds.items()})
    found = pa.concat_tables([none, *parts]).group_by(["key", "item", "hour"]).aggregate([("count", "sum")])
    return found.select(["key", "item", "hour", "count_sum"]).rename_columns(list(kinds))
