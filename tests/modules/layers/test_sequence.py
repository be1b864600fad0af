import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from livetrain.modules.layers.buckets import buckets, paired
from livetrain.modules.layers.sequence import Attention, Block, Cross, Positions, newest

ONE = [3, 0, 9, 1, 12, 5, 0]
TWO = [2, 4, 0, 20, 9, 1, 0]
WIDTH = 8


def events(lengths: list[int], seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layouts(one: list[int], two: list[int]):
    return paired(torch.tensor(one), sum(one), torch.tensor(two), sum(two))


def reference(layer: Attention) -> nn.MultiheadAttention:
    """torch's own multi-head attention with the same weights."""
    theirs = nn.MultiheadAttention(WIDTH, layer.heads, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.keys.weight]))
        theirs.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.keys.bias]))
        theirs.out_proj.weight.copy_(layer.out.weight)
        theirs.out_proj.bias.zero_()
    return theirs


def compare(found: torch.Tensor, wanted: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, wanted)
    weight = torch.arange(found.numel(), dtype=found.dtype).view_as(found).cos()
    gradients = [torch.autograd.grad((x * weight).sum(), leaves, retain_graph=True) for x in (found, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_equals_torchs_row_by_row(heads, causal):
    layer = Attention(WIDTH, heads).double()
    theirs, values = reference(layer), events(ONE, 1).requires_grad_()
    layout = buckets(torch.tensor(ONE), len(values))
    found = layer(values, layout, values, layout, causal)
    rows = []
    for part in values.split(ONE):
        if len(part):
            mask = torch.ones(len(part), len(part)).triu(1).bool() if causal else None
            rows.append(theirs(part[None], part[None], part[None], attn_mask=mask)[0][0])
    compare(found, torch.cat(rows), [values])


def test_cross_attention_equals_torchs_row_by_row():
    layer = Attention(WIDTH, 2).double()
    theirs, a, b = reference(layer), events(ONE, 1).requires_grad_(), events(TWO, 2).requires_grad_()
    asks, answers = layouts(ONE, TWO)
    found = layer(a, asks, b, answers, False)
    rows = []
    for part, other in zip(a.split(ONE), b.split(TWO), strict=True):
        if len(part):
            rows.append(theirs(part[None], other[None], other[None])[0][0] if len(other) else torch.zeros_like(part))
    compare(found, torch.cat(rows), [a, b])


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_is_computed_alone(causal):
    block, values, lengths = Block(WIDTH, 2, 0.0, causal).double(), events(ONE, 1), torch.tensor(ONE)
    together = block(values, buckets(lengths, len(values))).split(ONE)
    for row, part in enumerate(values.split(ONE)):
        alone = block(part, buckets(lengths[row : row + 1], len(part)))
        torch.testing.assert_close(alone, together[row])


def test_causal_events_do_not_see_the_future():
    block, values, lengths = Block(WIDTH, 2, 0.0, True).double(), events([9], 1), torch.tensor([9])
    changed = values.clone()
    changed[5:] += 1
    before, after = (block(x, buckets(lengths, 9)) for x in (values, changed))
    assert torch.equal(before[:5], after[:5])
    assert not torch.isclose(before[5:], after[5:]).any()


def test_a_row_without_others_stays_as_it_is():
    cross, a, b = Cross(WIDTH, 2, 0.0).double(), events(ONE, 1), events(TWO, 2)
    out = cross(a, layouts(ONE, TWO)[0], b, layouts(ONE, TWO)[1]).split(ONE)
    for row, part in enumerate(a.split(ONE)):
        assert len(part) == 0 or torch.equal(out[row], part) == (TWO[row] == 0)


def test_gradients_of_blocks():
    lengths, other = [3, 0, 2], [1, 2, 9]
    a, b = events(lengths, 1).requires_grad_(), events(other, 2).requires_grad_()
    block, cross = Block(WIDTH, 2, 0.0, False).double(), Cross(WIDTH, 2, 0.0).double()
    asks, answers = layouts(lengths, other)

    def run(a, b):
        own = block(a, buckets(torch.tensor(lengths), len(a)))
        return cross(own, asks, b, answers)

    assert torch.autograd.gradcheck(run, (a, b))


def test_positions_count_from_the_newest():
    layer, values = Positions(4, WIDTH).double(), events(ONE, 1)
    added = (layer(values, torch.tensor(ONE)) - values).split(ONE)
    for part in added:
        ages = [min(len(part) - 1 - i, 3) for i in range(len(part))]
        torch.testing.assert_close(part, layer.vectors[ages])


def test_newest():
    values = events(ONE, 1)
    wanted = [part[-1] if len(part) else torch.zeros(WIDTH).double() for part in values.split(ONE)]
    assert torch.equal(newest(values, torch.tensor(ONE)), torch.stack(wanted))


class Scores(TorchDispatchMode):
    """Counts the pairs of events for which attention computes a score, from the shapes of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if name.startswith("_scaled_dot_product") and "backward" not in name:
            rows, heads, asks, _ = arguments[0].shape
            self.pairs += rows * heads * asks * arguments[1].shape[2]
        return function(*arguments, **(options or {}))


def work(lengths: list[int]) -> int:
    block, counted = Block(WIDTH, 1, 0.0, False), torch.tensor(lengths)
    with Scores() as scores, torch.no_grad():
        block(events(lengths, 1, torch.float32), buckets(counted, sum(lengths)))
    return scores.pairs


def test_a_long_row_costs_its_own_square_and_nothing_else():
    short = work([10] * 100)
    assert short == 100 * 10 * 10
    assert work([10] * 100 + [1000]) == short + 1024 * 1024
    lengths = torch.randint(8, 1001, (50,), generator=torch.Generator().manual_seed(0))
    assert work(lengths.tolist()) < 1.5625 * int(lengths.square().sum())  # sizes are less than a quarter too large
    assert work([0, 0]) == 0


@pytest.mark.parametrize("causal", [False, True])
def test_scripted_and_under_autocast(causal):
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.cross = Block(WIDTH, 2, 0.0, causal), Cross(WIDTH, 2, 0.0)
            self.positions = Positions(5, WIDTH)

        def forward(self, a: torch.Tensor, one: torch.Tensor, b: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
            asks, answers = paired(one, a.size(0), two, b.size(0))
            a = self.block(self.positions(a, one), buckets(one, a.size(0)))
            return newest(self.cross(a, asks, b, answers), one)

    both = Both()
    scripted = torch.jit.script(both)
    for one, two in ((ONE, TWO), ([0, 0], [0, 3]), ([200], [1])):
        arguments = (events(one, 1, torch.float32), torch.tensor(one), events(two, 2, torch.float32), torch.tensor(two))
        wanted = both(*arguments)
        for _ in range(3):
            torch.testing.assert_close(scripted(*arguments), wanted)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(both(*arguments), wanted, rtol=0.05, atol=0.05)
