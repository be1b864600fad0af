"""What networks that find the next item of a history have in common: the item's vector, targets, loss, both towers.

A kind of its own is a file with its config, over `NextItemConfig`, its `Body`, which reads the events, and a `NextItem`
that answers one.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import ModelConfig, Task
from livetrain.configs.values import Dropout, FeatureName, real
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged, products
from livetrain.modules.layers.bottom import Attention, Query, check_features, check_parallel
from livetrain.modules.layers.candidates import Candidates, against_others, gathered, gbce, none_where
from livetrain.modules.layers.gather import Gather
from livetrain.modules.layers.masks import ItemDropout, masked
from livetrain.modules.layers.precision import widen
from livetrain.modules.layers.rarity import Rarity
from livetrain.modules.layers.sequence import Attention as SelfAttention
from livetrain.modules.layers.sequence import newest
from livetrain.modules.network import TARGETS, Network


class NextItemConfig(ModelConfig):
    """The keys of every model that finds the next item."""

    attention: list[Attention] = Field(
        min_length=1, max_length=1, description="the history; the first query feature tells items apart"
    )
    pooled: list[FeatureName] = Field([], description="sequence features of the user that are only averaged")
    dropout: Dropout = Field(0.2, description="of the network that reads the events")
    item_dropout: Dropout = Field(
        0.2, description="of items' vectors: in a step the same numbers of an item everywhere"
    )
    loss: Literal["softmax", "gbce"] = Field("softmax", description="of a target against the candidates")
    calibration: Annotated[float, real(0, 1)] = Field(0.75, description="of loss: gbce, 0 for plain BCE")
    cosine: bool = Field(False, description="compare by the cosine instead of the inner product")
    temperature: Annotated[float, real(1e-3, 1000)] = Field(1.0, description="divides scores in the loss")
    log_q: bool = Field(True, description="loss softmax: a candidate counts 1 / q times, q its chance to be one")
    in_batch: bool = Field(False, description="the items of other rows are candidates beside those of the step too")
    every_event: bool = Field(True, description="learn the next item of every event, rather than of the newest alone")

    @model_validator(mode="after")
    def _can_be_sure(self) -> "NextItemConfig":
        if self.cosine and self.temperature >= 1:
            raise BadInput(
                f"model.temperature: of cosines, which are at most 1, a temperature of {self.temperature:g} leaves "
                "every item nearly the same probability; set 0.05, or cosine: false"
            )
        for key, loss in (("calibration", "gbce"), ("log_q", "softmax")):
            if self.loss != loss and getattr(self, key) != type(self).model_fields[key].default:
                raise BadInput(f"model.{key}: is of loss {loss} alone; leave it out, or say loss: {loss}")
        return self


class Item(nn.Module):
    """v = E[id] + U [side ids, vector]: the vector of an item, be it an event's, a row's, or a candidate's.

    E and the side ids' embeddings are rows of tables. Without side ids and vectors an item is its row of E alone.

    Args:
        part: the history; its query features are the item's.
        inputs: the recipe's.
    """

    events: list[str]

    def __init__(self, part: Attention, inputs: Inputs) -> None:
        super().__init__()
        self.query, self.events = Query(part, inputs), list(part.events)
        self.size = inputs.ids[part.query[0]]
        others = sum(inputs.sequences[name] for name in part.events) - self.size
        self.project: nn.Module = nn.Identity()
        if others:
            project = nn.Linear(others, self.size, bias=False)
            nn.init.normal_(project.weight, std=0.02)
            self.project = project

    def forward(self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor) -> Tensor:
        """Return the item of each row, (B, d); arguments as of `Query`."""
        return self.of(self.query(values, lengths, dense))

    def of_events(self, values: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        """Return the items of the events, (N, d)."""
        check_parallel(lengths, self.events)
        return self.of(torch.cat([values[name] for name in self.events], 1))

    def of(self, x: Tensor) -> Tensor:
        """Return items of their embeddings one after the other."""
        if x.size(1) == self.size:
            return x
        return x[:, : self.size] + self.project(x[:, self.size :])


class Body(nn.Module):
    """What reads the events of a kind: a subclass overrides `forward`.

    Attributes:
        interests: K, how many vectors a user has; of a body with several `forward` answers (N, K, d).
    """

    interests = 1

    def forward(self, events: Tensor, count: Tensor, values: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        """Return the state behind each event, (N, d): what is known of the user once she had it, and nothing later.

        Args:
            events: (N, d), N = the sum of `count`; the rows' events one after the other, oldest first.
            count: (B,) int64.
            values: feature -> (sum of lengths, dim), as the network got them.
            lengths: likewise.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")


class ItemTower(nn.Module):
    """The item's vector by itself.

    Args:
        item: how it is made.
        columns: which columns of the dense tensor are the item's.
        cosine: make it of length 1.
    """

    columns: Tensor

    def __init__(self, item: Item, columns: list[int], cosine: bool) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long), persistent=False)
        self.item, self.cosine = item, cosine

    def encode(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Return the vector of each row, (B, d); arguments as `Network.forward`'s, with this side's columns alone."""
        return self.compared(self.item(values, lengths, dense))

    def compared(self, x: Tensor) -> Tensor:
        """Return vectors (N, d) as users' are multiplied by them."""
        x = widen(x)
        return F.normalize(x, dim=1) if self.cosine else x


class UserTower(nn.Module):
    """u = h + C c: the state behind the newest event, and what else is known of the user.

    Args:
        config: see `NextItemConfig`.
        inputs: the features of this side.
        item: how items are made.
        body: reads the events.
        columns: which columns of the dense tensor are the user's.
    """

    columns: Tensor
    side: list[str]

    def __init__(self, config: NextItemConfig, inputs: Inputs, item: Item, body: Body, columns: list[int]) -> None:
        super().__init__()
        part, size = config.attention[0], item.size
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long), persistent=False)
        self.item, self.body, self.cosine, self.interests = item, body, config.cosine, body.interests
        self.history, self.side = part.events[0], list(part.side)
        side = sum(inputs.sequences[name] for name in part.side)
        self.project_side = nn.Linear(side, size, bias=False) if part.side else None
        self.gather = Gather(inputs, config.pooled)
        self.context = nn.Linear(self.gather.width, size, bias=False) if self.gather.width else None
        if self.context is not None:
            nn.init.zeros_(self.context.weight)  # at first users differ by their histories

    def encode(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Return the vector of each row, (B, d), or (B, K, d); arguments as of `ItemTower.encode`."""
        states, count = self.states(self.item.of_events(values, lengths), values, lengths)
        states = _of_rows(newest(states, count), lengths, dense.size(0))
        return self.compared(_joined(states, self.of_context(values, lengths, dense)))

    def states(self, events: Tensor, values: dict[str, Tensor], lengths: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what `Body` answers of events, and how many each row has."""
        count = lengths[self.history]
        if self.project_side is not None:
            check_parallel(lengths, [self.history] + self.side)
            events = events + self.project_side(torch.cat([values[name] for name in self.side], 1))
        return widen(self.body(events, count, values, lengths)), count

    def of_context(self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor) -> Tensor | None:
        """Return what a row's other features add to a user's vector, (B, d), if there are any."""
        if self.context is None:
            return None
        return widen(self.context(self.gather(values, lengths, dense)))

    def compared(self, x: Tensor) -> Tensor:
        """Return vectors (..., d) as items' are multiplied by them."""
        return F.normalize(x, dim=-1) if self.cosine else x


class Towers(nn.Module):
    """Both vectors of each row.

    Args:
        config: see `NextItemConfig`.
        inputs: the recipe's features.
        body: reads the events.

    Attributes:
        names: the features of each side, "user" and "item".
        interests: how many vectors a user has.
    """

    def __init__(self, config: NextItemConfig, inputs: Inputs, body: Body) -> None:
        super().__init__()
        part = config.attention[0]
        known = list(dict.fromkeys([*inputs.ids, *inputs.sequences, *inputs.dense]))
        items = [*part.query, *(inputs.like[name] for name in part.events if name in inputs.like)]
        self.names = {"user": [n for n in known if n not in items], "item": [n for n in known if n in items]}
        self.interests = body.interests
        sides = {side: inputs.only(names) for side, names in self.names.items()}
        columns = {side: [c for c, n in enumerate(inputs.dense) if n in names] for side, names in self.names.items()}
        item = Item(part, Inputs(sides["item"].ids, inputs.sequences, sides["item"].dense, inputs.like))
        self.user = UserTower(config, sides["user"], item, body, columns["user"])
        self.item = ItemTower(item, columns["item"], config.cosine)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the vectors of each row, (B, d) or of the user (B, K, d), and (B, d); arguments as of the network."""
        user = self.user.encode(values, lengths, dense.index_select(1, self.user.columns), weights)
        return user, self.item.encode(values, lengths, dense.index_select(1, self.item.columns), weights)


class NextItem(Network):
    """score = <u, v>, u what a network makes of the user's events, v the item's vector.

    In training every event is followed by a target: the next event, and behind the newest one the row's item. Each
    stands against the candidates, all of which are items of the global batch: those that a step shares
    (data.negatives.shared), or where there are none, or with `in_batch`, the items of the rows. The losses are
    `against_others` and `gbce`. Where the user has features besides, each row has one more target, its first event:
    before any event the user is her context alone.

    Events, targets and candidates are vectors of one function, see `Item`.

    Args:
        config: see `NextItemConfig`.
        inputs: the recipe's features.
        tasks: one.

    Raises:
        BadInput: the config does not fit the features; several tasks.
    """

    if TYPE_CHECKING:  # TorchScript would read these
        key: str
        events: str

    shares = takes_shared = True
    __jit_ignored_attributes__ = ["rarity", "item_dropout"]  # which only training needs

    def __init__(self, config: NextItemConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        if len(tasks) > 1:
            raise BadInput(
                f"tasks: {config.kind} learns one vector of each side, for one task, and here are {len(tasks)}"
            )
        part = config.attention[0]
        check_features(config.attention, config.pooled, inputs)
        for query, event in zip(part.query, part.events, strict=True):
            if inputs.tables.get(query) != inputs.tables.get(event):
                raise BadInput(
                    f"model.attention.0: query '{query}' is of table {inputs.tables[query]} and its events '{event}' "
                    f"are of {inputs.tables[event]}; an item has one vector wherever it stands; name one table for both"
                )
        self.task = next(iter(tasks))
        self.key, self.events = part.query[0], part.events[0]
        self.config = config
        self.towers = Towers(config, inputs, self.body(config, inputs, inputs.ids[self.key]))
        self.item_dropout = ItemDropout(config.item_dropout)
        self.rarity = Rarity() if config.log_q or config.loss == "gbce" else None

    def body(self, config: Any, inputs: Inputs, width: int) -> Body:
        """Return what reads the events of this kind.

        Args:
            config: the kind's.
            inputs: the recipe's features.
            width: d, the columns of the first query feature's table.
        """
        raise NotImplementedError(f"{type(self).__name__} has no body")

    def forward(
        self,
        values: dict[str, Tensor],
        lengths: dict[str, Tensor],
        dense: Tensor,
        weights: Tensor | None = None,
        keys: Tensor | None = None,
        often: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if self.training and not torch.jit.is_scripting():
            assert weights is not None
            assert keys is not None  # see Network.key
            return self._learn(values, lengths, dense, weights, keys, often)
        user, item = self.towers(values, lengths, dense, weights)
        return {self.task: products.of_pairs(user, item)}

    @torch.jit.unused
    def _learn(
        self,
        values: dict[str, Tensor],
        lengths: dict[str, Tensor],
        dense: Tensor,
        weights: Tensor,
        keys: Tensor,
        often: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return the targets' logits; arguments as of `forward`, where B = len(weights)."""
        keys, event_keys = keys.split([values[self.key].size(0), keys.size(0) - values[self.key].size(0)])
        request = jagged.request_of(lengths)
        if request is not None and self.events in values:
            place, _ = jagged.repeated(lengths[self.events], request, jagged.events_of(lengths, self.events))
            event_keys = event_keys.index_select(0, place)
        values, lengths, _ = jagged.each_its_own(values, lengths, None)
        rows, user, item = weights.size(0), self.towers.user, self.towers.item
        there = lengths[self.key] > 0  # (B + n,)
        keys = jagged.rows(keys.unsqueeze(1), lengths[self.key]).squeeze(1)
        masks = self.item_dropout.masks(item.item.size)
        items = masked(item.item(values, lengths, dense.index_select(1, item.columns)), keys, masks)
        events = masked(item.item.of_events(values, lengths), event_keys, masks)
        own = {name: each[:rows] for name, each in lengths.items()}
        states, count = user.states(events, values, own)
        context = user.of_context(values, own, dense[:rows].index_select(1, user.columns))
        taught = there[:rows] & (weights > 0)
        with torch.autocast(dense.device.type, enabled=False):
            items, events = widen(items), widen(events)
            candidates = self._candidates(item.compared(items), keys, there, taught, often)
            if not self.config.every_event:
                found = user.compared(_joined(newest(states, count), context))
                taught = taught & ((count > 0) | (context is not None))
                return {self.task: self._logits(found, item.compared(items[:rows]), keys[:rows], taught, candidates)}
            state, target, each = _pairs(count, events.size(0), context is not None)
            if context is not None:
                states = torch.cat([states, states.new_zeros(1, *states.shape[1:])])
                context = jagged.spread(context, jagged.segments(each, state.size(0)))
            found = user.compared(_joined(states.index_select(0, state), context))
            targets = item.compared(torch.cat([events, items[:rows]]).index_select(0, target))
            taught = torch.cat([torch.ones_like(event_keys, dtype=torch.bool), taught]).index_select(0, target)
            wanted = torch.cat([event_keys, keys[:rows]]).index_select(0, target)
            return {self.task: self._logits(found, targets, wanted, taught, candidates), TARGETS: each}

    def _candidates(
        self, items: Tensor, keys: Tensor, there: Tensor, taught: Tensor, often: Tensor | None
    ) -> Candidates:
        """Return what targets are compared with; the first rows, of which `taught` (B,) says, are the batch's."""
        beside = often is None or self.config.in_batch
        own = taught if beside else torch.zeros_like(taught)
        return gathered(items, keys, own, there[taught.size(0) :], often, self.rarity if beside else None)

    def _logits(self, states: Tensor, targets: Tensor, keys: Tensor, taught: Tensor, candidates: Candidates) -> Tensor:
        """Return the logit of each of P targets.

        Args:
            states: (P, d), or (P, K, d), of which the one counts that is nearest to the target.
            targets: (P, d).
            keys: (P,).
            taught: (P,) bool; there is nothing to learn from the others.
            candidates: of all ranks.
        """
        config = self.config
        if states.dim() == 3:
            nearest = (states * targets.unsqueeze(1)).sum(2).argmax(1)
            states = states[torch.arange(states.size(0), device=states.device), nearest]
        states = states / config.temperature
        scores = (states * targets).sum(1)
        if config.loss == "gbce":
            logits = gbce(states, scores, keys, candidates, config.calibration)
        else:
            logits = against_others(states, scores, keys, candidates, config.log_q)
        return none_where(taught, logits)


def check_places(key: str, places: int, config: NextItemConfig, inputs: Inputs) -> None:
    """Raise BadInput where a history is longer than a body has places for, which would be its newest events alone.

    Args:
        key: of the config, whose value `places` is.
        places: events, from the oldest on, that have one of their own.
        config: names the history.
        inputs: the recipe's features.
    """
    history = config.attention[0].events[0]
    if inputs.limits.get(history, 0) > places:
        raise BadInput(
            f"model.{key}: {places} is less than the max_length {inputs.limits[history]} of '{history}', whose newest "
            "events would share a place; give both one number"
        )


def _joined(states: Tensor, context: Tensor | None) -> Tensor:
    """Return states (P, d) or (P, K, d) with what the users' other features add, (P, d), to each."""
    if context is None:
        return states
    return states + (context if states.dim() == 2 else context.unsqueeze(1))


def _of_rows(x: Tensor, lengths: dict[str, Tensor], size: int) -> Tensor:
    """Do what jagged.of_rows does, also of (1, K, d)."""
    return x.expand(size, -1, -1) if x.dim() == 3 and x.size(0) == 1 else jagged.of_rows(x, lengths, size)


def _pairs(count: Tensor, total: int, begins: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return which state meets which target.

    Args:
        count: (B,) events of each row.
        total: N, their sum.
        begins: a row's first event is a target too, of the state before any event.

    Returns:
        (P,) the state: an event, or N before any; (P,) the target: an event, or N + the row whose item it is; (B,) how
        many each row has.

    Example: rows of two events, of none, and of one.
        >>> _pairs(torch.tensor([2, 0, 1]), 3, False)
        (tensor([0, 1, 2]), tensor([1, 3, 5]), tensor([2, 0, 1]))
        >>> _pairs(torch.tensor([2, 0, 1]), 3, True)
        (tensor([3, 0, 1, 3, 3, 2]), tensor([0, 1, 3, 4, 2, 5]), tensor([3, 1, 2]))
    """
    each = count + 1 if begins else count
    size = total + count.size(0) if begins else total
    row = jagged.segments(each, size)
    place = torch.arange(size, device=count.device)
    nth = place - (each.cumsum(0) - each).index_select(0, row)  # of the row's
    first = (count.cumsum(0) - count).index_select(0, row)
    event = first + nth - (1 if begins else 0)  # -1 within the row before any
    state = torch.where(event < first, total, event)
    target = torch.where(event + 1 < first + count.index_select(0, row), event + 1, total + row)
    return state, target, each


def check_heads(heads: int, width: int) -> None:
    """Raise BadInput where heads do not divide the items' vectors."""
    if width % heads:
        raise BadInput(f"model.heads: {heads} heads do not divide the {width} columns of the items' table")


def xavier(module: nn.Module) -> None:
    """Draw all matrices of a module by Glorot's normal distribution, as RecTools does.

    What makes an attention's queries, keys and values is drawn as the one matrix that PyTorch's own attention has, and
    its biases begin at zero, as they do there.
    """
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter)
    for part in module.modules():
        if isinstance(part, SelfAttention):
            for layer in (part.query, part.keys):
                nn.init.normal_(layer.weight, std=math.sqrt(0.5 / layer.in_features))
            for layer in (part.query, part.keys, part.out):
                nn.init.zeros_(layer.bias)
