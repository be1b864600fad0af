"""The clocks of a time zone, as tensors."""

import datetime
import functools
import zoneinfo

import torch
from torch import Tensor

from livetrain.configs.features.times import TimeFeature
from livetrain.modules.features.transform import Transform

_DAY = 86_400
_FIRST, _LAST = 0, 4_102_444_800  # 1970 and 2100: before and after them the clocks stay as they are then


class Local(Transform):
    """Seconds since 1970 -> what the clocks of the feature's zone show, in seconds since 1970.

    They change where its UTC offset does, as in spring and autumn; each change from 1970 to 2100 is known.
    """

    changes: Tensor
    offsets: Tensor

    def __init__(self, feature: TimeFeature) -> None:
        super().__init__(feature)
        changes, offsets = clocks(feature.zone)
        self.register_buffer("changes", torch.tensor(changes, dtype=torch.int64), persistent=False)
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)

    def local(self, seconds: Tensor) -> Tensor:
        """Args: seconds (N,) int64. Returns: (N,) int64."""
        return seconds + self.offsets[torch.searchsorted(self.changes, seconds, right=True)]


@functools.lru_cache(maxsize=64)
def clocks(zone: str) -> tuple[list[int], list[int]]:
    """Return the times at which a zone's UTC offset changes, and its n + 1 offsets around these, in seconds.

    >>> changes, offsets = clocks("Europe/Berlin")
    >>> changes[-1], offsets[-2:]  # the end of summer time 2099
    (4096573200, [7200, 3600])
    """
    known = zoneinfo.ZoneInfo(zone)

    def offset(second: int) -> int:
        shown = datetime.datetime.fromtimestamp(second, known).utcoffset()
        assert shown is not None  # of a time with a zone
        return int(shown.total_seconds())

    changes, offsets = [], [offset(_FIRST)]
    for day in range(_FIRST, _LAST, _DAY):
        if offset(day + _DAY) == offsets[-1]:
            continue
        low, high = day, day + _DAY  # the offset changes in (low, high]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == offsets[-1] else (low, middle)
        changes.append(high)
        offsets.append(offset(high))
    return changes, offsets
