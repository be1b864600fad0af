"""The optimizers that are fused into the tables' backward pass, by `optimizers.sparse.kind`."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec.distributed.utils import optimizer_type_to_emb_opt_type
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from livetrain.configs.registry import OPTIMIZERS
from livetrain.configs.schema import SparseOptimizer

_ON_CPU = (EmbOptimType.EXACT_ROWWISE_ADAGRAD, EmbOptimType.EXACT_ADAGRAD, EmbOptimType.EXACT_SGD)  # fbgemm's


class TableOptimizer:
    """One kind of optimizer for tables. The sharder, the planner, the checks and the doctor ask it.

    Args:
        config: the recipe's section.

    Attributes:
        torch_class: what it is on plain PyTorch; torchrec must know a fused kernel of it. Tables with sharding
            data_parallel are trained by this class itself.
        devices: where fbgemm has that kernel; found when the kind is registered.
        decays: weight_decay on the rows that a batch touches is the same on every device.
        by_columns: it is known to learn the same when a table is split by columns.
        replicated: as `torch_class` it leaves rows alone that a batch does not touch.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]]
    devices: ClassVar[tuple[str, ...]]
    decays: ClassVar[bool] = False
    by_columns: ClassVar[bool] = False
    replicated: ClassVar[bool] = True

    def __init__(self, config: SparseOptimizer) -> None:
        self.config = config

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `torch_class`, which the fused kernel takes too."""
        found = {"lr": self.config.lr, "eps": self.config.eps}
        return found | ({"weight_decay": self.config.weight_decay} if self.config.weight_decay else {})

    def fused(self) -> dict[str, Any]:
        """Return further arguments of fbgemm's kernel, which `torch_class` has not."""
        return {}

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


def table_optimizer(config: SparseOptimizer) -> TableOptimizer:
    """Return the optimizer of a recipe's section."""
    return OPTIMIZERS.owner(config.kind)(config)


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
    """Adam on the rows that a batch touches."""

    torch_class = torch.optim.Adam
    replicated = False

    @staticmethod
    def state_bytes(dim: int) -> int:
        return 8 * dim
