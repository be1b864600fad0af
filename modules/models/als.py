"""ALS: a vector per item by weighted least squares, and a user's vector solved from her history when it is asked for.

Hu et al., "Collaborative filtering for implicit feedback datasets", ICDM 2008, weighed and tuned as in Rendle et al.,
RecSys 2022 (2110.14037). trainers.recall.als has the loss, and trainers.recall.solving fits it.
"""

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import ModelConfig, Task
from livetrain.configs.values import FeatureName, Text, real
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.layers.exporting import exporting, longest
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network

PIECE = 2**22  # numbers of the largest tensor that a piece of a batch takes, of 8 bytes each


class ALSConfig(ModelConfig):
    """What events are, and what the loss weighs."""

    kind: Literal["als"] = "als"
    key: FeatureName = Field(description="id feature of the item; its table holds the items' vectors")
    history: FeatureName = Field(
        description="sequence feature of the same table: a user's items, which give her vector"
    )
    user: Text | None = Field(
        None,
        description="column of the user: a row with label 1 is an event; left out, a row is a user with her history",
    )
    value: Text | None = Field(
        None,
        description="column of numbers, such as seconds watched; needs `user`. When a user's vector is asked for, the "
        "items of her history weigh 1 each",
    )
    threshold: Annotated[float, real(1e-6, 1e9)] = Field(1.0, description="rows of a smaller value are no events")
    confidence: Annotated[float, real(0, 1e6)] = Field(
        0.0, description="an event weighs 1 + confidence * log(value / threshold)"
    )
    unobserved: Annotated[float, real(1e-6, 1e6)] = Field(0.1, description="weight of every pair of a user and an item")
    regularisation: Annotated[float, real(1e-9, 1e6)] = 0.003
    power: Annotated[float, real(0, 1)] = Field(
        1.0, description="of what a user or item weighs, in her regularisation; 0 regularises all alike"
    )

    @model_validator(mode="after")
    def _values_are_of_events(self) -> "ALSConfig":
        if self.value is not None and self.user is None:
            raise BadInput("model.value: it is a column of events, and without model.user a row is a user; name both")
        return self

    def also_reads(self) -> list[tuple[str, str, str]]:
        user = [(self.user, "group", "model.user")] if self.user else []
        return user + ([(self.value, "number", "model.value")] if self.value else [])


class FoldIn(nn.Module):
    """x = (sum y y^T + a Y^T Y + l 1)^-1 sum y, over the n items y of a history; l = regularisation (n + a items)^power

    Args:
        config: see `ALSConfig`.
        dim: d, of the items' vectors.

    Attributes:
        background: (d, d), a Y^T Y of all items; of a model that is not fitted, 1.
        items: (), how many items have events.
    """

    background: Tensor
    items: Tensor

    def __init__(self, config: ALSConfig, dim: int) -> None:
        super().__init__()
        self.history = config.history
        self.unobserved, self.regularisation, self.power = config.unobserved, config.regularisation, config.power
        self.piece = PIECE  # TorchScript knows no globals
        self.register_buffer("background", torch.eye(dim))
        self.register_buffer("items", torch.ones(()))

    def forward(self, events: Tensor, lengths: Tensor) -> Tensor:
        """Return the vectors of B users.

        Args:
            events: (N, d), the vectors of their items, one user after another.
            lengths: (B,), how many each has.

        Returns:
            (B, d) float32; zeros where there are no items.
        """
        # Float64: two float32 machines then agree on what they serve, and autocast leaves it alone.
        size, starts = events.size(1), lengths.cumsum(0) - lengths
        vectors = torch.cat([events, events.new_zeros(1, size)]).double()
        if exporting():  # all at once
            return self._solved(vectors, starts, lengths, longest(lengths, events.size(0))).float()
        most = int(lengths.max()) if lengths.numel() else 0
        found = [vectors.new_zeros(0, size)]
        step = max(self.piece // (max(most, size) * size), 1)
        for first in range(0, lengths.size(0), step):
            last = first + step
            found.append(self._solved(vectors, starts[first:last], lengths[first:last], most))
        return torch.cat(found).float()

    def _solved(self, vectors: Tensor, starts: Tensor, count: Tensor, most: int) -> Tensor:
        """Return what `forward` does of b users in float64, (b, d).

        Args:
            vectors: (N + 1, d), the last of zeros.
            starts: (b,), where each user's begin.
            count: (b,), how many each has.
            most: of any.
        """
        size, places = vectors.size(1), torch.arange(most, device=vectors.device)
        place = starts.unsqueeze(1) + places  # (b, L)
        place = place.masked_fill(places >= count.unsqueeze(1), vectors.size(0) - 1)
        own = vectors.index_select(0, place.flatten()).view(count.size(0), most, size)
        regular = self.regularisation * (count + self.unobserved * self.items.double()) ** self.power
        matrix = self.background.double() + torch.diag_embed(regular.unsqueeze(1).expand(-1, size))
        matrix = matrix + own.transpose(1, 2) @ own
        lower = torch.linalg.cholesky(matrix)
        return torch.cholesky_solve(own.sum(1).unsqueeze(2), lower).squeeze(2)

    def encode(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Return the vectors of users; arguments as of modules.models.dssm.Tower, of the history alone."""
        return self(values[self.history], lengths[self.history])


class Items(nn.Module):
    """The vectors of the table as they are."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def encode(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Return the vector of each row's item, zeros where it has none; arguments as of modules.models.dssm.Tower."""
        return jagged.rows(values[self.key], lengths[self.key]).float()


class Towers(nn.Module):
    """Both vectors of each row; see modules.models.dssm.Towers.

    Attributes:
        names: the features of each side, "user" and "item".

    Raises:
        BadInput: a feature is missing, of another type, or one too many.
    """

    def __init__(self, config: ALSConfig, inputs: Inputs) -> None:
        super().__init__()
        for key, name, known, kind in (
            ("key", config.key, inputs.ids, "an id"),
            ("history", config.history, inputs.sequences, "a sequence"),
        ):
            if name not in known:
                raise BadInput(f"model.{key}: there is no feature '{name}' that is {kind}{nearest(name, known)}")
        others = [
            name
            for name in dict.fromkeys([*inputs.ids, *inputs.sequences, *inputs.dense])
            if name not in (config.key, config.history)
        ]
        if others:
            raise BadInput(f"features.{others[0]}: als knows the item and the history alone; leave the others out")
        self.names = {"user": [config.history], "item": [config.key]}
        self.user = FoldIn(config, inputs.ids[config.key])
        self.item = Items(config.key)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the user's and the item's vector of each row, (B, d) both."""
        user, item = (
            self.user.encode(values, lengths, dense, weights),
            self.item.encode(values, lengths, dense, weights),
        )
        return jagged.of_rows(user, lengths, dense.size(0)), jagged.of_rows(item, lengths, dense.size(0))


@register_model("als", ALSConfig)
class ALS(Network):
    """score = <x, y>: the user's vector, solved from her history, and the item's.

    Nothing of it is learned by gradients: trainers.recall.solving solves for the table of items' vectors and fills
    `towers.user`'s buffers.

    Args:
        config: see `ALSConfig`.
        inputs: the recipe's features: the item and the history.
        tasks: one.

    Raises:
        BadInput: see `Towers`; several tasks.
    """

    if TYPE_CHECKING:  # TorchScript would read it
        key: str

    shares = True

    def __init__(self, config: ALSConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        if len(tasks) > 1:
            raise BadInput(f"tasks: als fits the events of one task, and here are {len(tasks)}")
        self.task = next(iter(tasks))
        self.key = config.key
        self.towers = Towers(config, inputs)

    def forward(
        self,
        values: dict[str, Tensor],
        lengths: dict[str, Tensor],
        dense: Tensor,
        weights: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> dict[str, Tensor]:
        user, item = self.towers(values, lengths, dense, weights)
        return {self.task: (user * item).sum(1)}
