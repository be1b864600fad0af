"""A model of one's own that is fitted, for ``model: {kind: following, key: video, history: watched}``."""

import numpy as np
from pydantic import Field

from livetrain import Fitted, register_fitted
from livetrain.configs.schema import FittedConfig
from livetrain.modules.recall.fitted import table
from livetrain.modules.recall.keys import HistoryKeys


class FollowingConfig(FittedConfig):
    history: str = Field(description="sequence feature, newest last")


@register_fitted("following", FollowingConfig)
class Following(Fitted):
    """score(j) = how often j followed directly upon i,  i = the newest item of a history"""

    def __init__(self, config, recipe) -> None:
        super().__init__(config, recipe)
        self.features = [self.feature("history", config.history, "sequence")]

    def fit(self, rows, before=None):
        pairs = [np.zeros((0, 2), np.int64)]
        for part in rows:
            own, past = part.ids[self.key], part.ids[self.features[0]]
            counts = part.label & (own.lengths > 0) & (past.lengths > 0)
            newest = past.values[np.cumsum(past.lengths)[counts] - 1]
            pairs.append(np.stack([newest, own.values[np.cumsum(own.lengths)[counts] - 1]], 1))
        found, times = np.unique(np.concatenate(pairs), axis=0, return_counts=True)
        return {"pairs": found, "times": times}

    def table(self, state):
        return table(state["pairs"][:, 0], state["pairs"][:, 1], state["times"], most=100)

    def request(self):
        return HistoryKeys(self.recipe, self.features[0], step=1e-9)  # older items count next to nothing
