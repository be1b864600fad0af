"""How many sums over ranks a step makes, in which order on every rank, and on which process group."""

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.layers import distributed
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.sharding import shard
from tests import twins

STEPS = 3
RECIPES = {
    "din": ("din_ml1m", {}),
    "mmoe, pcgrad": ("mmoe_kuairand", {"gradients": {"kind": "pcgrad"}}),
    "mmoe, pcgrad at the trunk": ("mmoe_kuairand", {"gradients": {"kind": "pcgrad", "scope": "trunk"}}),
    "din, small tables whole": ("din_ml1m", {"small": "data_parallel"}),
    "farm": ("farm_kuairand", {}),
    "farm, pcgrad": ("farm_kuairand", {"gradients": {"kind": "pcgrad"}}),
    "din, running Dice": ("din_ml1m", {"model": {"activation": "running_dice"}}),
    "mmoe, running Dice": ("mmoe_kuairand", {"model": {"activation": "running_dice"}}),
}


class Calls(TorchDispatchMode):
    """Writes down the collectives that are begun: what, on which group, and if it is the sums', of how many numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, int]] = []
        self.own = distributed.group().group_name

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            groups = [dist.ProcessGroup.unbox(x) for x in args if isinstance(x, torch.ScriptObject) and _is_group(x)]
            (group,) = groups
            sizes = [x.numel() for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, torch.Tensor)]
            own = group.group_name == self.own  # what is exchanged with tables may be of another size on every rank
            size = max(sizes) if own else 0
            self.found.append((function._schema.name.removeprefix("c10d::"), "sums" if own else "tables", size))
        elif function.namespace == "livetrain_sums":  # what it does within is not seen
            self.found.append(("allreduce_", "sums", args[0].numel()))
        return function(*args, **(kwargs or {}))


def _is_group(x: torch.ScriptObject) -> bool:
    return "ProcessGroup" in str(x._type())


def recipe(name: str) -> Recipe:
    """A recipe of the project, with small tables, as two ranks train it."""
    file, changes = RECIPES[name]
    content = load_recipe(f"configs/recipes/{file}.yaml").model_dump()
    for section, keys in changes.items():
        if section == "small":
            continue
        content[section] = (content[section] or {}) | keys if section == "model" else keys
    for table in content["tables"].values():
        table["rows"] = min(table["rows"], 64)
        table["sharding"] = "row_wise" if table["rows"] == 64 else changes.get("small", "row_wise")
    content["data"] |= {"path": "unused", "batch_size": 24, "batch_size_per_worker": None, "shards": 2}
    content["data"] = {key: value for key, value in content["data"].items() if key in type(_some().data).model_fields}
    content["cluster"] |= {"workers": 2, "device": "cpu"}
    return Recipe.model_validate(content)


def _some() -> Recipe:
    return twins.recipe()


def step(name: str) -> list[tuple[str, str, int]]:
    """Return the collectives of this rank's third step."""
    made_for = recipe(name)
    sharded = shard(made_for, torch.device("cpu"))
    sharded.pipeline.combination.batches = None  # as on a GPU
    feed = iter([twins.part(batch, dist.get_rank(), 2) for batch in twins.batches(made_for, STEPS + 2)])
    sharded.module.train()
    sharded.set_rates(1.0)
    for number in range(STEPS):
        ranks.seed_step(1, number)
        with Calls() as calls:
            sharded.pipeline.progress(feed)
    return calls.found


SUMS = {
    "din": 9,  # four Dice, one after the other, forward and backward; all gradients. The loss's count rides.
    "mmoe, pcgrad": 5,  # of two units the first Dice and the second, forward and backward; gradients and Gram matrix
    "mmoe, pcgrad at the trunk": 6,  # the same, but the Gram matrix is needed before what lies below can begin
    "din, small tables whole": 9,  # with decay of the rows that any rank touched
    "farm": 6,  # the same and the alignment's gather, back
    "farm, pcgrad": 6,
    "din, running Dice": 2,  # the loss's count; gradients and what Dice saw
    "mmoe, running Dice": 2,
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_sums_few_times_over_ranks_and_every_rank_in_one_order(two_ranks, name):
    first, second = two_ranks.run(step, name)
    assert first == second
    sums = [size for what, group, size in first if what == "allreduce_"]
    assert len(sums) == SUMS[name], first
    # What layers sum is never on the tables' group, and the tables' exchanges are never on the sums'.
    assert {group for what, group, _ in first if what == "allreduce_"} == {"sums"}
    assert {group for what, group, _ in first if what.startswith("alltoall")} == {"tables"}
    if "pcgrad" not in name:  # the gradients' sum has begun when the tables' exchange begins
        last = max(at for at, (what, *_) in enumerate(first) if what == "allreduce_")
        assert first[last][2] == max(sums)
        assert any(what.startswith("alltoall") for what, *_ in first[last + 1 :])


def _group() -> tuple[bool, bool, bool]:
    shard(twins.recipe(), torch.device("cpu"))
    first = distributed.group()
    shard(twins.recipe(), torch.device("cpu"))
    return first is distributed.group(), first is dist.group.WORLD, first.size() == dist.get_world_size()


def test_sums_have_a_group_of_their_own_that_is_made_once(two_ranks):
    assert two_ranks.run(_group) == [(True, False, True)] * 2
    with ranks.alone(cuda=False):
        shard(twins.recipe(), torch.device("cpu"))
        assert distributed.alone()


def _riders() -> tuple:
    x = torch.tensor([1.0 + dist.get_rank(), 2.0], requires_grad=True)
    one, other = (distributed.Later(torch.tensor([float(number)])) for number in (3, 4))
    with Calls() as calls:
        a, b = distributed.summed([x, torch.ones(2, 2, dtype=torch.float64)])
        totals = [one.total().item(), other.total().item()]
        third = distributed.Later(torch.tensor(5.0))
        totals.append(third.total().item())  # nothing came that it could ride on
    (a.sum() * (1 + dist.get_rank())).backward()
    return a.tolist(), a.dtype, b.tolist(), totals, len(calls.found), x.grad.tolist()


def test_what_is_not_needed_at_once_rides_on_the_next_sum(two_ranks):
    for found in two_ranks.run(_riders):
        assert found == ([3.0, 4.0], torch.float32, [[2.0, 2.0]] * 2, [6.0, 8.0, 10.0], 2, [3.0, 3.0])
