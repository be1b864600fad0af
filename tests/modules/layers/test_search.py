"""The search for a candidate's best events against sorting each row by hand, and attention to all of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from livetrain.modules.layers import search
from livetrain.modules.layers.search import Search, best


def sorted_by_hand(query, events, lengths, request, count):
    ends = lengths.cumsum(0).tolist()
    out = torch.full((len(query), query.shape[1], count), len(events))
    for row, asked in enumerate(request.tolist()):
        own = range(ends[asked] - int(lengths[asked]), ends[asked])
        for head in range(query.shape[1]):
            scores = {event: float(events[event] @ query[row, head]) for event in own}
            chosen = sorted(own, key=lambda event: (-scores[event], -event))[:count]  # noqa: B023
            out[row, head, : len(chosen)] = torch.tensor(sorted(chosen), dtype=torch.long)
    return out


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 99), st.booleans())
def test_finds_what_sorting_finds_of_equals_the_newest(lengths, count, seed, tiny):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    events = torch.randint(-2, 3, (int(lengths.sum()), 2), generator=generator).float()  # many are equal
    request = torch.randint(0, len(lengths), (7,), generator=generator)
    query = torch.randint(-2, 3, (7, 3, 2), generator=generator).float()
    found = search._found(query, events, lengths, request, count, 64 if tiny else search.NUMBERS)
    assert torch.equal(found, sorted_by_hand(query, events, lengths, request, count))


def full(layer: Search, query, events, side, lengths, request):
    """Multi-head target attention to all events, from padded rows."""
    out = []
    starts = lengths.cumsum(0) - lengths
    for row, asked in enumerate(request.tolist()):
        own = slice(int(starts[asked]), int(starts[asked] + lengths[asked]))
        q = layer.query(query[row]).view(layer.heads, -1)
        k = torch.einsum("td,hmd->htm", events[own], layer.key)
        parts = side[own].split(layer.side, 1)
        cross = [torch.outer(b, part @ w) for b, w, part in zip(layer.beta, layer.beside, parts, strict=True)]
        scores = torch.einsum("hm,htm->ht", q, k) / layer.head_width**0.5 + sum(cross)
        v = torch.einsum("td,hdm->htm", torch.cat([events[own], side[own]], 1), layer.value)
        out.append(torch.einsum("ht,htm->hm", scores.softmax(1), v).flatten())
    return layer.out(torch.stack(out))


def made(lengths, rows, count, dtype=torch.float64):
    torch.manual_seed(1)
    layer = Search(6, [3, 2], heads=2, width=4, count=count).to(dtype)
    torch.nn.init.normal_(layer.beta)  # as it may have learned
    lengths = torch.tensor(lengths)
    total = int(lengths.sum())
    given_ = [torch.randn(rows, 6), torch.randn(total, 6), torch.randn(total, 5)]
    return layer, [x.to(dtype).requires_grad_() for x in given_], lengths


@pytest.mark.parametrize("count", [9, 40])
def test_as_many_as_there_are_is_full_target_attention(count):
    layer, inputs, lengths = made([4, 0, 9, 1], 6, count)
    request = torch.tensor([2, 0, 1, 0, 3, 2])
    found, wanted = layer(*inputs, lengths, request), full(layer, *inputs, lengths, request)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(found)
    learned = [*inputs, *layer.parameters()]
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), learned),
        torch.autograd.grad((wanted * weights).sum(), learned),
        strict=True,
    ):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_only_events_that_are_found_learn():
    layer, inputs, lengths = made([40, 3], 2, 5)
    found = layer(*inputs, lengths, torch.tensor([0, 1]))
    (slope,) = torch.autograd.grad(found.sum(), [inputs[1]])
    taught = slope.any(1)
    assert 5 <= int(taught[:40].sum()) <= 10  # five by each head
    assert taught[40:].all()


def test_a_history_of_ten_thousand_events_is_searched_alike_once_and_per_row():
    layer, (query, events, side), lengths = made([10_000], 3, 50, torch.float32)
    once = layer(query, events, side, lengths, torch.zeros(3, dtype=torch.long))
    each = layer(query, events.repeat(3, 1), side.repeat(3, 1), lengths.repeat(3), torch.arange(3))
    torch.testing.assert_close(once, each)


def test_scores_keep_their_precision_under_autocast():
    layer, (query, events, side), lengths = made([200], 4, 7, torch.float32)
    request = torch.zeros(4, dtype=torch.long)
    wanted = best(layer._looks(query), torch.cat([events, side], 1), lengths, request, 7)
    with torch.autocast("cpu", torch.bfloat16):
        look = layer._looks(query)
        assert look.dtype == torch.float32
        found = best(layer._looks(query), torch.cat([events, side], 1), lengths, request, 7)
    assert (found == wanted).float().mean() > 0.9  # the candidates' side is rounded, and the products are not


@pytest.mark.parametrize(("size", "width"), [(16, 16), (8, 16), (32, 16)])
@pytest.mark.parametrize("seed", range(1, 6))
def test_before_it_learns_it_finds_the_events_that_equal_the_candidate(size, width, seed):
    torch.manual_seed(seed)
    items, actions = torch.randn(100, size) * 0.01, torch.randn(3, 4) * 0.01  # as tables begin
    layer = Search(size, [4], heads=2, width=width, count=30)
    past, done = torch.randint(100, (2000,)), torch.randint(3, (2000,))
    events = torch.cat([items[past], actions[done]], 1)
    found = best(layer._looks(items), events, torch.tensor([2000]), torch.zeros(100, dtype=torch.long), 30)
    equal = past[found] == torch.arange(100).view(-1, 1, 1)  # (items, heads, 30)
    there = past.bincount(minlength=100).clamp(max=30).unsqueeze(1)
    assert (equal.sum(2) / there).mean() > 0.6
    assert done[found].flatten().bincount().min() > 0.25 * found.numel()  # no action is preferred
