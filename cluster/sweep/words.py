"""How a sweep's values, keys and errors read in a table or a plot."""

from collections.abc import Collection


def number(value: object) -> str:
    """Return a value as a table shows it: four digits of a number, - for none."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short(key: str, keys: Collection[str]) -> str:
    """Return as many of a dotted key's last parts as tell it from the other keys."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        tail = ".".join(parts[-count:])
        if sum(other.endswith(f".{tail}") or other == tail for other in keys) == 1:
            return tail
    return key


def last_line(error: str) -> str:
    """Return what an error says in the end, below its traceback."""
    return next((line.strip() for line in reversed(error.splitlines()) if line.strip()), "")
