"""One kind of task per file. Importing this package registers all of them."""

from livetrain.modules.tasks import binary, regression, retrieval, watch_time  # noqa: F401
