import torch
from hypothesis import given
from hypothesis import strategies as st

from livetrain.modules.layers import jagged

LENGTHS = st.lists(st.integers(0, 4), min_size=1, max_size=6)
FLAGS = st.lists(st.integers(0, 1), min_size=1, max_size=6)


def events(lengths: list[int], dim: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(lengths))
    return torch.randn(sum(lengths), dim, generator=generator, dtype=torch.float64, requires_grad=True)


def split(values: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    return list(values.split(lengths))


def check(actual: torch.Tensor, expected: torch.Tensor, leaf: torch.Tensor) -> None:
    """Values and the gradient of an uneven sum agree."""
    torch.testing.assert_close(actual, expected)
    weight = torch.arange(actual.numel(), dtype=actual.dtype).view_as(actual).cos()
    gradients = [torch.autograd.grad((x * weight).sum(), leaf, retain_graph=True)[0] for x in (actual, expected)]
    torch.testing.assert_close(*gradients)


@given(FLAGS)
def test_rows(lengths):
    values = events(lengths)
    expected = torch.stack([part.sum(0) for part in split(values, lengths)])
    check(jagged.rows(values, torch.tensor(lengths)), expected, values)


@given(LENGTHS)
def test_segments_and_spread(lengths):
    segment = jagged.segments(torch.tensor(lengths), sum(lengths))
    assert segment.dtype == torch.int64
    assert segment.tolist() == [row for row, length in enumerate(lengths) for _ in range(length)]
    x = events([len(lengths)])
    expected = torch.cat([x[row].expand(length, -1) for row, length in enumerate(lengths)])
    check(jagged.spread(x, segment), expected, x)


@given(LENGTHS)
def test_segment_sum(lengths):
    values = events(lengths)
    segment = jagged.segments(torch.tensor(lengths), sum(lengths))
    expected = torch.stack([part.sum(0) for part in split(values, lengths)])
    check(jagged.segment_sum(values, segment, len(lengths)), expected, values)


@given(LENGTHS, st.sampled_from([1.0, 1e4, -1e4]))
def test_segment_softmax(lengths, scale):
    values = events(lengths)
    segment = jagged.segments(torch.tensor(lengths), sum(lengths))
    scores = values * scale + scale
    expected = torch.cat([part.softmax(0) for part in split(scores, lengths)])
    actual = jagged.segment_softmax(scores, segment, len(lengths))
    check(actual, expected, values)
    assert bool(actual.isfinite().all())


@given(LENGTHS)
def test_pool(lengths):
    values = events(lengths)
    parts = split(values, lengths)
    size = torch.tensor(lengths)
    check(jagged.pool(values, size, False), torch.stack([part.sum(0) for part in parts]), values)
    means = torch.stack([part.sum(0) / max(len(part), 1) for part in parts])
    check(jagged.pool(values, size, True), means, values)
    assert torch.equal(jagged.pool(values, size.int(), True), jagged.pool(values, size, True))


@given(LENGTHS)
def test_scripted(lengths):
    values, size = events(lengths), torch.tensor(lengths)
    assert torch.equal(POOL(values, size, True), jagged.pool(values, size, True))
    segment = SEGMENTS(size, sum(lengths))
    assert torch.equal(SOFTMAX(values, segment, len(lengths)), jagged.segment_softmax(values, segment, len(lengths)))
    first = size.clamp(max=1)
    one_each = values[: int(first.sum())]
    assert torch.equal(ROWS(one_each, first), jagged.rows(one_each, first))


POOL = torch.jit.script(jagged.pool)
SEGMENTS = torch.jit.script(jagged.segments)
SOFTMAX = torch.jit.script(jagged.segment_softmax)
ROWS = torch.jit.script(jagged.rows)
