"""The optimizers of tables, fused into their backward pass, and those of the dense part, by their kinds."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed.utils import optimizer_type_to_emb_opt_type
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from livetrain.configs.registry import DENSE_OPTIMIZERS, OPTIMIZERS
from livetrain.configs.schema import DenseOptimizer, Recipe, SparseOptimizer
from livetrain.modules.tables.adam import RowAdam, Steps
from livetrain.modules.tables.touched import Touched

# What plain optimizers call their state of a table, and torchrec that of its fused ones; the count of steps changes
# nothing, for no optimizer of tables lowers its own rate.
FUSED_NAMES = {"sum": "momentum1", "exp_avg": "momentum1", "exp_avg_sq": "exp_avg_sq"}

_ON_CPU = (
    *(EmbOptimType.EXACT_ROWWISE_ADAGRAD, EmbOptimType.EXACT_ADAGRAD, EmbOptimType.EXACT_SGD),  # fbgemm's
    EmbOptimType.ADAM,  # modules.tables.host's
)


class TableOptimizer:
    """One kind of optimizer for tables. The sharder, the planner, the checks and the doctor ask it.

    Args:
        config: the recipe's section.

    Attributes:
        torch_class: what it is on plain PyTorch; torchrec must know a fused kernel of it.
        devices: where such a kernel is; found when the kind is registered.
        decays: weight_decay on the rows that a batch touches is the same on every device.
        by_columns: it moves every number of a row by itself, so that a table may be split by columns.
        replicated: what `replica` returns moves the rows that a batch touches as the fused kernel does, and no others.
        counts: what it does to a row depends on how many steps were trained.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]]
    devices: ClassVar[tuple[str, ...]]
    decays: ClassVar[bool] = False
    by_columns: ClassVar[bool] = False
    replicated: ClassVar[bool] = True
    counts: ClassVar[bool] = False

    def __init__(self, config: SparseOptimizer) -> None:
        self.config = config

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `torch_class`, which the fused kernel takes too."""
        found = {"lr": self.config.lr, "eps": self.config.eps}
        return found | ({"weight_decay": self.config.weight_decay} if self.config.weight_decay else {})

    def fused(self) -> dict[str, Any]:
        """Return further arguments of fbgemm's kernel, which `torch_class` has not."""
        return {}

    def replica(self, parameter: nn.Parameter, touched: Touched, steps: Steps) -> torch.optim.Optimizer:
        """Return the optimizer of a table that every rank holds whole (sharding: data_parallel).

        `torch_class` leaves rows without a gradient alone, all but its decay, which is added here to the gradient of
        the rows touched: g + weight_decay w, as in fbgemm's L2.

        Args:
            parameter: (rows, dim).
            touched: knows the rows that the global batch looked up.
            steps: how many were trained.
        """
        arguments = self.arguments()
        decay = arguments.pop("weight_decay", 0.0)
        made = self.torch_class([parameter], **arguments)

        def decayed(*_: Any) -> None:
            if parameter.grad is not None:
                parameter.grad.addcmul_(parameter.detach(), touched.rows().unsqueeze(1), value=decay)

        if decay:
            made.register_step_pre_hook(decayed)
        return made

    @staticmethod
    def state_bytes(dim: int) -> int:
        """Return the bytes of state of a table's row of `dim` columns."""
        raise NotImplementedError


def register_optimizer(
    kind: str, config: type[SparseOptimizer] = SparseOptimizer
) -> Callable[[type[TableOptimizer]], type[TableOptimizer]]:
    """Make the decorated `TableOptimizer` that of ``optimizers.sparse.kind: kind``.

    Args:
        kind: the name in recipes.
        config: checks the recipe's section; a subclass of `SparseOptimizer` where the kind has keys of its own.

    Raises:
        TypeError: the class is no `TableOptimizer`, or torchrec has no fused kernel of its `torch_class`.
    """

    def enter(owner: type[TableOptimizer]) -> type[TableOptimizer]:
        if not issubclass(owner, TableOptimizer):
            raise TypeError(f"optimizer '{kind}': {owner.__name__} must be a subclass of TableOptimizer")
        try:
            kernel = optimizer_type_to_emb_opt_type(owner.torch_class)
        except ValueError:
            raise TypeError(f"optimizer '{kind}': torchrec has no fused {owner.torch_class.__name__}") from None
        owner.devices = ("cpu", "cuda") if kernel in _ON_CPU else ("cuda",)
        OPTIMIZERS.register(kind, config, owner)
        return owner

    return enter


def table_optimizer(recipe: Recipe, table: str) -> TableOptimizer:
    """Return the optimizer of a recipe's table."""
    config = recipe.optimizer(table)
    return Frozen(config) if recipe.tables[table].frozen else OPTIMIZERS.owner(config.kind)(config)


@register_optimizer("rowwise_adagrad")
class RowwiseAdagrad(TableOptimizer):
    """Adagrad with one accumulator per row."""

    torch_class = RowWiseAdagrad
    decays = True

    @staticmethod
    def state_bytes(dim: int) -> int:
        return 4


@register_optimizer("adagrad")
class Adagrad(TableOptimizer):
    """Adagrad with an accumulator per number."""

    torch_class = torch.optim.Adagrad
    by_columns = True

    @staticmethod
    def state_bytes(dim: int) -> int:
        return 4 * dim


@register_optimizer("sgd")
class SGD(TableOptimizer):
    """Plain steps along the gradient."""

    torch_class = torch.optim.SGD
    by_columns = True

    def arguments(self) -> dict[str, Any]:
        return {name: value for name, value in super().arguments().items() if name != "eps"}

    @staticmethod
    def state_bytes(dim: int) -> int:
        return 0


@register_optimizer("adam")
class Adam(TableOptimizer):
    """Adam on the rows that a batch touches, see modules.tables.adam."""

    torch_class = torch.optim.Adam
    by_columns = True
    counts = True

    def replica(self, parameter: nn.Parameter, touched: Touched, steps: Steps) -> torch.optim.Optimizer:
        return RowAdam(parameter, touched, steps, self.config.lr, self.config.eps)

    @staticmethod
    def state_bytes(dim: int) -> int:
        return 8 * dim


class Frozen(SGD):
    """That of tables that are not trained (`frozen: true`): steps of length 0, and no state."""

    decays = True  # it has none

    def arguments(self) -> dict[str, Any]:
        return {"lr": 0.0}


class NetworkOptimizer:
    """One kind of optimizer for everything that is not a table.

    Args:
        config: the recipe's section.

    Attributes:
        torch_class: of torch.optim, or one like those.
        state_bytes: of its state, per number that it trains.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]]
    state_bytes: ClassVar[int]

    def __init__(self, config: DenseOptimizer) -> None:
        self.config = config

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `torch_class`."""
        return {"lr": self.config.lr, "weight_decay": self.config.weight_decay}

    def make(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer of a model's dense parameters."""
        return self.torch_class(parameters, **self.arguments())


def register_dense_optimizer(
    kind: str, config: type[DenseOptimizer] = DenseOptimizer
) -> Callable[[type[NetworkOptimizer]], type[NetworkOptimizer]]:
    """Make the decorated `NetworkOptimizer` that of ``optimizers.dense.kind: kind``.

    Args:
        kind: the name in recipes.
        config: checks the recipe's section; a subclass of `DenseOptimizer` where the kind has keys of its own.

    Raises:
        TypeError: the class is no `NetworkOptimizer`.
    """

    return DENSE_OPTIMIZERS.entering(kind, config, NetworkOptimizer)


def dense_optimizer(recipe: Recipe) -> NetworkOptimizer:
    """Return the optimizer of a recipe's dense part."""
    config = recipe.optimizers.dense
    return DENSE_OPTIMIZERS.owner(config.kind)(config)


class _OnePass(NetworkOptimizer):
    """torch's own, in their form that passes over each parameter once."""

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"fused": True}


@register_dense_optimizer("adam")
class DenseAdam(_OnePass):
    torch_class, state_bytes = torch.optim.Adam, 8


@register_dense_optimizer("adamw")
class DenseAdamW(_OnePass):
    torch_class, state_bytes = torch.optim.AdamW, 8


@register_dense_optimizer("adagrad")
class DenseAdagrad(_OnePass):
    torch_class, state_bytes = torch.optim.Adagrad, 4


@register_dense_optimizer("sgd")
class DenseSGD(_OnePass):
    torch_class, state_bytes = torch.optim.SGD, 0
