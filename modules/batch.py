"""One batch on its way from Parquet to the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from livetrain.modules.layers import jagged


@dataclass
class Requests(Pipelineable):
    """Which request each row of a batch belongs to, where rows of one request share features (data.layout: request).

    The ids of a shared feature are in the batch's KeyedJaggedTensor once per request: its first R lengths are the
    requests', and the others 0. Sizes are known on the host, so that no GPU is asked for one.
    """

    of: torch.Tensor  # (B,) int64, the request of each row; rows of one follow one another
    size: int  # R < B, requests; the last one has no features, and padding rows are its
    keys: dict[str, int]  # shared feature -> how many ids it would have if each row had its own

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Requests":
        return replace(self, of=change(self.of))

    def to(self, device: torch.device, non_blocking: bool = False) -> "Requests":
        return self._map(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> "Requests":
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        self.of.record_stream(stream)

    def spread(self, name: str, values: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give each row its request's list: (N, ...) values and (R,) lengths -> (M, ...) and (B,)."""
        place, own = jagged.repeated(lengths, self.of, self.keys[name])
        return values.index_select(0, place), own


@dataclass
class Batch(Pipelineable):
    """B rows of one rank, padding included.

    Where the rows of a step share items (data.negatives.shared), `ids` and `dense` have n further rows behind the B: of
    an item alone, or of nothing.

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
    requests: Requests | None = None  # of the rows, where they share features
    # Lists that the model does not get, only when evaluating: see `Recipe.asides`.
    asides: KeyedJaggedTensor | None = None
    often: torch.Tensor | None = None  # (B + n,) float32, how often each row's item is expected among the shared ones

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

    def lists(self, name: str) -> JaggedTensor:
        """Return a feature's raw ids by row, or the lists of an aside; those that rows share are repeated."""
        part = self.asides[name] if self.asides is not None and name in self.asides.keys() else self.ids[name]  # noqa: SIM118
        if self.requests is None or name not in self.requests.keys:
            return part
        beside, own = part.weights_or_none(), part.lengths()[: self.requests.size]
        values, lengths = self.requests.spread(name, part.values(), own)
        weights = None if beside is None else self.requests.spread(name, beside, own)[0]
        return JaggedTensor(values, lengths=lengths, weights=weights)

    def flat(self, widths: Mapping[str, int]) -> "Batch":
        """Return the batch with every feature repeated for each row: what it would be without requests.

        Args:
            widths: feature -> numbers of each of its ids in `vectors`, in their order.
        """
        if self.requests is None:
            return self
        ids, asides = (None if part is None else self._flat(part) for part in (self.ids, self.asides))
        vectors = self.vectors
        if vectors is not None:
            counts = dict(zip(self.ids.keys(), self.ids.length_per_key(), strict=True))
            parts = vectors.split([counts[name] * width for name, width in widths.items()])
            each = zip(widths.items(), parts, strict=True)
            vectors = torch.cat([self._spread(name, part.view(-1, width)).flatten() for (name, width), part in each])
        return replace(self, ids=ids, vectors=vectors, requests=None, asides=asides)

    def _flat(self, shared: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Return ids or asides with the lists that rows share repeated."""
        lists = {name: self.lists(name) for name in shared.keys()}  # noqa: SIM118 (no mapping)
        weights = [part.weights_or_none() for part in lists.values()]
        none = shared.values()[:0]
        return KeyedJaggedTensor(
            keys=list(lists),
            values=torch.cat([none, *(part.values() for part in lists.values())]),
            weights=None if not weights or weights[0] is None else torch.cat(weights),
            lengths=torch.cat([none, *(part.lengths() for part in lists.values())]),
            stride=len(self.rows),
            length_per_key=[len(part.values()) for part in lists.values()],
        )

    def _spread(self, name: str, beside: torch.Tensor) -> torch.Tensor:
        """Return what lies beside a feature's ids, (N, w), by row."""
        requests = self.requests
        if requests is None or name not in requests.keys:
            return beside
        return requests.spread(name, beside, self.ids[name].lengths()[: requests.size])[0]
