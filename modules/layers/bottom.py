"""The bottom of the ranking networks: all features of a row, histories seen from the candidate, as one vector."""

from collections.abc import Iterable, Sequence
from typing import Annotated, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import ModelConfig, Section
from livetrain.configs.values import FeatureName, Together, Units
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.layers.attention import ActivationUnit, Looking, looked
from livetrain.modules.layers.gather import Gather
from livetrain.modules.layers.mlp import Activation


class Attention(Section):
    """One history and the candidate that looks at it."""

    query: Annotated[list[FeatureName], Together()] = Field(
        min_length=1, description="id features of the candidate; what events carry it has by their `like`"
    )
    events: Annotated[list[FeatureName], Together()] = Field(
        min_length=1, description="sequence features of the past events, one per query feature"
    )
    side: list[FeatureName] = Field([], description="sequence features that an event has and the candidate has not")

    @model_validator(mode="after")
    def _paired(self) -> "Attention":
        if len(self.query) != len(self.events):
            raise BadInput(
                f"model.attention: {len(self.query)} query features ({', '.join(self.query)}) face {len(self.events)} "
                f"events ({', '.join(self.events)}); pair them one to one and move the rest to side"
            )
        return self


class PerHistory(nn.ModuleList):
    """A list with one module per history, in the recipe's order.

    A warm start takes its entries by the features that the histories read, those of any other list by their places.

    Args:
        modules: one per history.
        parts: the histories.
        widths: of what the network gathers of each.
    """

    def __init__(self, modules: Iterable[nn.Module], parts: Sequence[Attention], widths: Sequence[int]) -> None:
        super().__init__(modules)
        self.histories = [("+".join(part.events + part.side), width) for part, width in zip(parts, widths, strict=True)]


class HistoriesConfig(ModelConfig):
    """The keys by which a model says how it reads histories."""

    attention: list[Attention] = []
    pooled: list[FeatureName] = Field([], description="sequence features that are only averaged")


class BottomConfig(HistoriesConfig):
    """The keys of every model that begins with a `Bottom`."""

    attention_units: Units = Field([64, 16], min_length=1, description="hidden layers of the activation unit")
    softmax: bool = Field(False, description="normalise the attention over a row's events; DIN's paper does not")
    activation: Activation = "dice"


class Query(nn.Module):
    """The candidate's features that face those of an event, one after the other and as wide.

    Behind the embedding that faces events which carry vectors stands the candidate's own vector (`Inputs.like`).

    Args:
        part: the features.
        inputs: the recipe's.
    """

    query: list[str]
    beside: list[tuple[int, int]]

    def __init__(self, part: Attention, inputs: Inputs) -> None:
        super().__init__()
        self.query = list(part.query)
        self.beside = [inputs.beside(name) for name in part.events]

    def forward(self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor) -> Tensor:
        """Return each row's candidate, (B, d); arguments as `Bottom`'s."""
        parts: list[Tensor] = []
        for i, name in enumerate(self.query):
            start, width = self.beside[i]
            found = jagged.of_rows(jagged.rows(values[name], lengths[name]), lengths, dense.size(0))
            if width > 0:
                found = torch.cat([found, dense.narrow(1, start, width)], 1)
            parts.append(found)
        return torch.cat(parts, 1)


class History(nn.Module):
    """An activation unit with the names of the features it reads."""

    events: list[str]
    side: list[str]

    def __init__(self, part: Attention, config: BottomConfig, inputs: Inputs) -> None:
        super().__init__()
        self.query = Query(part, inputs)
        self.events = list(part.events)
        self.side = list(part.side)
        dim = sum(inputs.sequences[name] for name in part.events)
        side = sum(inputs.sequences[name] for name in part.side)
        self.width = dim + side
        self.unit = ActivationUnit(dim, side, config.attention_units, config.activation, config.softmax)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Return the pooled history, (B, width); arguments as `Bottom`'s."""
        first, size = self.events[0], dense.size(0)
        query, events, side = self._read(values, lengths, dense)
        if lengths[first].size(0) == size:
            return self.unit(query, events, side, lengths[first], weights)
        request = jagged.request_of(lengths)
        if request is not None:  # one history per request
            total = jagged.events_of(lengths, first)
            return self.unit(query, events, side, lengths[first], weights, request, total)
        return self.unit.shared(query, events, side)  # one history for all rows

    @torch.jit.unused
    def look(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> Looking:
        """Begin what `forward` does, in training; see `ActivationUnit.look`."""
        first, request = self.events[0], jagged.request_of(lengths)
        query, events, side = self._read(values, lengths, dense)
        if request is None or lengths[first].size(0) == dense.size(0):
            return self.unit.look(query, events, side, lengths[first], weights)
        total = jagged.events_of(lengths, first)
        return self.unit.look(query, events, side, lengths[first], weights, request, total)

    def _read(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return each row's candidate (B, d), the events (N, d), and (N, s) what they have besides, if anything."""
        check_parallel(lengths, self.events + self.side)
        query = self.query(values, lengths, dense)
        events = torch.cat([values[name] for name in self.events], 1)
        side: Tensor | None = None
        if len(self.side) > 0:
            side = torch.cat([values[name] for name in self.side], 1)
        return query, events, side


def check_parallel(lengths: dict[str, Tensor], names: list[str]) -> None:
    """Raise where the lists of one history differ in length in any row.

    Args:
        lengths: feature -> (B,).
        names: the history's features.

    Raises:
        BadInput: they do; ValueError when scripted.
    """
    for name in names:
        if not _parallel(lengths[name], lengths[names[0]]):
            complaint = (
                f"features {names[0]} and {name}: the lists of one history must have the same length in every row; "
                "mend the columns, or give both features one max_length"
            )
            if torch.jit.is_scripting():
                raise ValueError(complaint)
            else:  # noqa: RET506 (TorchScript needs the branch to leave BadInput out)
                raise BadInput(complaint)


def _parallel(one: Tensor, other: Tensor) -> bool:
    """Return whether two features have equal lengths, without waiting for a GPU, or in a compiled graph: there a kernel
    asserts it."""
    if one.is_cuda or (not torch.jit.is_scripting() and torch.compiler.is_compiling()):
        torch._assert_async((one == other).all())
        return True
    return torch.equal(one, other)


class Reading(nn.Module):
    """What makes one vector of a row's features, for whatever comes behind it: a subclass overrides `forward`.

    Attributes:
        width: of the vector.
    """

    width: int

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Build the vector of each row.

        Args:
            values: feature -> (sum of lengths, dim) embeddings; the sequences of one attention have equal lengths.
            lengths: feature -> (B,), or fewer of a feature that rows share, see `Network`.
            dense: (B, D), normalised.
            weights: (B,), 0 marks padding; None when serving.

        Returns:
            (B, width).

        Raises:
            ValueError: the sequences of one attention differ in length.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")


class Bottom(Reading):
    """x = [ids, mean of each pooled sequence, dense, each attention's sums], one vector per row.

    Args:
        config: see `BottomConfig`.
        inputs: the recipe's features.

    Attributes:
        width: of x.

    Raises:
        BadInput: the config names an unknown feature or pairs unequal dims, or a sequence feature is used nowhere.

    Source of the attention: Zhou et al., "Deep interest network", 1706.06978.
    """

    def __init__(self, config: BottomConfig, inputs: Inputs) -> None:
        super().__init__()
        check_features(config.attention, config.pooled, inputs)
        self.gather = Gather(inputs, config.pooled)
        histories = [History(part, config, inputs) for part in config.attention]
        self.histories = PerHistory(histories, config.attention, [history.width for history in histories])
        self.width = self.gather.width + sum(history.width for history in histories)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """See `Reading`."""
        parts = [self.gather(values, lengths, dense)]
        if self.training and not torch.jit.is_scripting():
            histories = cast(Sequence[History], self.histories)
            parts += looked([history.look(values, lengths, dense, weights) for history in histories])
            return torch.cat(parts, 1)
        for history in self.histories:
            parts.append(history(values, lengths, dense, weights))
        return torch.cat(parts, 1)


def check_features(attention: list[Attention], pooled: list[str], inputs: Inputs) -> None:
    """Raise BadInput where the keys `attention` and `pooled` of a model do not fit the recipe's features."""
    used: list[str] = []
    for i, part in enumerate(attention):
        check_history(f"model.attention.{i}", part, inputs)
        used += part.events + part.side
    _check_names("model.pooled", pooled, inputs.sequences, "sequence")
    for name in inputs.sequences:
        if name not in used + pooled:
            raise BadInput(
                f"features.{name}: no part of the model reads this sequence; name it in model.attention or "
                "model.pooled, or remove it"
            )


def check_history(where: str, part: Attention, inputs: Inputs) -> None:
    """Raise BadInput where one history, at a key of the config, does not fit the recipe's features."""
    _check_names(f"{where}.query", part.query, inputs.ids, "id")
    _check_names(f"{where}.events", part.events, inputs.sequences, "sequence")
    _check_names(f"{where}.side", part.side, inputs.sequences, "sequence")
    for query, event in zip(part.query, part.events, strict=True):
        embedding = inputs.sequences[event] - inputs.beside(event)[1]
        if inputs.ids[query] != embedding:
            raise BadInput(
                f"{where}: query '{query}' has dim {inputs.ids[query]} and its events '{event}' dim {embedding}; "
                "give both one table, or tables of one dim"
            )


def _check_names(key: str, names: list[str], known: dict[str, int], kind: str) -> None:
    for name in names:
        if name not in known:
            raise BadInput(f"{key}: there is no {kind} feature '{name}'{nearest(name, known)}")
