"""Low and high frequencies of each user's own sequence of events, weighed by gates: FARM's first stage."""

import math

import torch
from torch import Tensor, nn

from livetrain.modules.layers import events, jagged
from livetrain.modules.layers.buckets import buckets, pad, unpad
from livetrain.modules.layers.exporting import exporting
from livetrain.modules.layers.mlp import MLP
from livetrain.modules.layers.precision import widen


def bins(lengths: Tensor, cutoff: float) -> Tensor:
    """Return how many of its frequencies each row keeps as low.

    Args:
        lengths: integers, any shape; a row of T events has T // 2 + 1 frequencies, the mean being the first.
        cutoff: from 1 a number of them, below 1 a share; a row keeps at least its mean and at most all it has.

    Returns:
        The same shape, int64.
    """
    own = torch.div(lengths, 2, rounding_mode="floor") + 1
    wanted = torch.round(own * cutoff) if cutoff < 1 else torch.full_like(own, int(cutoff))
    return torch.minimum(wanted.clamp(min=1).long(), own)


def low_pass(values: Tensor, lengths: Tensor, cutoff: float) -> Tensor:
    """Keep the lowest frequencies of each row, over its own length and no padding.

    low = irfft(rfft(V) with all but the first c bins zeroed, n = T)

    computed as the projection onto the cosines and sines of those bins, low = Q Q' V, whose orthonormal columns are
    sqrt(w_k / T) cos(2 pi k t / T) and sqrt(w_k / T) sin(2 pi k t / T), w_k = 1 for the mean and for k = T / 2, else 2.
    A transform needs rows of one length each; a product of matrices with padded rows does not care, costs
    O(N c d) and is its own gradient. On a GPU, and in a compiled graph, rows are not padded either: every event adds
    its part to its row's products, and takes its own from them, so that nothing waits for the lengths.

    Args:
        values: (N, d) events, N = sum of lengths.
        lengths: (B,) integer.
        cutoff: see `bins`.

    Returns:
        (N, d).
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript would read all of one condition)
        if cutoff >= 1 and (values.is_cuda or torch.compiler.is_compiling()):
            return _low_pass_jagged(values, lengths, cutoff)
    layout = buckets(lengths, values.size(0))
    held = lengths.index_select(0, layout.rows).split(layout.counts)
    out: list[Tensor] = []
    for block, own in zip(pad(values, layout), held):  # noqa: B905  TorchScript knows no strict=
        columns = waves(own, block.size(1), cutoff, block)  # (n, T, 2 c - 1)
        out.append(columns @ (columns.transpose(1, 2) @ block))
    return unpad(out, layout, values[:0])


def waves(lengths: Tensor, size: int, cutoff: float, like: Tensor) -> Tensor:
    """Return the orthonormal columns of `low_pass` for n rows padded to `size`: (n, size, columns), 0 on padding.

    Args:
        lengths: (n,) integer, from 1 to `size`.
        size: events to which the rows are padded.
        cutoff: see `bins`.
        like: a tensor of the wanted type.
    """
    most = size // 2 + 1 if exporting() else int(bins(torch.tensor(size), cutoff))
    time = torch.arange(size, device=lengths.device).unsqueeze(1)
    return _columns(time, lengths.unsqueeze(1).unsqueeze(2), most, cutoff, like)


def _columns(time: Tensor, length: Tensor, most: int, cutoff: float, like: Tensor) -> Tensor:
    """Return the columns of `low_pass` at some events: (..., 2 c - 1) with c = `most`, 0 beyond a row's end.

    Args:
        time: (..., 1) integer, which of its row's events each is.
        length: (..., 1) integer, how many its row has.
        most: the most frequencies that any row keeps.
        cutoff: see `bins`.
        like: a tensor of the wanted type.
    """
    wave = torch.arange(most, device=length.device)
    # Whole turns are taken off as integers: an angle in float32 keeps its digits however long the row.
    angle = (time * wave).remainder(length).to(like.dtype) * (2 * math.pi / length.to(like.dtype))
    once = (wave == 0) | (2 * wave == length)
    scale = torch.where(once, 1.0, 2.0).to(like.dtype).div(length).sqrt()
    scale = scale * (wave < bins(length, cutoff)) * (time < length)
    return torch.cat([angle.cos() * scale, (angle.sin() * scale)[..., 1:]], -1)


@torch.jit.unused
def _low_pass_jagged(values: Tensor, lengths: Tensor, cutoff: float) -> Tensor:
    """Do what `low_pass` does without a layout, for a whole number of frequencies."""
    (total, width), size = values.shape, lengths.size(0)
    segment = jagged.segments(lengths, total)
    time = torch.arange(total, device=lengths.device) - jagged.spread(lengths.cumsum(0) - lengths, segment)
    own = jagged.spread(lengths, segment).unsqueeze(1)  # (N, 1)
    columns = _columns(time.unsqueeze(1), own, int(cutoff), cutoff, values).unsqueeze(2)  # (N, 2 c - 1, 1)
    products = jagged.segment_sum((columns * values.unsqueeze(1)).flatten(1), segment, size)
    return (columns * jagged.spread(products, segment).view(total, -1, width)).sum(1)


class Split(nn.Module):
    """Weigh the low and the high frequencies of each user's events by gates of that user.

    F = LayerNorm(V + Dropout(alpha * low + beta * (V - low))),  [alpha, beta] = sigmoid(MLP(mean of V))

    Slow interests are low frequencies; sparse, valuable actions among many are high ones. In float32 under autocast.

    Args:
        width: d.
        cutoff: how many frequencies are low, see `bins`.
        units: hidden layers of the gates' MLP.
        dropout: share dropped in training.
        name: what is filtered; trainers.observe.report.spectrum watches these modules and draws what their gates kept.

    Source: FARM, 2502.09375, for the gated sum; the cutoff is BSARec's (2312.10325): its c makes c // 2 + 1 low bins.
    Decided here: gates per user and column from the mean of V, as only their kind is published.
    """

    def __init__(self, width: int, cutoff: float, units: list[int], dropout: float, name: str = "") -> None:
        super().__init__()
        self.name = name
        self.cutoff = float(cutoff)
        self.gate = MLP(width, units, outputs=2 * width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Filter a batch.

        Args:
            values: (N, d) events, N = sum of lengths.
            lengths: (B,) integer.

        Returns:
            (N, d).
        """
        if torch.jit.is_scripting() or exporting():
            return self._filter(values, lengths)
        with torch.autocast(values.device.type, enabled=False):
            if self.training and self.dropout.p == 0 and events.passes_for(values, values.size(1)) is not None:
                return self._by_passes(values, lengths)
            return self._filter(widen(values), lengths)

    @torch.jit.unused
    def _by_passes(self, values: Tensor, lengths: Tensor) -> Tensor:
        library = events.passes_for(values, values.size(1))
        kept = bins(lengths, self.cutoff)
        return self.norm(events.Split.apply(library, lengths, kept, values, self.weights(values, lengths)))

    def _filter(self, values: Tensor, lengths: Tensor) -> Tensor:
        low = low_pass(values, lengths, self.cutoff)
        segment = jagged.segments(lengths, values.size(0))
        alpha, beta = self.weights(values, lengths).chunk(2, 1)
        mixed = torch.addcmul(
            jagged.spread(beta, segment) * values, jagged.spread(alpha - beta, segment), low
        )  # alpha low + beta high
        return self.norm(values + self.dropout(mixed))

    def weights(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Return the gates [alpha, beta] of each row: (B, 2 d), in (0, 1)."""
        return self.gate(jagged.pool(values, lengths, True)).sigmoid()


class Plain(nn.Module):
    """F = LayerNorm(V): what the filters leave out, for comparison.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Args and result as in `Split.forward`."""
        return self.norm(widen(values))


class Learned(nn.Module):
    """Multiply every frequency of a padded sequence by a learned complex weight.

    F = LayerNorm(V + Dropout(irfft(rfft(V) * W))),  W (L // 2 + 1, d)

    The weights belong to frequencies of one length, so every row is padded to L events, in front, and older events
    than the newest L are left as they are. Cost and memory are those of B rows of L events, whatever their length;
    the result still depends on no other row.

    Args:
        width: d.
        length: L.
        dropout: share dropped in training.

    Source: FMLP-Rec, 2202.13556; W starts as 0.02 times a normal draw.
    """

    def __init__(self, width: int, length: int, dropout: float) -> None:
        super().__init__()
        self.length = length
        self.filter = nn.Parameter(torch.randn(length // 2 + 1, width, 2) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Args and result as in `Split.forward`."""
        if torch.jit.is_scripting() or exporting():
            return self._filter(values, lengths)
        with torch.autocast(values.device.type, enabled=False):
            return self._filter(widen(values), lengths)

    def _filter(self, values: Tensor, lengths: Tensor) -> Tensor:
        total, width = values.shape
        segment = jagged.segments(lengths, total)
        age = jagged.spread(lengths.cumsum(0), segment) - torch.arange(total, device=values.device)  # 1 = newest
        spare = lengths.size(0) * self.length  # where events that are too old go
        place = torch.where(age <= self.length, (segment + 1) * self.length - age, spare)
        flat = values.new_zeros(spare + 1, width).index_copy(0, place, values)
        padded = flat[:spare].unflatten(0, [lengths.size(0), self.length])  # (B, L, d)
        spectrum = torch.fft.rfft(padded, dim=1, norm="ortho") * torch.view_as_complex(self.filter)
        filtered = torch.fft.irfft(spectrum, n=self.length, dim=1, norm="ortho").flatten(0, 1)
        mixed = torch.cat([filtered, values.new_zeros(1, width)]).index_select(0, place)
        return self.norm(values + self.dropout(mixed))
