import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from livetrain.modules.layers.frequency import Learned, Split, _low_pass_jagged, bins, low_pass

LENGTHS = [3, 1, 0, 8, 9, 2, 31, 31, 64, 100]


def events(lengths: list[int], width: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(sum(lengths), width, generator=torch.Generator().manual_seed(1), dtype=dtype)


def ours(values: torch.Tensor, lengths: list[int], cutoff: float) -> torch.Tensor:
    counted = torch.tensor(lengths)
    return low_pass(values, counted, cutoff)


def by_transform(values: torch.Tensor, lengths: list[int], kept: list[int]) -> torch.Tensor:
    """The definition, user by user: the first bins of a real FFT over the user's own length."""
    out = []
    for part, low in zip(values.split(lengths), kept, strict=True):
        if len(part):
            spectrum = torch.fft.rfft(part, dim=0, norm="ortho")
            spectrum[low:] = 0
            part = torch.fft.irfft(spectrum, n=len(part), dim=0, norm="ortho")
        out.append(part)
    return torch.cat(out)


@pytest.mark.parametrize("cutoff", [1, 2, 3, 5, 50, 1000, 0.1, 0.5, 0.99])
def test_equals_the_transform_of_each_user(cutoff):
    values = events(LENGTHS)
    kept = [
        min(length // 2 + 1, max(round((length // 2 + 1) * cutoff), 1) if cutoff < 1 else cutoff) for length in LENGTHS
    ]
    assert bins(torch.tensor(LENGTHS), cutoff).tolist() == kept
    torch.testing.assert_close(ours(values, LENGTHS, cutoff), by_transform(values, LENGTHS, kept), rtol=0, atol=1e-12)
    low = ours(values.float(), LENGTHS, cutoff)
    torch.testing.assert_close(low.double(), by_transform(values, LENGTHS, kept), rtol=0, atol=5e-6)


@pytest.mark.parametrize("cutoff", [1, 3, 50])
def test_without_a_layout_the_low_pass_is_the_same(cutoff):
    found, wanted = (events(LENGTHS).requires_grad_() for _ in range(2))
    for values, low in ((found, _low_pass_jagged), (wanted, low_pass)):
        (low(values, torch.tensor(LENGTHS), cutoff) * events(LENGTHS).cos()).sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad, rtol=0, atol=1e-12)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.one_of(st.integers(1, 25), st.floats(0.01, 0.99)))
def test_is_a_projection(lengths, cutoff):
    values = events(lengths)
    low = ours(values, lengths, cutoff)
    torch.testing.assert_close(ours(low, lengths, cutoff), low, rtol=0, atol=1e-12)
    assert float((low * (values - low)).sum().abs()) < 1e-9 * max(1.0, float(values.square().sum()))


@pytest.mark.parametrize("c", [1, 3, 5, 7, 9])
def test_splits_as_bsarec_does(c):
    """BSARec's layer on rows of one length: out = LN(x + low + s^2 (x - low)), low from c // 2 + 1 bins."""
    x = events([50] * 4).view(4, 50, 4)
    spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
    spectrum[:, c // 2 + 1 :] = 0
    low = torch.fft.irfft(spectrum, n=50, dim=1, norm="ortho")
    beta = 0.6  # BSARec's sqrt_beta^2, its alpha being 1: gates of ours that a sigmoid can reach, twice as small
    wanted = F.layer_norm(x + 0.5 * (low + beta * (x - low)), [4])
    layer = Split(4, c // 2 + 1, [], 0.0).double()
    with torch.no_grad():
        layer.gate.last.weight.zero_()
        layer.gate.last.bias.copy_(torch.tensor([0.5] * 4 + [0.5 * beta] * 4).logit())
    found = layer(x.flatten(0, 1), torch.full([4], 50))
    torch.testing.assert_close(found.view(4, 50, 4), wanted, rtol=0, atol=1e-7)


def test_follows_the_formula():
    torch.manual_seed(0)
    layer = Split(4, 2, [6], 0.0).double()
    values = events(LENGTHS)
    found = layer(values, torch.tensor(LENGTHS)).split(LENGTHS)
    for part, out in zip(values.split(LENGTHS), found, strict=True):
        if len(part):
            low = by_transform(part, [len(part)], [min(2, len(part) // 2 + 1)])
            alpha, beta = layer.gate(part.mean(0, keepdim=True)).sigmoid().chunk(2, 1)
            wanted = layer.norm(part + alpha * low + beta * (part - low))
            torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cutoff", [1, 3, 0.4])
def test_gradients(cutoff):
    lengths = [3, 0, 10, 1, 9]
    layer = Split(2, cutoff, [3], 0.0).double()
    values = events(lengths, 2).requires_grad_()

    def run(*_):
        return layer(values, torch.tensor(lengths))

    assert torch.autograd.gradcheck(run, (values, *layer.parameters()))
    assert torch.autograd.gradgradcheck(lambda x: ours(x, lengths, cutoff), (values,))


@pytest.mark.parametrize("cutoff", [3, 0.3])
def test_a_user_is_computed_alone(cutoff):
    """Bit by bit, in float32: the same alone, in any order, and beside longer rows."""
    values = events(LENGTHS, 16, torch.float32)
    parts, wanted = values.split(LENGTHS), ours(values, LENGTHS, cutoff).split(LENGTHS)
    for rows in ([8], [0], list(range(9, -1, -1)), [6, 7], [7, 2, 9, 7, 7, 7, 7]):
        found = ours(torch.cat([parts[row] for row in rows]), [LENGTHS[row] for row in rows], cutoff)
        for row, low in zip(rows, found.split([LENGTHS[row] for row in rows]), strict=True):
            assert torch.equal(low, wanted[row])


@pytest.mark.parametrize("make", [lambda: Split(4, 3, [6], 0.0), lambda: Learned(4, 40, 0.0)])
def test_a_layer_sees_one_user_at_a_time(make):
    layer = make().double()
    values, lengths = events(LENGTHS), torch.tensor(LENGTHS)
    together = layer(values, lengths).split(LENGTHS)
    for row, part in enumerate(values.split(LENGTHS)):
        torch.testing.assert_close(layer(part, lengths[row : row + 1]), together[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: Split(4, 3, [6], 0.0), lambda: Learned(4, 40, 0.0)])
def test_scripted_and_under_autocast(make):
    layer = make()
    values, lengths = events(LENGTHS, dtype=torch.float32), torch.tensor(LENGTHS)
    wanted = layer(values, lengths)
    scripted = torch.jit.script(layer)
    for _ in range(3):
        torch.testing.assert_close(scripted(values, lengths), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(values, lengths), wanted)
        assert layer(values.bfloat16(), lengths).dtype == torch.float32
    assert layer(values[:0], torch.tensor([0, 0])).shape == (0, 4)


def test_the_learned_filter_is_fmlps():
    """On full rows: LN(x + irfft(rfft(x) W)); short rows as if zeros stood before them; older events stay."""
    torch.manual_seed(0)
    layer = Learned(4, 10, 0.0).double()
    lengths = [10, 4, 13]
    values = events(lengths)
    full, short, long = values.split(lengths)
    weight = torch.view_as_complex(layer.filter)

    def filtered(x):
        return torch.fft.irfft(torch.fft.rfft(x, dim=0, norm="ortho") * weight, n=10, dim=0, norm="ortho")

    found = layer(values, torch.tensor(lengths)).split(lengths)
    padded = torch.cat([torch.zeros(6, 4).double(), short])
    torch.testing.assert_close(found[0], layer.norm(full + filtered(full)))
    torch.testing.assert_close(found[1], layer.norm(short + filtered(padded)[6:]))
    torch.testing.assert_close(found[2][3:], layer.norm(long[3:] + filtered(long[3:])))
    torch.testing.assert_close(found[2][:3], layer.norm(long[:3]))
    small = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x, torch.tensor([4, 3])), (small, *layer.parameters()))
