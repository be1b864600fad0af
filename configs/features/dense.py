"""Numbers, one per row."""

from typing import Any, ClassVar, Literal

from livetrain.configs.schema import Feature


class DenseFeature(Feature):
    """One number per row, normalised with the training split's mean and deviation (null = missing = the mean)."""

    type: Literal["dense"]
    plain: ClassVar[bool] = True

    def signature(self, mean: float, std: float) -> dict[str, Any]:
        return {"type": "dense", "dtype": "float32", "missing": "NaN", "mean": mean, "std": std}
