"""One kind of feature per file: what the model does with it. Importing this package registers all of them."""

from livetrain.modules.features import bag, cross, dense, id, sequence  # noqa: F401
