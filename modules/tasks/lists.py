"""What the metrics of lists are called, in an evaluation and in tables."""

import re
from collections.abc import Sequence

from livetrain.modules.metrics import lists
from livetrain.modules.tasks.kind import Metric, Needs

_TITLES = {"mrr": "MRR", "map": "MAP", "hr": "HR", "recall": "recall", "ndcg": "NDCG"}
_NAME = re.compile(rf"{lists.PREFIX}(?:(mrr|map)|({'|'.join(lists.AT_EACH)})_([1-9]\d*))")
COUNTS = {
    "lists": Metric("lists", grouped=True, shown=",.0f"),
    "lists_left_out": Metric("lists without a positive", grouped=True, shown=",.0f"),
}


def metric(name: str) -> Metric | None:
    """Return a metric of lists; None where the name is none's.

    Example:
        >>> metric("list_ndcg_10").title
        'NDCG@10 of lists'
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return COUNTS.get(name)
    whole, part, k = found.groups()
    title = _TITLES[whole] if whole else f"{_TITLES[part]}@{k}"
    return Metric(f"{title} of lists", 1, grouped=True, needs=Needs.POSITIVE, least=0.0)


def metrics(top: Sequence[int]) -> dict[str, Metric]:
    """Return the metrics of lists of these lengths by name."""
    found = {name: metric(name) for name in (*lists.names(top), *COUNTS)}
    return {name: one for name, one in found.items() if one}
