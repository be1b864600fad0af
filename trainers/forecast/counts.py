"""What a training step computes, counted by taking it on a few rows: operators, their work, collectives.

The step is the recipe's own, from hashing to the dense optimizer, in a process group of as many ranks as are asked for,
of which only this one exists. It is taken with a few rows, and with two and three times as many; a count is a
polynomial of the number of rows (of degree 2 where rows meet, as in losses over a batch's items), so three give that of
any batch. Sharded tables are left out: what they take follows from the plan. A network that looks at values is counted
like any other.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from livetrain.configs.schema import Recipe
from livetrain.modules.layers import (
    compiled,
    others,  # noqa: F401  (defines the operators that have formulas here)
)
from livetrain.modules.model import Model, ReplicatedCollection
from livetrain.modules.optimizers import dense_optimizer
from livetrain.trainers.forecast.rows import EACH, made_up
from livetrain.trainers.train.gradients.combination import Combination
from livetrain.trainers.train.step import Step

_SMALL = 1000  # rows of a sharded table here: nothing depends on how many there are
_OTHERS = 1 << 40  # between the groups of one rank's rows and of another's


@dataclass(frozen=True)
class Counts:
    """What a rank's step takes without its sharded tables.

    Attributes:
        operators: calls of operators that compute, which views do not; on a GPU each is at least one kernel.
        flops: multiplications and additions of matrix products.
        products: bytes read and written by those.
        bytes: read and written by all other operators, each by itself, as where none are fused.
        collectives: bytes of each all-reduce, in their order; an all-gather takes as long as an all-reduce of half of
            what it brings together.
    """

    operators: float
    flops: float
    products: float
    bytes: float
    collectives: tuple[float, ...] = field(default=())


def count(recipe: Recipe, rows: float, world: int, lengths: dict[str, float]) -> Counts:
    """Return what a step of one of `world` ranks takes.

    Args:
        recipe: the run.
        rows: of a rank's batch.
        world: number of ranks.
        lengths: mean ids per row of each feature that has ids.

    Example:
        >>> from livetrain.configs.load import load_recipe
        >>> recipe = load_recipe("configs/recipes/din_ml1m.yaml")
        >>> lengths = {name: 10.0 if feature.lists else 1.0 for name, feature in recipe.features.items()}
        >>> one, two = (count(recipe, rows, 8, lengths) for rows in (5000, 10000))
        >>> one.operators == two.operators, round(two.flops / one.flops, 1)
        (True, 2.0)
    """
    small = {
        name: table
        if table.sharding == "data_parallel" or table.rows <= _SMALL
        else table.model_copy(update={"rows": _SMALL})
        for name, table in recipe.tables.items()
    }
    # Autocast is not counted: what it saves is in the hardware's speed by precision.
    train = recipe.train.model_copy(update={"precision": "float32"})
    # The C++ passes of a training in this process hide their operators.
    with compiled.unused(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        taken = _Taken(recipe.model_copy(update={"tables": small, "train": train}), lengths)
        found = [taken.count(times * EACH, world) for times in (1, 2, 3)]
    figures = zip(*((each.flops, each.products, each.bytes) for each in found), strict=True)
    flops, products, moved = (_at(rows / EACH, each) for each in figures)
    sent = zip(*(each.collectives for each in found), strict=True)
    return Counts(
        max(each.operators for each in found),
        flops,
        products,
        moved,
        tuple(_at(rows / EACH, each) for each in sent),
    )


def _at(times: float, found: tuple[float, ...]) -> float:
    """Return the value at `times` of the parabola through the values at 1, 2 and 3."""
    one, two, three = found
    bend = (three - 2 * two + one) / 2
    return one + (two - one) * (times - 1) + bend * (times - 1) * (times - 2)


class _Taken:
    """A recipe's step with all that a rank needs to take it."""

    def __init__(self, recipe: Recipe, lengths: dict[str, float]) -> None:
        self.recipe, self.lengths = recipe, lengths
        model = Model(recipe)
        replicated: list[nn.Parameter] = []
        for name, collection in model.tables.items():
            if isinstance(collection, ReplicatedCollection):
                replicated += collection.parameters()
            else:
                model.tables[name] = _Elsewhere(collection)
        self.step, dense = Step(model, recipe).train(), [*model.dense.parameters()]
        self.combination = Combination(recipe, model, dense, replicated, torch.device("cpu"))
        self.combination.batches = None  # as GPUs take the tasks' passes, of which a forecast is
        self.optimizers = [dense_optimizer(recipe).make(part) for part in (dense, replicated) if part]
        self.clip, self.dense = recipe.optimizers.dense.clip_norm, dense

    def count(self, rows: int, world: int) -> Counts:
        """Return what a step takes; one before it makes what is made once."""
        batch = made_up(self.recipe, rows, self.lengths)
        self._take(batch)
        with _pretended(world), _Counting(world) as found:
            self._take(batch)
        return Counts(found.operators, found.flops, found.products, found.bytes, tuple(found.collectives))

    def _take(self, batch: Any) -> None:
        losses, _ = self.step(batch)
        self.combination.backward(losses)
        self.combination.take()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.dense, self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


class _Elsewhere(nn.Module):
    """Sharded tables: their embeddings appear, and what they cost is not counted here."""

    def __init__(self, collection: nn.Module) -> None:
        super().__init__()
        self._collection = [collection]  # in a list: its parameters are none of this module's

    def forward(self, features: Any) -> Any:
        with _uncounted(), torch.no_grad():
            found = self._collection[0](features)
        if isinstance(found, KeyedTensor):
            return KeyedTensor(found.keys(), found.length_per_key(), found.values().requires_grad_())
        return {
            name: JaggedTensor(part.values().requires_grad_(), lengths=part.lengths()) for name, part in found.items()
        }


@contextlib.contextmanager
def _pretended(world: int) -> Iterator[None]:
    """Make this process rank 0 of a group whose other ranks do not exist, and whose collectives move nothing."""
    if world == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


_now: list["_Counting"] = []  # what counts at present


@contextlib.contextmanager
def _uncounted() -> Iterator[None]:
    held, _now[:] = list(_now), []
    try:
        yield
    finally:
        _now[:] = held


class _Counting(TorchDispatchMode):
    """Adds up what operators do below autograd, and answers for the ranks that do not exist."""

    def __init__(self, world: int) -> None:
        super().__init__()
        self._world = world
        self.operators, self.flops, self.products, self.bytes = 0, 0.0, 0.0, 0.0
        self.collectives: list[float] = []

    def __enter__(self) -> "_Counting":
        _now.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _now.remove(self)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace in ("c10d", "livetrain_sums"):  # PyTorch's, and those of modules.layers.distributed
            self._exchange(func._schema.name, args)
        elif self in _now and not (func.is_view or func in _FREE):
            self.operators += 1
            moved = sum(map(_size, tree_leaves((args, kwargs, out))))
            if (flops := flop_registry.get(func.overloadpacket)) is None:
                self.bytes += moved
            else:
                self.flops, self.products = self.flops + flops(*args, **kwargs, out_val=out), self.products + moved
        return out

    def _exchange(self, name: str, args: Any) -> None:
        gathers = name == "c10d::_allgather_base_"
        self.collectives.append(sum(map(_size, tree_leaves(args[0]))) / (2 if gathers else 1))
        if gathers:  # every rank's rows are like this one's; integers, which name groups, are the rank's own
            everyone, own = args[0].view(self._world, -1), args[1].reshape(1, -1)
            apart = torch.arange(self._world).unsqueeze(1) * _OTHERS
            everyone.copy_(own if own.is_floating_point() else own + apart)


@register_flop_formula(torch.ops.livetrain.logsumexp_of_others)
def _of_scores(rows: torch.Size, columns: torch.Size, *_: Any, **__: Any) -> int:
    """Return the operations of scores (B, N) of width w, whose own operators are hidden."""
    return 2 * rows[0] * columns[0] * rows[1]


@register_flop_formula(torch.ops.livetrain.logsumexp_of_others_backward)
def _of_scores_back(_: torch.Size, rows: torch.Size, columns: torch.Size, *__: Any, **___: Any) -> int:
    """Return those of the scores once more, and of both factors' gradients."""
    return 3 * _of_scores(rows, columns)


_ATEN = torch.ops.aten
_FREE = {
    *(_ATEN.empty.memory_format, _ATEN.empty_like.default, _ATEN.empty_strided.default, _ATEN.new_empty.default),
    *(_ATEN.detach.default, _ATEN._local_scalar_dense.default, _ATEN._unsafe_view.default),
}


def _size(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0
