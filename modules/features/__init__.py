"""One kind of feature per file: what the model does with it. Importing this package registers all of them."""

from livetrain.modules.features import (  # noqa: F401
    age,
    autodis,
    bag,
    bucket,
    cross,
    dense,
    hour,
    id,
    sequence,
    vector,
    weekday,
)
