"""One batch on its way from Parquet to the model."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """B rows of one rank, padding included.

    A padding row has weight 0, row number -1, empty sequences, missing ids, missing dense values, label 0 and
    sample weight 0.
    """

    ids: KeyedJaggedTensor  # raw int64 ids; one key per id or sequence feature, in the recipe's order
    dense: torch.Tensor  # (B, W) float32, NaN = missing; columns of the features that numbers carry, in that order
    labels: torch.Tensor  # (B, T) float32; one column per task, in the recipe's order; NaN = not known yet
    weights: torch.Tensor  # (B,) float32
    rows: torch.Tensor  # (B,) int64, number of the row within its split
    groups: torch.Tensor | None = None  # (B,) int64, the column evaluate.group_by, only when evaluating
    sample_weights: torch.Tensor | None = None  # (B, T) float32, only where a task of the recipe has a sample_weight
    task_groups: torch.Tensor | None = None  # (B, G) int64, in training, the columns of `Recipe.groups`, each once
    slices: torch.Tensor | None = None  # (B,) int64, bit i: the row is in the i-th of evaluate.slices; only evaluating
    vectors: torch.Tensor | None = None  # (V,) float32, NaN = missing; w of each id of each feature that carries some

    def _map(self, change: Callable[[Any], Any]) -> "Batch":
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: None if part is None else change(part) for name, part in parts.items()}
        return Batch(**changed)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return self._map(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        for field in fields(self):
            part = getattr(self, field.name)
            if part is not None:
                part.record_stream(stream)
