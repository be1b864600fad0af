"""How a sweep's values, keys and errors read in a table or a plot."""

import math
import re
from collections.abc import Collection
from typing import Any

from livetrain.configs.space import Choice, Domain, LogUniform, Range


def number(value: object) -> str:
    """Return a value as a table shows it: four digits of a number, - for none."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short(key: str, keys: Collection[str]) -> str:
    """Return a dotted key without its section, where what is left still says of what it is, and tells it from others.

    >>> short("optimizers.dense.lr", ["optimizers.dense.lr", "model.units"])
    'dense.lr'
    >>> short("model.units", ["optimizers.dense.lr", "model.units"])
    'model.units'
    """
    tail = key.partition(".")[2]
    clear = "." in tail and sum(other.endswith(f".{tail}") or other == tail for other in keys) == 1
    return tail if clear else key


def folded(name: str, most: int) -> str:
    """Return a name in lines of at most `most` letters, broken behind its dots, underscores and spaces where it can be.

    >>> folded("schedule.warmup_steps", 12).split()
    ['schedule.', 'warmup_steps']
    """
    lines = [""]
    for part in re.split(r"(?<=[._ ])", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > most:
            lines.append("")
        lines[-1] += part
        while len(lines[-1].rstrip()) > most:
            lines[-1:] = [lines[-1][:most], lines[-1][most:]]
    return "\n".join(line.rstrip() for line in lines)


def place(domain: Domain, value: Any) -> float:
    """Return where a value lies between its domain's ends, 0 to 1; a key that was not drawn lies below."""
    if value is None:
        return -0.1
    if isinstance(domain, Choice):
        return domain.choice.index(value) / max(len(domain.choice) - 1, 1)
    assert isinstance(domain, Range)
    low, high = domain.ends()
    if isinstance(domain, LogUniform):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def last_line(error: str) -> str:
    """Return what an error says in the end, below its traceback."""
    return next((line.strip() for line in reversed(error.splitlines()) if line.strip()), "")
