"""One kind of feature per file: what the model does with it. Importing this package registers all of them."""

from livetrain.modules.features import dense, id, sequence, vector  # noqa: F401
