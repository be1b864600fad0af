"""What is counted of a step is what PyTorch's own counter and the meta device say of the whole batch."""

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from livetrain.configs.load import load_recipe
from livetrain.modules.layers import compiled
from livetrain.modules.model import Model
from livetrain.trainers.forecast import counts
from livetrain.trainers.forecast.counts import count
from livetrain.trainers.forecast.rows import made_up
from livetrain.trainers.train import compiled_layers
from livetrain.trainers.train.step import Step
from tests import samples


def lengths(recipe, mean=2.0):
    return {name: mean if feature.lists else 1.0 for name, feature in recipe.features.items()}


def test_operators_are_counted_as_calls_flops_and_bytes():
    x, w = torch.ones(4, 3), torch.ones(3, 5)
    with counts._Counting(1) as found:
        y = x @ w
        y.view(20)
        torch.empty(7)
        y.relu()
    assert (found.operators, found.flops) == (2, 2 * 4 * 3 * 5)
    assert (found.products, found.bytes) == (4 * (12 + 15 + 20), 4 * (20 + 20))


def test_collectives_are_those_of_ranks_that_do_not_exist():
    with counts._pretended(8), counts._Counting(8) as found:
        total, everyone = torch.ones(10), torch.zeros(8 * 3, dtype=torch.int64)
        dist.all_reduce(total)
        dist.all_gather_into_tensor(everyone, torch.arange(3))
    assert found.collectives == [40.0, 8 * 24 / 2]  # each rank gets 7 parts of 24 bytes: 2 * 7 / 8 of this
    assert len(everyone.unique()) == 24  # of each rank other groups
    assert not dist.is_initialized()


def test_a_large_batch_costs_what_the_meta_device_says(tmp_path):
    """Independent of the few rows: all rows at once, without memory, by PyTorch's own counter."""
    recipe, rows = load_recipe("configs/recipes/dcnv2_dcnv2.yaml", ["data.path=nowhere"]), 5000
    step = Step(Model(recipe, device="meta", tables_device="meta"), recipe)
    step.model.dense.device_type = "cpu"  # autocast knows no meta device
    batch = made_up(recipe, 16 * rows, lengths(recipe)).to(torch.device("meta"))
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as seen:
        step(batch)[0].sum().backward()
    assert count(recipe, 16 * rows, 1, lengths(recipe)).flops == pytest.approx(seen.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("kind", ["dssm_simulated"])
def test_rows_that_meet_cost_their_square(kind):
    """DSSM compares a rank's rows with those of all ranks: so the counts of three sizes, not of two."""
    recipe = load_recipe(f"configs/recipes/{kind}.yaml", ["data.path=nowhere"])
    one, two, three = (count(recipe, 16 * n, 4, lengths(recipe)).flops for n in (4, 8, 12))
    taken = counts._Taken(counts_recipe(recipe), lengths(recipe)).count(16 * 5, 4).flops
    assert three - 2 * two + one > 0
    assert count(recipe, 16 * 5, 4, lengths(recipe)).flops == pytest.approx(taken, rel=0.02)


def counts_recipe(recipe):
    small = {name: table.model_copy(update={"rows": min(table.rows, 1000)}) for name, table in recipe.tables.items()}
    return recipe.model_copy(update={"tables": small})


def test_sharded_tables_cost_nothing_and_replicated_ones_their_gradient(tmp_path):
    recipe = samples.recipe(tmp_path, tables__rating__sharding="data_parallel", tables__user__rows=100_000)
    other = samples.recipe(tmp_path, tables__rating__sharding="data_parallel", tables__user__rows=200)
    sharded = samples.recipe(tmp_path)
    found, same, without = (count(each, 64, 2, lengths(each)) for each in (recipe, other, sharded))
    assert found == same
    more = sum(found.collectives) - sum(without.collectives)
    assert more >= 4 * 6 * 4  # the gradient of 6 rows of 4 columns
    assert more < 4 * 100


@pytest.mark.parametrize("gradients", ["pcgrad", "gradnorm", "uncertainty"])
def test_a_step_that_looks_at_values_is_counted(gradients, tmp_path):
    recipe = samples.recipe(tmp_path, **samples.MULTI_TASK["model"] and {"tasks": samples.MULTI_TASK["tasks"]})
    content = recipe.model_dump(mode="json") | {"gradients": {"kind": gradients}}
    content["model"] = {"kind": "shared_bottom", **samples.MULTI_TASK["model"]}
    one, many = (type(recipe).model_validate(content | change) for change in ({"gradients": {"kind": "sum"}}, {}))
    plain, combined = (count(each, 64, 4, lengths(each)) for each in (one, many))
    assert combined.operators > plain.operators
    if gradients == "uncertainty":  # the gradients of its weights of tasks, in a sum of their own
        assert sum(combined.collectives) == sum(plain.collectives) + 4 * len(one.tasks)
        return
    assert len(combined.collectives) == len(plain.collectives)  # however many the tasks are
    assert combined.collectives[-1] > 2 * plain.collectives[-1]  # what tasks share has a gradient of each


def test_what_a_training_in_this_process_compiled_is_counted_as_it_is_written(tmp_path):
    """The passes that a CPU trains with are no operators, and would count as nothing."""
    recipe = samples.recipe(tmp_path)
    expected = count(recipe, 64, 4, lengths(recipe))
    library = compiled_layers.library()
    compiled.use(library)
    try:
        assert count(recipe, 64, 4, lengths(recipe)) == expected
        assert compiled.library_for(torch.zeros(1)) is library
    finally:
        compiled.use()
