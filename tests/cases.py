"""Which cases of a test run each time, and which in the slow suite alone."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet


def often(cases: Mapping[str, Any], names: Collection[str]) -> list[ParameterSet]:
    """Return all cases, each named: those of `names` for every run, the others for the slow suite.

    Args:
        cases: by name; of a test with several parameters, tuples of theirs.
        names: of some of them.

    Example:
        >>> [case.id for case in often({"rows": 1, "columns": 2}, ["rows"]) if not case.marks]
        ['rows']
    """
    assert set(names) <= set(cases), "a case that is to run each time is none of them"
    made = []
    for name, case in cases.items():
        values = case if isinstance(case, tuple) else (case,)
        made.append(pytest.param(*values, id=name, marks=() if name in names else pytest.mark.slow))
    return made
