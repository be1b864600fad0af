import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.modules.layers import jagged
from livetrain.modules.layers.attention import ActivationUnit

pytestmark = pytest.mark.usefixtures("way")

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def case(lengths: list[int], side: int = 0) -> list:
    """Return query, events, side and lengths of random rows."""
    generator = torch.Generator().manual_seed(len(lengths))
    query, events, extra = (
        torch.randn(rows, dim, generator=generator, dtype=torch.float64, requires_grad=True)
        for rows, dim in ((len(lengths), 4), (sum(lengths), 4), (sum(lengths), side or 1))
    )
    return [query, events, extra if side else None, torch.tensor(lengths)]


def unit(side: int = 0, activation: str = "dice", softmax: bool = False) -> ActivationUnit:
    torch.manual_seed(0)
    return ActivationUnit(4, side, [6, 3], activation, softmax).double()


@given(LENGTHS, st.sampled_from([0, 2]))
@settings(max_examples=30)
def test_first_layer_is_one_linear_of_the_concat(lengths, side):
    module = unit(side)
    query, events, extra, size = case(lengths, side)
    segment = jagged.segments(size, events.size(0))
    q = query[segment]
    blocks = [q, events, q - events, q * events] + ([extra] if side else [])
    found = module._first(query, events, module._of_events(events, extra), segment)
    torch.testing.assert_close(found, module.first(torch.cat(blocks, 1)))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("activation", ["dice", "relu"])
@given(lengths=LENGTHS)
@settings(max_examples=20)
def test_a_row_sees_only_its_events(activation, softmax, lengths):
    module = unit(2, activation, softmax).eval()
    query, events, extra, size = case(lengths, 2)
    together = module(query, events, extra, size, None)
    start = 0
    for row, length in enumerate(lengths):
        part = slice(start, start + length)
        alone = module(query[row : row + 1], events[part], extra[part], size[row : row + 1], None)
        torch.testing.assert_close(together[row : row + 1], alone)
        start += length
        if length == 0:
            assert not bool(together[row].any())


@pytest.mark.parametrize("softmax", [False, True])
def test_no_events_at_all(softmax):
    module = unit(2, "dice", softmax)
    query, events, extra, size = case([0, 0, 0], 2)
    pooled = module(query, events, extra, size, torch.ones(3))
    assert torch.equal(pooled, torch.zeros(3, 6, dtype=torch.float64))
    pooled.sum().backward()
    assert not bool(query.grad.any())
    assert all(not bool(parameter.grad.any()) for parameter in module.parameters())


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("activation", ["dice", "relu"])
@given(rows=st.integers(0, 6), length=st.integers(0, 5), side=st.sampled_from([0, 2]))
@settings(max_examples=20)
def test_a_shared_history_is_as_good_as_a_repeated_one(activation, softmax, rows, length, side):
    module = unit(side, activation, softmax).eval()
    query = torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    _, events, extra, _ = case([length], side)
    repeated = None if extra is None else extra.repeat(rows, 1)
    wanted = module(query, events.repeat(rows, 1), repeated, torch.full((rows,), length), None)
    for tile in (4096, 2 * length + 1):  # all candidates at once, and two at a time
        torch.testing.assert_close(module.shared(query, events, extra, tile), wanted)


def test_softmax_weights_sum_to_one():
    module = unit(softmax=True).eval()
    query, events, _, size = case([3, 1])
    same = torch.ones_like(events)
    torch.testing.assert_close(module(query, same, None, size, None), torch.ones_like(query))


def test_events_of_padding_rows_stay_out_of_the_statistics():
    query, events, _, size = case([3, 2, 4])
    weights = torch.tensor([1.0, 1.0, 0.0])
    padded, plain = unit(), unit()
    with_padding = padded(query, events, None, size, weights)[:2]
    torch.testing.assert_close(with_padding, plain(query[:2], events[:5], None, size[:2], weights[:2]))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(padded.state_dict()[name], value)


@pytest.mark.parametrize("side", [0, 2])
@pytest.mark.parametrize("softmax", [False, True])
def test_scripted(side, softmax):
    module = unit(side, softmax=softmax).eval()
    scripted = torch.jit.script(module)
    for lengths in ([3, 0, 1], [0, 0], [2]):
        query, events, extra, size = case(lengths, side)
        torch.testing.assert_close(scripted(query, events, extra, size, None), module(query, events, extra, size, None))
