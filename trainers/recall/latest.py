"""The latest items: those that began last, in a row's slice and then in the larger ones around it."""

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from livetrain.configs.clock import HOUR
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.configs.values import FeatureName, Text
from livetrain.modules.fitted import State
from livetrain.modules.recall.fitted import Rows, register_fitted
from livetrain.trainers.recall.slices import Sliced, SlicedConfig

_LARGER = 1e-7  # what larger slices count: less than any own item, so that they only go on where a list ends
_MOST = 5  # features of `by`: 1e-7 to the power of more slices is none in float32


class LatestConfig(SlicedConfig):
    """Items by when they began."""

    kind: Literal["latest"] = "latest"
    by: Annotated[list[FeatureName], Field(max_length=_MOST)] = Field(
        [], description=f"as of popular: features whose values make a slice, {_MOST} at most"
    )
    started: Text | None = Field(
        None, description="column with the time at which a row's item began; by default that of its first row"
    )

    def also_reads(self) -> list[tuple[str, str, str]]:
        return super().also_reads() + ([] if self.started is None else [(self.started, "unix time", "model.started")])


@register_fitted("latest", LatestConfig)
class Latest(Sliced):
    """score(item in slice s) = 1 / (1 + age in hours),  age = newest time of the training split - when the item began

    Rows of any label show that an item is there. What is newer than the training split is in no list, so an evaluation
    measures lists that are as old as its split is later.

    Memory: 24 bytes per slice and item that are seen together.

    Args:
        config: see `LatestConfig`.
        recipe: the run.

    Raises:
        BadInput: without `time`, or a feature of `by` that is not there.
    """

    def __init__(self, config: LatestConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        if config.time is None:
            raise BadInput("model.time is missing; name the column with the time of a row")
        self.started = config.started

    def fit(self, rows: Iterator[Rows], before: State | None = None) -> State:
        empty = {"key": pa.int64(), "item": pa.int64(), "began": pa.float64()}
        first, newest = pa.table({name: pa.array([], kind) for name, kind in empty.items()}), -np.inf
        for part in rows:
            times = part.columns[self.time or ""]
            began = times if self.started is None else part.columns[self.started]
            began = np.where(np.isnan(began), times, began)
            newest = max(newest, float(np.nanmax(times, initial=-np.inf)))
            keys, items, row = self.sliced(part, ~np.isnan(began))
            added = pa.table({"key": keys, "item": items, "began": began[row]})
            both = pa.concat_tables([first, added]).group_by(["key", "item"]).aggregate([("began", "min")])
            first = both.select(["key", "item", "began_min"]).rename_columns(list(empty))
        keys = first["key"].to_numpy()
        ages = np.maximum(newest - first["began"].to_numpy(), 0) / HOUR
        slices = np.unique(keys)
        return {
            "keys": keys,
            "items": first["item"].to_numpy(),
            "scores": 1 / (1 + ages),
            "slices": slices,
            "rest": np.full(len(slices), _LARGER),
        }
