import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from livetrain.modules.layers.rarity import BUCKETS, RATE, Rarity
from livetrain.modules.tables.hashing import row

BATCHES = st.lists(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12), max_size=12)


@given(BATCHES)
def test_equals_a_dictionary_that_is_kept_by_hand(batches):
    rarity, last, between = Rarity(), {}, {}
    for t, batch in enumerate(batches, 1):
        ids, valid = torch.tensor([i for i, _ in batch]), torch.tensor([v for _, v in batch])
        found = rarity(ids, valid)
        for key in {i for i, v in batch if v}:
            gap = (t - last.get(key, 0)) / sum(v for i, v in batch if i == key)
            between[key] = gap if key not in last else (1 - RATE) * between[key] + RATE * gap
            last[key] = t
        for (key, _), value in zip(batch, found.tolist(), strict=True):
            assert value == pytest.approx(-math.log(between[key]) if key in between else -math.inf, abs=1e-5)
    assert int((rarity.last > 0).sum()) == len(last)


@given(BATCHES, st.randoms())
@pytest.mark.slow
def test_the_order_of_rows_changes_nothing(batches, random):
    one, other = Rarity(), Rarity()
    for batch in batches:
        mixed = random.sample(batch, len(batch))
        for rarity, rows in ((one, batch), (other, mixed)):
            rarity(torch.tensor([i for i, _ in rows]), torch.tensor([v for _, v in rows]))
    assert all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())


def test_it_finds_how_often_ids_come():
    """Id 0 is in every batch three times, id 1 in every second one, the rest once."""
    rarity, everyone = Rarity(), torch.ones(5, dtype=torch.bool)
    for t in range(200):
        found = rarity(torch.tensor([0, 0, 0, 1 if t % 2 else 100 + t, 1000 + t]), everyone)
    assert len({int(row(torch.tensor([i]), BUCKETS, False)) for i in (0, 1, 1199)}) == 3
    assert found[:3].exp().tolist() == pytest.approx([3.0] * 3)
    assert float(found[3].exp()) == pytest.approx(1 / 2)
    assert float(found[4].exp()) == pytest.approx(1 / 200)
