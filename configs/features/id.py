"""Ids, one per row."""

from collections.abc import Sequence
from typing import Any, Literal

from livetrain.configs.schema import EmbeddedFeature


class IdFeature(EmbeddedFeature):
    """One id per row (int64, any value; null = missing = the zero vector)."""

    type: Literal["id"]

    @property
    def plain(self) -> bool:
        return True

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        return {"type": "id", "dtype": "int64", "table": self.table, "missing": "length 0"}
