"""Boosted trees, as models that are fitted and rank.

Importing this package registers all kinds.
"""

from livetrain.trainers.trees import gbdt, gbdt_lr  # noqa: F401
