"""What finds candidates: models that are fitted rather than trained by steps, one kind per file.

Importing this package registers all kinds.
"""

from livetrain.trainers.recall import ease, item_cf, latest, popular, social, tags  # noqa: F401
