"""What popular and latest items have in common: a list of items for each slice of the rows, and for all of them."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import nn

from livetrain.configs.schema import FittedConfig, Recipe
from livetrain.configs.values import Count, FeatureName, Text
from livetrain.modules.fitted import State
from livetrain.modules.recall.fitted import Fitted, Rows, Table, table
from livetrain.modules.recall.keys import SliceKeys


class SlicedConfig(FittedConfig):
    """Base of the configs of kinds with a list of items per slice."""

    by: Annotated[list[FeatureName], Field(max_length=8)] = Field(
        [],
        description="features whose values make a slice, as [city, hour]; around it are the larger slices without the "
        "last feature, without the last two, and so on to that of all rows",
    )
    time: Text | None = Field(None, description="column with the time of a row")
    most: Count = Field(1000, description="items of a slice's list")

    def also_reads(self) -> list[tuple[str, str, str]]:
        return [] if self.time is None else [(self.time, "unix time", "model.time")]


class Sliced(Fitted):
    """A list of items for each slice. What a row's slices are is the work of one module, in the fit and in serving.

    A state holds the lists as `keys`, `items` and `scores` of their entries, and of each slice in `slices` what larger
    ones count beside it in `rest`.
    """

    def __init__(self, config: SlicedConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        self.most, self.time = config.most, config.time
        self.features = [self.feature(f"by.{place}", name, "id") for place, name in enumerate(config.by)]
        self._keys = self.request()

    def request(self) -> nn.Module:
        return SliceKeys(self.recipe, self.key, self.features)

    def table(self, state: State) -> Table:
        return table(state["keys"], state["items"], state["scores"], self.most, (state["slices"], state["rest"]))

    def sliced(self, rows: Rows, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return slice, item and row of each slice of the chosen rows that have an item, (E,) int64 each."""
        item = rows.ids[self.key]
        lists = {name: rows.ids[name] for name in (self.key, *self.features)}
        ids = {name: torch.tensor(part.values) for name, part in lists.items()}
        lengths = {name: torch.tensor(part.lengths) for name, part in lists.items()}
        keys, counts, _ = (part.numpy() for part in self._keys(ids, lengths, {}))
        row = np.repeat(np.arange(len(counts)), counts)
        items = np.zeros(len(counts), np.int64)
        items[item.lengths > 0] = item.values
        kept = ((item.lengths > 0) & chosen)[row]
        return keys[kept], items[row][kept], row[kept]
