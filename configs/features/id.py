"""Ids, one per row."""

from typing import Any, ClassVar, Literal

from livetrain.configs.schema import EmbeddedFeature


class IdFeature(EmbeddedFeature):
    """One id per row (int64, any value; null = missing = the zero vector)."""

    type: Literal["id"]
    plain: ClassVar[bool] = True

    def signature(self, mean: float, std: float) -> dict[str, Any]:
        return {"type": "id", "dtype": "int64", "table": self.table, "missing": "length 0"}
