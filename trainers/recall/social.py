"""Items by people: the rooms of friends, of followed people, and of those whom they visit."""

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from livetrain.configs.schema import Recipe
from livetrain.configs.values import FeatureName, Share, Text, whole
from livetrain.modules.fitted import State
from livetrain.modules.recall.fitted import NO_ID, Rows, register_fitted
from livetrain.modules.recall.joined import JoinedKeys, spread
from livetrain.trainers.recall import shards
from livetrain.trainers.recall.sharded import Sharded, ShardedConfig, positive
from livetrain.trainers.recall.shards import Spill

PIECE = 2**22  # pairs of a visit and a room that are in memory at once


class SocialConfig(ShardedConfig):
    """Who acts, whose the items are, and whom a request knows."""

    kind: Literal["social"] = "social"
    people: list[FeatureName] = Field(
        min_length=1, max_length=8, description="features with the people whom the user of a request knows, as friends"
    )
    user: Text = Field(description="column with the user of a row; her ids are those of `people`")
    author: Text = Field(description="column with the person whose the item is; likewise")
    hops: Annotated[int, *whole(0, 2)] = Field(
        2, description="0: items of these people; 1: and those that they went to; 2: and those of whom they went to"
    )
    hop_step: Share = Field(0.5, description="what an item counts for each hop")

    def also_reads(self) -> list[tuple[str, str, str]]:
        people = [(self.user, "group", "model.user"), (self.author, "group", "model.author")]
        return super().also_reads() + people


@register_fitted("social", SocialConfig)
class Social(Sharded):
    """score(item) = sum over the people p whom the user knows of w_p s(p, item)

        s(p, item) = own(p, item) + step went(p, item) + step^2 sum_a visits(p, a) own(a, item)

    own is an item's share in the positive rows of the items of p, went that in the positive rows of p herself, and
    visits the share of the person a in these: c / (sum of c + prior), where a row counts 2^(-age / half_life). An age
    is that at the newest row of the training split, which is before every row that is evaluated. Of own, and of the
    whole, a person keeps the `most` largest.

    Memory: one shard of the table. Rows wait on disk, 24 bytes three times over, and so do the pairs of the second hop,
    one for each person, whom she visits, and item of theirs.

    Args:
        config: see `SocialConfig`.
        recipe: the run.

    Raises:
        BadInput: a feature is none, or is not of ids, or is of the item; `half_life` without `time`.
    """

    def __init__(self, config: SocialConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        self.config = config
        told = [config.author], "whose the wanted item is"
        self.features = [self.asked_of(f"people.{place}", name, *told) for place, name in enumerate(config.people)]

    def request(self) -> nn.Module:
        people = list(self.config.people)
        return JoinedKeys(self.recipe, people, [0] * len(people), self.config.list_step)

    def fit(self, rows: Iterator[Rows], before: State | None = None) -> State:
        count = self.config.shards
        with Spill(count) as own, Spill(count) as went, Spill(count) as visits, Spill(count) as found:
            newest = self._read(rows, own, went, visits)
            self._add_hops(newest, own, went, visits, found)
            state: State = {}
            for shard, entries in enumerate(found):
                state |= shards.kept(shard, shards.best(shards.summed(entries), self.config.most))
            return state

    def _read(self, rows: Iterator[Rows], own: Spill, went: Spill, visits: Spill) -> float:
        """Part the positive rows by author and by user; return the newest time."""
        newest = -np.inf
        for part in rows:
            item, row = positive(part, self.key)
            time = self.times(part)[row]
            newest = max(newest, np.nanmax(time, initial=-np.inf))
            user, author = (part.columns[name][row] for name in (self.config.user, self.config.author))
            has_user, has_author = user != NO_ID, author != NO_ID
            user, author = (spread(torch.from_numpy(people), 0).numpy() for people in (user, author))
            own.add(author[has_author], item[has_author], time[has_author])
            went.add(user[has_user], item[has_user], time[has_user])
            both = has_user & has_author
            visits.add(user[both], author[both], time[both])
        return newest

    def _add_hops(self, newest: float, own: Spill, went: Spill, visits: Spill, found: Spill) -> None:
        """Add to `found` what each hop leads to, of one shard of people after the other."""
        config = self.config
        counted = newest, self.half_life, config.prior
        with Spill(config.shards) as visitors:  # by whom they visit; the value is the visit's share
            for shard in range(config.shards if config.hops else 0):
                items = shards.shares(went[shard], *counted)
                found.add(items["key"], items["item"], config.hop_step * items["value"])
                people = shards.shares(visits[shard], *counted) if config.hops > 1 else items[:0]
                visitors.add(people["item"], people["key"], people["value"])
            for authors, entries in zip(visitors, own, strict=True):
                items = shards.best(shards.shares(entries, *counted), config.most)
                found.add(items["key"], items["item"], items["value"])
                first, last = (np.searchsorted(items["key"], authors["key"], side) for side in ("left", "right"))
                for piece in _pieces(last - first):
                    counts = (last - first)[piece]
                    visitor = authors[piece][np.repeat(np.arange(len(counts)), counts)]
                    begin = first[piece] - np.cumsum(counts) + counts
                    item = items[np.arange(counts.sum()) + np.repeat(begin, counts)]
                    found.add(visitor["item"], item["item"], config.hop_step**2 * visitor["value"] * item["value"])


def _pieces(counts: np.ndarray) -> Iterator[slice]:
    """Yield slices of counts whose sum is at most PIECE, or that are of one."""
    ends, start = np.cumsum(counts), 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + PIECE, side="right")), start + 1)
        yield slice(start, stop)
        start = stop
