"""HSTU's attention and layer, against its equations row by row and pair by pair."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from livetrain.modules.layers import pointwise
from livetrain.modules.layers.hstu import HSTULayer, Places
from livetrain.modules.layers.pointwise import GAPS, Bias, clocks

MOST = 7  # fewer than the longest row has events
ROWS = st.lists(st.sampled_from([0, 1, 2, 3, 8, 9, 17]), max_size=4)


def bias_of_row(bias: Bias, clock: torch.Tensor, length: int) -> torch.Tensor:
    """Return (T, T) what is added to the scores of a row, each pair's looked up by itself."""
    pairs = [(i, j) for i in range(length) for j in range(length)]
    near = torch.tensor([min(max(i - j, 0), len(bias.by_place) - 1) for i, j in pairs], dtype=torch.long)
    found = bias.by_place[near]
    if len(bias.by_gap):
        apart = torch.tensor([max(clock[i][0] - clock[j][1], 1) for i, j in pairs], dtype=torch.float32)
        found = found + bias.by_gap[(torch.log(apart) / 0.301).long()]
    return found.view(length, length)


def row_by_row(q, k, v, lengths, bias: Bias, heads: int, most: int) -> torch.Tensor:
    """Do what `pointwise` does, by its formula."""
    out, start = [v[:0]], 0
    for length in lengths.tolist():
        a, b, c = (x[start : start + length].view(length, heads, x.size(1) // heads) for x in (q, k, v))
        scores = torch.einsum("ihd,jhd->hij", a, b)
        scores = scores + bias_of_row(bias, bias.clock[start : start + length].tolist(), length)
        weights = F.silu(scores) / most * torch.ones(length, length, dtype=q.dtype).tril()
        out.append(torch.einsum("hij,jhe->ihe", weights, c).flatten(1))
        start += length
    return torch.cat(out)


def given_rows(rows: list[int], heads: int, timed: bool) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return q, k, v and both biases, the lengths, and the events' clock."""
    draw, total = torch.Generator().manual_seed(sum(rows) + heads), sum(rows)
    sizes = [(total, heads * 3), (total, heads * 3), (total, heads * 2), (5,), (GAPS if timed else 0,)]
    made = [torch.randn(*size, generator=draw, dtype=torch.float64).requires_grad_() for size in sizes]
    lengths = torch.tensor(rows, dtype=torch.long)
    gaps = torch.exp(18 * torch.rand(total, generator=draw)) - 1  # a second to two years
    return made, lengths, clocks(gaps, lengths, True) if timed else torch.zeros(0, 2, dtype=torch.int32)


@pytest.mark.parametrize(("heads", "timed"), [(1, True), (2, False)])
@settings(max_examples=8, deadline=None)
@given(ROWS)
def test_it_is_the_formula_row_by_row(heads, timed, rows):
    (q, k, v, by_place, by_gap), lengths, clock = given_rows(rows, heads, timed)
    upstream = torch.randn(len(v), v.size(1), dtype=v.dtype)
    found, wanted = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pointwise._tiles, "__defaults__", (4, 2 * heads * 4 * 8))  # rows and queries in several tiles
        for function, kept in ((pointwise.pointwise, found), (row_by_row, wanted)):
            out = function(q, k, v, lengths, Bias(by_place, by_gap, clock), heads, MOST)
            loss = (out * upstream).sum() + 0 * by_place.sum() + 0 * by_gap.sum() + 0 * (q + k).sum()
            kept += [out, *torch.autograd.grad(loss, [q, k, v, by_place, by_gap])]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_times_are_as_in_the_paper_s_code():
    """log of whole seconds to the base e^.301; the time of the next event is that at which an event asks."""
    gaps = torch.tensor([59.6, float("nan"), 86_400.0, 3.0])
    lengths = torch.tensor([3, 0, 1])
    assert clocks(gaps, lengths, True).tolist() == [[60, 0], [60, 60], [86_460, 60], [3, 0]]
    assert clocks(gaps, lengths, False).tolist() == [[0, 0], [60, 60], [60, 60], [0, 0]]
    seconds = torch.tensor([0, 1, 60, 86_400, 31_536_000, 2**31 - 1], dtype=torch.int32)
    assert pointwise.gap_class(seconds).tolist() == [0, 0, 13, 37, 57, GAPS - 1]


def test_a_file_reads_times_as_exactly_as_the_model():
    gaps, lengths = torch.tensor([20_000_001.0, 3.0, 40_000_004.0, 5.0]), torch.tensor([4])
    assert clocks(gaps, lengths, True)[:, 0].tolist() == [20_000_000, 20_000_003, 60_000_007, 60_000_012]
    assert torch.equal(torch.jit.script(clocks)(gaps, lengths, True), clocks(gaps, lengths, True))


def test_it_is_an_operator_as_pytorch_wants_one():
    (q, k, v, by_place, by_gap), lengths, clock = given_rows([3, 0, 2], 1, True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    given = (q, k, v, lengths, by_place, by_gap, clock, 1, MOST)
    torch.library.opcheck(pointwise._pointwise, given, test_utils=checks)


def test_gradients_of_several_tasks_in_one_pass():
    (q, k, v, *biases), lengths, clock = given_rows([3, 0, 2], 1, True)
    out = pointwise.pointwise(q, k, v, lengths, Bias(*biases, clock), 1, MOST)
    upstream = torch.randn(3, *out.shape, dtype=out.dtype)
    leaves = (q, k, v, *biases)
    together = torch.autograd.grad(out, leaves, upstream, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(out, leaves, each, retain_graph=True) for each in upstream]
    for found, wanted in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(wanted))


def test_a_tile_holds_so_many_scores_whatever_the_longest_row(monkeypatch):
    """No score is made for a pair of a short row and a place that only a longer row has, and none is kept."""
    made = []
    scores = pointwise._scores

    def seen(*arguments):
        made.append(scores(*arguments))
        return made[-1]

    monkeypatch.setattr(pointwise, "_scores", seen)
    rows = [500] + [8] * 500
    (q, k, v, by_place, by_gap), lengths, clock = given_rows(rows, 2, True)
    out = pointwise.pointwise(q, k, v, lengths, Bias(by_place, by_gap, clock), 2, MOST)
    out.sum().backward()
    assert max(part.numel() for part in made) <= pointwise.SCORES
    assert sum(part.numel() for part in made) < 2 * 2 * (500 * 512 + 500 * 8 * 8)  # twice, of two heads


def layer_row_by_row(layer: HSTULayer, x: torch.Tensor, lengths: torch.Tensor, clock) -> torch.Tensor:
    """Do what a layer does, by the paper's formula and its authors' initial LN without parameters."""

    def norm(y: torch.Tensor) -> torch.Tensor:
        return (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    u, v, q, k = F.silu(norm(x) @ layer.project).split(x.size(1), 1)
    bias = Bias(layer.by_place, layer.by_gap, clock)
    seen = row_by_row(q, k, v, lengths, bias, layer.heads, layer.most)
    return x + F.linear(u * norm(seen), layer.out.weight, layer.out.bias)


@pytest.mark.parametrize("timed", [False, True])
def test_a_layer_is_its_equation(timed):
    torch.manual_seed(0)
    layer = HSTULayer(8, 2, MOST, 0.0, timed).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    lengths = torch.tensor([3, 0, 9, 1])
    x, clock = torch.randn(13, 8, dtype=torch.float64), clocks(torch.rand(13) * 1e6, lengths, False)
    found = layer(x, lengths, clock if timed else None)
    torch.testing.assert_close(found, layer_row_by_row(layer, x, lengths, clock))


def test_a_row_s_events_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    layer, places = HSTULayer(8, 1, MOST, 0.0, True), Places(4, 8)
    lengths, x, gaps = torch.tensor([3, 0, 20, 9]), torch.randn(32, 8), torch.rand(32) * 1e6

    def states(x: torch.Tensor, lengths: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
        return layer(places(x, lengths), lengths, clocks(gaps, lengths, True))

    together = states(x, lengths, gaps)
    for start, length in ((0, 3), (3, 20), (23, 9)):
        own = slice(start, start + length)
        torch.testing.assert_close(states(x[own], torch.tensor([length]), gaps[own]), together[own])


def test_places_count_from_the_oldest():
    places = Places(2, 4)
    found = places(torch.ones(4, 4), torch.tensor([3, 0, 1]))
    torch.testing.assert_close(found, 2.0 + places.vectors[[0, 1, 1, 0]])
