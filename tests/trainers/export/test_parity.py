"""How closely a file must score, and the one allowance that is made."""

import pytest
import torch

from livetrain.configs.registry import parse_model
from livetrain.trainers.export.parity import apart

DIN = {"kind": "din", "attention": [{"query": ["movie"], "events": ["seen"]}]}
SEARCH = DIN["attention"]
TWIN = {"kind": "twin", "search": SEARCH}


@pytest.mark.parametrize(
    ("model", "jumps"),
    [
        (DIN, False),
        ({"kind": "dcnv2"}, False),
        (TWIN, True),
        ({"kind": "mmoe", "trunk": TWIN}, True),
        ({"kind": "mmoe", "trunk": "rankmixer"}, False),
        ({"kind": "ensemble", "of": TWIN}, True),
        ({"kind": "ensemble", "of": DIN}, False),
    ],
)
def test_only_scores_of_a_search_may_jump(model, jumps):
    assert parse_model(model).jumps is jumps


@pytest.mark.parametrize(("rows", "left_out"), [(2, 1), (1000, 1), (1001, 2), (4096, 5)])
def test_of_each_thousand_rows_the_worst_may_jump(rows, left_out):
    wanted = torch.rand(2, rows, generator=torch.Generator().manual_seed(rows)) / 2
    found, places = wanted.clone(), torch.arange(rows)[-left_out:]
    found[1, places] += 0.1
    assert apart(found, wanted) == pytest.approx(0.1)
    assert apart(found, wanted, jumps=True) == 0
    found[0, 0] += 0.01
    assert apart(found, wanted, jumps=True) == pytest.approx(0.01)


def test_what_is_no_number_is_never_left_out():
    wanted = torch.zeros(5000)
    found = wanted.clone()
    found[7] = torch.nan
    assert torch.tensor(apart(found, wanted, jumps=True)).isnan()
