"""Ids that repeat in a batch travel once where fbgemm finds them: its operator, which CPUs lack, is emulated here."""

import pytest
import torch

from livetrain.configs.schema import Recipe
from livetrain.trainers.train.sharding import shard
from tests import twins
from tests.cases import often
from tests.trainers.train.test_sharding import compare, train_sharded

sent: list[tuple[int, int]] = []  # (ids, of which so many differ) of each call


def unique(
    sizes: torch.Tensor, of_tables: torch.Tensor, offsets: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """What fbgemm::jagged_unique_indices answers, in Python: each table's distinct ids, spread evenly over its lists.

    Args:
        sizes: where each feature's table begins among the rows of all, (F + 1,).
        of_tables: at a table's first feature the features before it, (F + 1,).
        offsets: of the lists, feature after feature, (F B + 1,).
        ids: (N,).

    Returns:
        Lengths and offsets of the lists of distinct ids, these ids, and for each id its place among them.
    """
    lists = (len(offsets) - 1) // (len(sizes) - 1)
    feature = torch.arange(len(offsets) - 1).div(max(lists, 1), rounding_mode="floor").repeat_interleave(offsets.diff())
    found, places = (ids + sizes[feature]).unique(return_inverse=True)
    lengths, rows = torch.zeros(len(offsets) - 1, dtype=torch.long), found.clone()
    for first, last in zip(of_tables.tolist(), of_tables.tolist()[1:], strict=False):
        if first == last:
            continue
        begin = sizes[first]
        own = (found >= begin) & (found < sizes[last])
        rows[own] -= begin
        count, slots = int(own.sum()), (last - first) * lists
        lengths[first * lists : last * lists] = count // slots
        lengths[first * lists : first * lists + count % slots] += 1
    sent.append((len(ids), len(found)))
    return lengths, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), rows, places


def trained(made_for: Recipe) -> tuple[dict, list[tuple[int, int]]]:
    sent.clear()
    library = torch.library.Library("fbgemm", "IMPL")
    library.impl("jagged_unique_indices", unique, "CPU")
    try:
        return train_sharded(made_for), list(sent)
    finally:
        library._destroy()


CASES = {
    "row-wise Adagrad with L2": {"optimizers__sparse__weight_decay": 0.1},
    "SGD, column-wise": {"optimizers__sparse__kind": "sgd", "tables__movie__sharding": "column_wise"},
    "Adam": {"optimizers__sparse": {"kind": "adam", "lr": 0.01, "eps": 1e-3}},
    "a replicated table": {"tables__rating__sharding": "data_parallel"},
}


@pytest.mark.parametrize("changes", often(CASES, ("row-wise Adagrad with L2",)))
def test_an_id_that_repeats_travels_once_and_learns_the_same(two_ranks, changes):
    made_for = twins.recipe(**changes)
    found, counts = two_ranks.run(trained, made_for)[0]
    assert sum(ids for ids, _ in counts) > 2 * sum(distinct for _, distinct in counts) > 0
    compare(found, made_for, 2e-6)


def repeated(made_for: Recipe) -> list[bool]:
    model = shard(made_for, torch.device("cpu"))
    return [module._use_index_dedup for module in model.module.modules() if hasattr(module, "_use_index_dedup")]


def test_without_the_operator_ids_travel_as_they_are(two_ranks):
    assert two_ranks.run(repeated, twins.recipe()) == [[False, False]] * 2
