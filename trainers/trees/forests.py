"""What kinds have in common whose fit leaves a forest per task."""

from torch import nn

from livetrain.modules.fitted import FittedRanker, State
from livetrain.modules.trees.scorer import Boosted
from livetrain.trainers.trees import boost, encode


class Forests(FittedRanker):
    """Scores rows by the forests that `boost.kept` put into its state."""

    def module(self, state: State) -> nn.Module:
        columns, tasks = encode.columns_of(self.recipe, state), list(self.recipe.tasks)
        return Boosted(columns, [boost.trees_of(task, state, columns.columns) for task in tasks], tasks)

    def sizes(self, state: State) -> dict[str, int]:
        return boost.sizes(self.recipe, state)
