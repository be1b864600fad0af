"""What a check says: a verdict and a sentence."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """ok: as it should be. look: a person should judge. wrong: training on it would mislead."""

    ok = "ok"
    look = "look"
    wrong = "wrong"


@dataclass(frozen=True)
class Finding:
    """One line of the table: which check, of what (a column, a file or the whole), its verdict and why."""

    check: str
    subject: str
    verdict: Verdict
    text: str


def share(value: float) -> str:
    """Return a share as people read it: 12.3 %, and 0.004 % rather than 0.0 %."""
    percent = 100 * value
    return f"{percent:.1f} %" if percent >= 0.95 or not percent else f"{percent:.2g} %"


def listed(names: list[str], most: int = 4) -> str:
    """Return names with commas, the first few of many."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
