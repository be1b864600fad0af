"""One batch on its way from Parquet to the model."""

from dataclasses import dataclass

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """B rows of one rank, padding included.

    A padding row has weight 0, row number -1, empty sequences, missing ids, missing dense values and label 0.
    """

    ids: KeyedJaggedTensor  # raw int64 ids; one key an id or sequence feature, in the recipe's order
    dense: torch.Tensor  # (B, D) float32, NaN = missing; one column a dense feature, in the recipe's order
    labels: torch.Tensor  # (B, T) float32; one column a task, in the recipe's order
    weights: torch.Tensor  # (B,) float32
    rows: torch.Tensor  # (B,) int64, number of the row within its split
    groups: torch.Tensor | None = None  # (B,) int64, the column evaluate.group_by, only when evaluating

    def _map(self, change) -> "Batch":
        groups = None if self.groups is None else change(self.groups)
        return Batch(
            change(self.ids), change(self.dense), change(self.labels), change(self.weights), change(self.rows), groups
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return self._map(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        for part in (self.ids, self.dense, self.labels, self.weights, self.rows):
            part.record_stream(stream)
        if self.groups is not None:
            self.groups.record_stream(stream)
