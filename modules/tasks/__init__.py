"""One kind of task per file. Importing this package registers all of them."""

from livetrain.modules.tasks import (  # noqa: F401
    binary,
    distilled,
    focal,
    huber,
    jrc,
    listwise,
    ordinal,
    pairwise,
    quantile,
    regression,
    retrieval,
    smoothed,
    watch_time,
)
