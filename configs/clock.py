"""Units of time, where seconds are the rule."""

from typing import Annotated

from livetrain.configs.values import real

HOUR, DAY = 3600, 86_400  # seconds
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of a column's unit
Hours = Annotated[float, real(1e-3, 1e6)]
