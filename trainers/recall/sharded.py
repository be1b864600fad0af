"""What kinds have in common whose table is fitted in shards of its keys, from rows that fade with their age."""

from typing import Annotated

import numpy as np
from pydantic import Field

from livetrain.configs.clock import HOUR, Hours
from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import FittedConfig, Recipe
from livetrain.configs.values import Count, PositiveOrZero, Share, Text
from livetrain.modules.fitted import State
from livetrain.modules.recall.fitted import Fitted, Rows, Table
from livetrain.trainers.recall import shards


class ShardedConfig(FittedConfig):
    """Base of the configs of kinds whose table is fitted in shards."""

    time: Text | None = Field(None, description="column with the time of a row")
    half_life: Hours | None = Field(None, description="hours after which a row counts half; needs `time`")
    prior: PositiveOrZero = Field(
        10.0, description="rows that every key is taken to have besides its own: what few rows tell counts less"
    )
    list_step: Share = Field(1.0, description="what an entry of a request's list weighs for each newer one")
    most: Count = Field(1000, description="items that a key leads to, at most")
    shards: Annotated[Count, Field(le=128)] = Field(8, description="parts of the table, which are fitted one by one")

    def also_reads(self) -> list[tuple[str, str, str]]:
        return [] if self.time is None else [(self.time, "unix time", "model.time")]


class Sharded(Fitted):
    """A kind whose state is in shards, see trainers.recall.shards.

    Raises:
        BadInput: `half_life` without `time`.
    """

    def __init__(self, config: ShardedConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        if config.half_life is not None and config.time is None:
            raise BadInput("model.half_life: ages need the times of rows; name their column in model.time")
        self.half_life = None if config.half_life is None else HOUR * config.half_life
        self._time = config.time

    def ids_of(self, key: str, name: str) -> str:
        """Return a feature's name, once it is known to be one whose rows are ids.

        Raises:
            BadInput: it is not; the message names ``model.<key>``.
        """
        known = [n for n, f in self.recipe.features.items() if f.carrier == "ids"]
        if name not in known:
            raise BadInput(f"model.{key}: there is no feature of ids '{name}'{nearest(name, known)}")
        return name

    def asked_of(self, key: str, name: str, columns: list[str], told: str) -> str:
        """Return what `ids_of` does of a feature that requests are answered by; the last two as of `not_of`.

        Raises:
            BadInput: there is no such feature, or it tells the wanted item.
        """
        own = [self.recipe.column(self.key)]
        return self.not_of(key, self.not_of(key, self.ids_of(key, name), own, "which item is wanted"), columns, told)

    def times(self, rows: Rows) -> np.ndarray:
        """Return the time of each row in seconds, (n,) float64; 0 where the recipe names no column."""
        return np.zeros(len(rows.label)) if self._time is None else rows.columns[self._time]

    def table(self, state: State) -> Table:
        return shards.joined(state)


def positive(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return item and row of the positive rows that have an item, (n,) int64 each."""
    items = rows.ids[key]
    chosen = rows.label[items.rows]
    return items.values[chosen], items.rows[chosen]
