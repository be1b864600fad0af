"""Items by their tags: songs, topics or categories that a user likes lead to the items that have them."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from livetrain.configs.schema import Recipe
from livetrain.configs.values import FeatureName
from livetrain.modules.fitted import State
from livetrain.modules.recall.fitted import Rows, register_fitted
from livetrain.modules.recall.joined import JoinedKeys, spread
from livetrain.trainers.recall import shards
from livetrain.trainers.recall.sharded import Sharded, ShardedConfig, positive
from livetrain.trainers.recall.shards import Spill


class TagsConfig(ShardedConfig):
    """Tags that items have and users like."""

    kind: Literal["tags"] = "tags"
    tags: dict[FeatureName, FeatureName] = Field(
        min_length=1,
        description="feature with an item's tags (an id, or a bag or sequence of them) -> feature with those that the "
        "user of a request likes (a bag, perhaps with weights, or a sequence, newest last), as category: liked",
    )


@register_fitted("tags", TagsConfig)
class Tags(Sharded):
    """score(item) = sum over the tags t that the user likes of w_t c_t,item / (c_t + prior)

    c_t,item counts the positive rows of the item with the tag t, each 2^(-age / half_life), and c_t those of all items.
    So with w as how often she chose each tag, the sum is about how often she would choose the item, were she to choose
    a tag first, and then an item as all users do. Tags of different features never meet. An age is that at the newest
    row of the training split, which is before every row that is evaluated.

    Memory: one shard of the table, 24 bytes and the sorting of them for each positive row and tag; they wait on disk.

    Args:
        config: see `TagsConfig`.
        recipe: the run.

    Raises:
        BadInput: a feature is none, or is not of ids, or what is liked is of the item; `half_life` without `time`.
    """

    def __init__(self, config: TagsConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        self.config = config
        tags = [self.ids_of("tags", tag) for tag in config.tags]
        told = [recipe.column(tag) for tag in tags], "the tags of the wanted item"
        liked = [self.asked_of(f"tags.{tag}", name, *told) for tag, name in config.tags.items()]
        self.features = list(dict.fromkeys([*tags, *liked]))

    def request(self) -> nn.Module:
        liked = list(self.config.tags.values())
        return JoinedKeys(self.recipe, liked, list(range(len(liked))), self.config.list_step)

    def fit(self, rows: Iterator[Rows], before: State | None = None) -> State:
        config, newest = self.config, -np.inf
        with Spill(config.shards) as spill:
            for part in rows:
                item, row = positive(part, self.key)
                times = self.times(part)
                newest = max(newest, np.nanmax(times[row], initial=-np.inf))
                place_of = np.full(len(part.label), -1)  # of each row's item
                place_of[row] = np.arange(len(row))
                for place, name in enumerate(config.tags):
                    tags, at = part.ids[name], place_of[part.ids[name].rows]
                    kept = at >= 0
                    keys = spread(torch.from_numpy(tags.values[kept]), place).numpy()
                    spill.add(keys, item[at[kept]], times[row][at[kept]])
            state: State = {}
            for shard, entries in enumerate(spill):
                found = shards.shares(entries, newest, self.half_life, config.prior)
                state |= shards.kept(shard, shards.best(found, config.most))
            return state
