"""What a check says: a verdict and a sentence."""

import re
from collections.abc import Sequence
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


def runs(names: Sequence[str]) -> list[list[str]]:
    """Return names, in their order, with those that count up together, three or more: v_0, v_1, v_2 are one run."""
    found: list[list[str]] = []
    for name in names:
        if found and _next(found[-1][-1]) == name:
            found[-1].append(name)
        else:
            found.append([name])
    return [run for names in found for run in ([names] if len(names) > 2 else [[name] for name in names])]


def called(run: Sequence[str]) -> str:
    """Return what stands for a run of names: `v_0 .. v_63`."""
    return run[0] if len(run) == 1 else f"{run[0]} .. {run[-1]}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return names with commas, the first few of many; numbered ones count as one."""
    found = runs(names)
    more = sum(map(len, found[most:]))
    return ", ".join(map(called, found[:most])) + (f" and {more} more" if more else "")


def _next(name: str) -> str | None:
    """Return the name that counts on: v_1 behind v_0, and v10 behind v09; None where there is no number at its end."""
    number = re.search(r"\d+$", name)
    return number and f"{name[: number.start()]}{int(number[0]) + 1:0{len(number[0])}d}"
