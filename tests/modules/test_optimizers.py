"""One registry of the tables' optimizers answers the sharder, the checks and the doctor."""

import pytest
import torch
from torchrec.optim import PartialRowWiseAdam

from livetrain.configs.errors import BadInput
from livetrain.configs.registry import OPTIMIZERS
from livetrain.modules.optimizers import TableOptimizer, register_optimizer
from livetrain.trainers.train import sharding
from livetrain.trainers.train.memory import per_rank
from tests import twins

PARTIAL = "test_partial_adam"


@register_optimizer(PARTIAL)
class PartialAdam(TableOptimizer):
    """Adam with one second moment per row, of which fbgemm has a kernel for GPUs alone."""

    torch_class = PartialRowWiseAdam
    replicated = False

    @staticmethod
    def state_bytes(dim: int) -> int:
        return 4 * dim + 4


def test_where_a_kernel_is_follows_from_fbgemm():
    assert {name: OPTIMIZERS.owner(name).devices for name in ("rowwise_adagrad", "adagrad", "sgd", "adam")} == {
        "rowwise_adagrad": ("cpu", "cuda"),
        "adagrad": ("cpu", "cuda"),
        "sgd": ("cpu", "cuda"),
        "adam": ("cpu", "cuda"),
    }
    made = twins.recipe(optimizers__sparse__kind="test_partial_adam")
    said = "optimizers.sparse.kind: fbgemm has no fused test_partial_adam on CPU; use rowwise_adagrad, adagrad, sgd, ad"
    with pytest.raises(BadInput, match=said):
        sharding.check_device(made, torch.device("cpu"))
    sharding.check_device(made, torch.device("cuda"))


@pytest.mark.parametrize(("kind", "row"), [("test_partial_adam", 36), ("adam", 64), ("rowwise_adagrad", 4)])
def test_its_state_is_counted(kind, row):
    memory = {f"tables__{table}__memory": "gpu" for table in ("user", "movie", "rating")}
    made = twins.recipe(optimizers__sparse__kind=kind, **memory)
    plan = sharding.dry_plan(made, 1, "cuda")
    wanted = sum(t.rows * (4 * t.dim + OPTIMIZERS.owner(kind).state_bytes(t.dim)) for t in made.tables.values())
    assert OPTIMIZERS.owner(kind).state_bytes(8) == row
    held = per_rank(made, plan)["gpu"]
    assert held["weights"] + held["optimizer state"] == [wanted]


def test_an_optimizer_without_a_kernel_cannot_be_registered():
    class Wrong(TableOptimizer):
        torch_class = torch.optim.RMSprop

    with pytest.raises(TypeError, match="optimizer 'test_rms': torchrec has no fused RMSprop"):
        register_optimizer("test_rms")(Wrong)
