"""Times as people write them: 90s, 5m, 2h, 1d."""

import re
from typing import Any

from livetrain.configs.errors import BadInput, shown

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_WRITTEN = re.compile(r"([1-9]\d{0,5})([smhd])", re.ASCII)
MOST = 366 * 86_400  # s


def seconds(text: Any, key: str) -> int:
    """Return how many seconds a duration has.

    Args:
        text: a number and its unit.
        key: where it was given, for the message.

    Raises:
        BadInput: it is none, or longer than a year.

    Example:
        >>> seconds("5m", "--every")
        300
    """
    found = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
    many = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < many <= MOST:
        raise BadInput(f"{key}: {shown(text)} is no duration; write a number and its unit, as 90s, 5m, 2h or 1d")
    return many


def written(many: int) -> str:
    """Return a duration as people write it.

    Example:
        >>> written(300), written(90)
        ('5m', '90s')
    """
    unit = max((name for name, each in _UNITS.items() if many % each == 0), key=_UNITS.__getitem__)
    return f"{many // _UNITS[unit]}{unit}"


def span(seconds: float) -> str:
    """Return a time as people say it.

    Example:
        >>> span(42.3), span(150), span(3600), span(200_000)
        ('42 s', '2 min 30 s', '1 h', '2 d 7 h')
    """
    whole = max(int(seconds), 0)
    for unit, each, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= each:
            rest = whole % each // part
            return f"{whole // each} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
