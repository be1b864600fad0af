"""DIN's activation unit, and layers with Dice, for training on a CPU, by the compiled passes of fused.cpp; attention.py
and mlp.py are their plain twins.

What is kept from forward to backward is each layer's values before Dice, whose statistics need all of them. All else
is cheaper to compute again than to write to main memory and read back.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from livetrain.modules.layers.compiled import Library
from livetrain.modules.layers.dice import Dice, compiled_correction, valid_rows

ALIGN = 16  # what fused.cpp wants widths to be multiples of


class Events(NamedTuple):
    """Where each row's events lie: of M pairs of a row and an event its own, and of the N events those in them.

    Rows of one request follow one another and share its events; otherwise M = N, and `begins` are the offsets.
    """

    offsets: Tensor  # (B + 1,) int64, of the pairs
    begins: Tensor  # (B,) int64 at least, of the events
    valid: Tensor | None  # (M,), 0 for the pairs of padding rows; None where there are none

    @property
    def pairs(self) -> int:
        """M."""
        return int(self.offsets[-1])

    @classmethod
    def of(
        cls, lengths: Tensor, weights: Tensor | None, like: Tensor, request: Tensor | None = None, total: int = 0
    ) -> "Events":
        """Build it from lengths (B,) or (R,), weights (B,) or None, the events (N, d), and as `ActivationUnit` says."""
        begins = F.pad(lengths.long().cumsum(0), (1, 0))
        total = like.size(0) if request is None else total
        if request is not None:
            begins, lengths = begins.index_select(0, request), lengths.index_select(0, request)
        valid = valid_rows(weights, like)
        if valid is not None:
            valid = torch.repeat_interleave(valid, lengths, output_size=total)
        offsets = begins if request is None else F.pad(lengths.long().cumsum(0), (1, 0))
        return cls(offsets, begins, valid)


class Relevance(torch.autograd.Function):
    """x_1 = base + A e,  x_i+1 = W_i dice_i(x_i) + b_i:  (N, 1), the last one.

    A (d, H) = event + diag(q) product is a layer of each row's own, see fused.cpp.
    """

    @staticmethod
    def forward(
        ctx: Any,
        library: Library,
        events: Events,
        dices: Sequence[Dice],
        e: Tensor,
        q: Tensor,
        base: Tensor,
        event: Tensor,
        product: Tensor,
        *rest: Tensor,
    ) -> Tensor:
        """Args:
        library: to call.
        events: where the rows' events lie.
        dices: the activation of every hidden layer.
        e, q: (N, d), the events, each once, and (B, d).
        base: (B, H).
        event, product: (d, H).
        rest: of each hidden layer alpha (H,), and weight (H', H) and bias (H',) of the linear layer that follows.
            All widths but that of the last layer are multiples of ALIGN, filled with zeros.
        """
        (rows, d), width = q.shape, base.size(1)
        offsets, begins, valid = events
        x, sums = e.new_empty(events.pairs, width), e.new_zeros(2, width)
        centre = _pad(dices[0].running_mean, width)
        arguments = (offsets, begins, e, q, base, event, product, centre, valid, x, sums)
        library.call("first_forward", rows, d, width, *arguments)
        x, kept = _onward(library, valid, dices, rest, x, sums)
        ctx.library, ctx.units = library, [dice.alpha.size(0) for dice in dices]
        ctx.save_for_backward(offsets, begins, valid, e, q, event, product, *rest[1::3], *kept)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        offsets, begins, valid, e, q, event, product, *saved = ctx.saved_tensors
        d_out, out, correct, rest = _back(ctx.library, ctx.units, valid, saved, gradient)
        (rows, d), width = q.shape, event.size(1)
        room = _room(d)
        turned = [_pad(block, room, 0).t().contiguous() for block in (event, product)]  # (H, room)
        d_e, d_q, d_base = torch.zeros_like(e), torch.zeros_like(q), q.new_zeros(rows, width)
        d_event, d_product = torch.zeros_like(event), torch.zeros_like(product)
        arguments = (
            offsets,
            begins,
            e,
            q,
            product,
            *turned,
            d_out,
            out,
            correct,
            valid,
            d_e,
            d_base,
            d_q,
            d_event,
            d_product,
        )
        ctx.library.call("first_backward", rows, d, room, width, *arguments)
        return None, None, None, d_e, d_q, d_base, d_event, d_product, *rest


class Layers(torch.autograd.Function):
    """x_1 = W x + b,  x_i+1 = W_i dice_i(x_i) + b_i:  the last one."""

    @staticmethod
    def forward(
        ctx: Any,
        library: Library,
        valid: Tensor | None,
        dices: Sequence[Dice],
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        *rest: Tensor,
    ) -> Tensor:
        """Args:
        library: to call.
        valid: (B,), 0 for padding rows; None where there are none.
        dices: the activation between each linear layer and the next.
        x: (B, k), contiguous.
        weight, bias: (H, k) and (H,), of the first linear layer; H is a multiple of ALIGN, filled with zeros.
        rest: as of `Relevance`.
        """
        rows, width = x.size(0), bias.size(0)
        out, sums = x.new_empty(rows, width), x.new_zeros(2, width)
        centre = _pad(dices[0].running_mean, width) if dices else None
        turned = weight.t().contiguous()
        library.call("linear_forward", rows, x.size(1), width, x, turned, bias, centre, valid, out, sums)
        out, kept = _onward(library, valid, dices, rest, out, sums)
        ctx.library, ctx.units = library, [dice.alpha.size(0) for dice in dices]
        ctx.save_for_backward(valid, x, weight, *rest[1::3], *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        valid, x, weight, *saved = ctx.saved_tensors
        d_out, out, correct, rest = _back(ctx.library, ctx.units, valid, saved, gradient)
        (rows, k), width = x.shape, weight.size(0)
        room = _room(k)
        d_x, d_weight, d_bias = torch.empty_like(x), x.new_zeros(k, width), x.new_zeros(width)
        arguments = (x, _pad(weight, room).contiguous(), d_out, out, correct, valid, d_x, d_weight, d_bias)
        ctx.library.call("linear_backward", rows, k, room, width, *arguments)
        return None, None, None, d_x, d_weight.t(), d_bias, *rest


class WeightedSums(torch.autograd.Function):
    """The sum of each row's events, of e (N, d), times their weights w (M, 1): (B, d)."""

    @staticmethod
    def forward(ctx: Any, library: Library, events: Events, w: Tensor, e: Tensor) -> Tensor:
        ctx.library = library
        ctx.save_for_backward(events.offsets, events.begins, w, e)
        out = e.new_empty(events.offsets.size(0) - 1, e.size(1))
        library.call("pool_forward", *out.shape, events.offsets, events.begins, w, e, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        offsets, begins, w, e = ctx.saved_tensors
        d_w, d_e = torch.empty_like(w), torch.zeros_like(e)
        ctx.library.call("pool_backward", *gradient.shape, offsets, begins, w, e, gradient.contiguous(), d_w, d_e)
        return None, None, d_w, d_e


def relevance(
    library: Library,
    events: Events,
    query: Tensor,
    e: Tensor,
    blocks: Sequence[Tensor],
    bias: Tensor,
    dices: list[Dice],
    linears: list[torch.nn.Linear],
) -> Tensor:
    """Return the unit's weight of every event of every row, (M, 1), differentiable.

    Args:
        library: to call.
        events: where the rows' events lie.
        query: (B, d).
        e: (N, d + s), contiguous: events and their side.
        blocks: the first layer's weight (H, .) of q, e, q - e, q * e and the side.
        bias: (H,), the first layer's.
        dices: every hidden layer's activation.
        linears: the layer after each of them.
    """
    of_query, of_event, of_difference, of_product, of_side = blocks
    width = _room(bias.size(0))
    base = F.linear(query, _pad(of_query + of_difference, width, 0), _pad(bias, width))  # (B, H)
    event = _pad(torch.cat([of_event - of_difference, of_side], 1), width, 0).t().contiguous()  # (d + s, H)
    product = F.pad(of_product.t(), (0, width - bias.size(0), 0, of_side.size(1)))  # (d + s, H)
    rest = _following(dices, linears, width)
    q = F.pad(query, (0, of_side.size(1))).contiguous()  # (B, d + s)
    return Relevance.apply(library, events, dices, e, q, base, event, product.contiguous(), *rest)


def layers(
    library: Library, x: Tensor, weights: Tensor | None, linears: Sequence[torch.nn.Linear], dices: Sequence[Dice]
) -> Tensor:
    """Return what linear layers with a Dice between each and the next make of x, (B, outputs), differentiable.

    Args:
        library: to call.
        x: (B, k).
        weights: (B,), rows of weight 0 stay out of Dice's statistics; None takes every row.
        linears: at least one.
        dices: one fewer.
    """
    first, width = linears[0], _room(linears[0].out_features)
    weight, bias, rest = _pad(first.weight, width, 0), _pad(first.bias, width), _following(dices, linears[1:], width)
    out = Layers.apply(library, valid_rows(weights, x), dices, x.contiguous(), weight, bias, *rest)
    return out[:, : linears[-1].out_features]


def _following(dices: Sequence[Dice], linears: Sequence[torch.nn.Linear], width: int) -> list[Tensor]:
    """Return `rest` of `Relevance` for the layer after each Dice, the first of which sees `width` columns."""
    rest: list[Tensor] = []
    for dice, linear in zip(dices, linears, strict=True):
        wide = linear.out_features if linear is linears[-1] else _room(linear.out_features)
        rest += [_pad(dice.alpha, width), _pad(_pad(linear.weight, width), wide, 0), _pad(linear.bias, wide)]
        width = wide
    return rest


def _onward(
    library: Library, valid: Tensor | None, dices: Sequence[Dice], rest: Sequence[Tensor], x: Tensor, sums: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Go from x_1 to the last layer. Collective.

    Args:
        library: to call.
        valid: (N,), 0 for padding; None where there is none.
        dices: the activation of x_1 and of every layer but the last.
        rest: see `Relevance`.
        x: (N, H), x_1.
        sums: (2, H), its moments around the first Dice's running mean.

    Returns:
        The last layer, (N, H'), and what `_back` needs.
    """
    number = x.new_tensor(x.size(0)) if valid is None else valid.sum()  # of valid events
    kept: list[Tensor] = []
    for i, (dice, alpha, weight, bias) in enumerate(zip(dices, rest[::3], rest[1::3], rest[2::3], strict=True)):
        wide, width = weight.shape
        curve, count = dice.settle_compiled(library, alpha, sums, number)
        kept += [x, curve, count]
        following = dices[i + 1] if i + 1 < len(dices) else None
        centre = None if following is None else _pad(following.running_mean, wide)
        room = _room(wide)
        turned = _pad(weight, room, 0).t().contiguous()
        out, sums = x.new_empty(x.size(0), wide), x.new_zeros(2, room)
        arguments = (x, curve, turned, _pad(bias, room), centre, valid, out, sums)
        library.call("next_forward", x.size(0), width, wide, room, *arguments)
        x = out
    return x, kept


def _back(
    library: Library, units: list[int], valid: Tensor | None, saved: Sequence[Tensor], gradient: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None, list[Tensor]]:
    """Go back from the gradient of the last layer to that of x_1. Collective.

    Args:
        library: to call.
        units: of every Dice.
        valid: as of `_onward`.
        saved: the weight after each Dice, then what `_onward` kept.
        gradient: (N, H'), of the last layer.

    Returns:
        The gradient of x_1, (N, H), but for what the statistics add; x_1 and the `correction` that tells this, None
        where no Dice follows; the gradients of `rest`.
    """
    weights, kept = saved[: len(units)], saved[len(units) :]
    rest: list[Tensor] = []
    d_out, out, correct = gradient.contiguous(), None, None
    for i in reversed(range(len(units))):
        x, curve, count = kept[3 * i : 3 * i + 3]
        wide, width = weights[i].shape
        d_x, sums = torch.empty_like(x), x.new_zeros(3, width)
        d_weight, d_bias = x.new_zeros(wide, width), x.new_zeros(wide)
        arguments = (x, curve, weights[i].contiguous(), d_out, out, correct, valid, d_x, sums, d_weight, d_bias)
        library.call("next_backward", x.size(0), width, wide, *arguments)
        rest = [sums[0], d_weight, d_bias, *rest]
        d_out, out, correct = d_x, x, compiled_correction(library, units[i], sums, curve, count)
    return d_out, out, correct, rest


def _room(width: int) -> int:
    """Return the next multiple of ALIGN."""
    return -(-width // ALIGN) * ALIGN


def _pad(x: Tensor, size: int, dim: int = -1) -> Tensor:
    """Return x with zeros added at the end of a dimension until it has a size."""
    missing = size - x.size(dim)
    return x if missing == 0 else F.pad(x, (0, missing) if dim in (-1, x.dim() - 1) else (0, 0, 0, missing))
