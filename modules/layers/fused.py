"""DIN's activation unit, and layers with Dice, for training, by the passes of a library; attention.py and mlp.py are
their plain twins. A CPU's passes are those of fused.cpp, a GPU's those of gpu/passes.py.

What is kept from forward to backward is each layer's values before Dice, whose statistics need all of them. All else
is cheaper to compute again than to write to main memory and read back.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from livetrain.modules.layers.compiled import Library, by_task
from livetrain.modules.layers.dice import CompiledDice, Dice, RunningDice, correction, of_total, valid_rows, with_number
from livetrain.modules.layers.stack import Stack

ALIGN = 16  # what fused.cpp wants widths to be multiples of


class Events(NamedTuple):
    """Where each row's events lie: of M pairs of a row and an event its own, and of the N events those in them.

    Rows of one request follow one another and share its events; otherwise M = N, and `begins` are the offsets.
    """

    offsets: Tensor  # (B + 1,) int64, of the pairs
    begins: Tensor  # (B,) int64 at least, of the events
    valid: Tensor | None  # (M,), 0 for the pairs of padding rows; None where there are none
    pairs: int  # M

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
        return cls(offsets, begins, valid, total)


class First(torch.autograd.Function):
    """x = base + A e, the activation unit's first layer, and its moments; A (d, H) = event + diag(q) product is a layer
    of each row's own, see fused.cpp."""

    @staticmethod
    def forward(
        ctx: Any,
        library: Library,
        events: Events,
        centre: Tensor,
        e: Tensor,
        q: Tensor,
        base: Tensor,
        event: Tensor,
        product: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Args:
        library: to call.
        events: where the rows' events lie.
        centre: (units,), of the moments.
        e, q: (N, d), the events, each once, and (B, d).
        base: (B, H), H a multiple of ALIGN, filled with zeros beyond the units.
        event, product: (d, H).
        """
        (rows, d), width = q.shape, base.size(1)
        offsets, begins, valid, pairs = events
        x, sums = e.new_empty(pairs, width), _zeros(e, 2, width)
        arguments = (offsets, begins, e, q, base, event, product, _pad(centre, width), valid, x, sums)
        library.call("first_forward", rows, d, width, *arguments)
        ctx.library = library
        ctx.save_for_backward(offsets, begins, valid, centre, e, q, event, product, x)
        ctx.set_materialize_grads(False)
        return x, with_number(sums[:, : centre.size(0)], x, valid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x: Tensor | None, d_moments: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, None, *_of_first(ctx.library, _given(d_x, ctx), d_moments, *ctx.saved_tensors)


@by_task
def _of_first(
    library: Library,
    d_x: Tensor,
    d_moments: Tensor | None,
    offsets: Tensor,
    begins: Tensor,
    valid: Tensor | None,
    centre: Tensor,
    e: Tensor,
    q: Tensor,
    event: Tensor,
    product: Tensor,
    x: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of e, q, base, event and product."""
    (rows, d), width = q.shape, event.size(1)
    correct = _zeros(x, 2, width) if d_moments is None else correction(library, d_moments, centre, width)
    room = _room(d)
    turned = [_pad(block, room, 0).t().contiguous() for block in (event, product)]  # (H, room)
    d_e, d_q, d_base = torch.zeros_like(e), torch.zeros_like(q), q.new_zeros(rows, width)
    d_event, d_product = torch.zeros_like(event), torch.zeros_like(product)
    given = (offsets, begins, e, q, product, *turned, d_x.contiguous(), x, correct, valid)
    library.call("first_backward", rows, d, room, width, *given, d_e, d_base, d_q, d_event, d_product)
    return d_e, d_q, d_base, d_event, d_product


class Linear(torch.autograd.Function):
    """x = W x_0 + b, and its moments."""

    @staticmethod
    def forward(
        ctx: Any, library: Library, valid: Tensor | None, centre: Tensor, x: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Args:
        library: to call.
        valid: (B,), 0 for padding rows; None where there are none.
        centre: (units,), of the moments.
        x: (B, k), contiguous.
        weight, bias: (H, k) and (H,); H is a multiple of ALIGN, filled with zeros beyond the units.
        """
        rows, width = x.size(0), bias.size(0)
        out, sums = x.new_empty(rows, width), _zeros(x, 2, width)
        arguments = (x, weight.t().contiguous(), bias, _pad(centre, width), valid, out, sums)
        library.call("linear_forward", rows, x.size(1), width, *arguments)
        ctx.library = library
        ctx.save_for_backward(valid, centre, x, weight, out)
        ctx.set_materialize_grads(False)
        return out, with_number(sums[:, : centre.size(0)], x, valid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_moments: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, None, *_of_linear(ctx.library, _given(d_out, ctx), d_moments, *ctx.saved_tensors)


@by_task
def _of_linear(
    library: Library,
    d_out: Tensor,
    d_moments: Tensor | None,
    valid: Tensor | None,
    centre: Tensor,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, W and b."""
    (rows, k), width = x.shape, weight.size(0)
    correct = _correction(library, d_moments, centre, width)
    room = _room(k)
    d_x, d_weight, d_bias = torch.empty_like(x), x.new_zeros(k, width), x.new_zeros(width)
    given = (x, _pad(weight, room).contiguous(), d_out.contiguous(), out, correct, valid)
    library.call("linear_backward", rows, k, room, width, *given, d_x, d_weight, d_bias)
    return d_x, d_weight.t(), d_bias


class Next(torch.autograd.Function):
    """x_i+1 = W dice(x_i) + b, and its moments where another Dice follows."""

    @staticmethod
    def forward(
        ctx: Any,
        library: Library,
        dice: Dice,
        valid: Tensor | None,
        centre: Tensor | None,
        x: Tensor,
        total: Tensor | None,
        alpha: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Args:
        library: to call.
        dice: the activation of x.
        valid: (N,), 0 for padding; None where there is none.
        centre: (units,), of the moments of what is returned; None where no Dice follows.
        x: (N, H).
        total: the moments of x on all ranks.
        alpha: (H,), that of `dice` filled with zeros.
        weight: (H', H), filled with zeros; H' is a multiple of ALIGN where a Dice follows.
        bias: (H',), likewise.
        """
        wide, width = weight.shape
        curve, room = dice.settle(library, total, alpha), _room(wide)
        out, sums = x.new_empty(x.size(0), wide), _zeros(x, 2, room)
        around = None if centre is None else _pad(centre, room)
        arguments = (x, curve, _pad(weight, room, 0).t().contiguous(), _pad(bias, room), around, valid, out, sums)
        library.call("next_forward", x.size(0), width, wide, room, *arguments)
        ctx.library = library
        ctx.save_for_backward(valid, centre, x, total, curve, weight, out)
        ctx.set_materialize_grads(False)
        return out, None if centre is None else with_number(sums[:, : centre.size(0)], x, valid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_moments: Tensor | None) -> tuple[Tensor | None, ...]:
        found = _of_next(ctx.library, _given(d_out, ctx), d_moments, *ctx.saved_tensors)
        d_x, d_total, *others = found
        return None, None, None, None, d_x, d_total if ctx.needs_input_grad[5] else None, *others


@by_task
def _of_next(
    library: Library,
    d_out: Tensor,
    d_moments: Tensor | None,
    valid: Tensor | None,
    centre: Tensor | None,
    x: Tensor,
    total: Tensor | None,
    curve: Tensor,
    weight: Tensor,
    out: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, but for what goes through its moments, of the total, of alpha, W and b."""
    wide, width = weight.shape
    correct = _correction(library, d_moments, centre, wide)
    d_x, sums = torch.empty_like(x), _zeros(x, 3, width)
    d_weight, d_bias = _zeros(x, wide, width), _zeros(x, wide)
    given = (x, curve, weight.contiguous(), d_out.contiguous(), out, correct, valid)
    library.call("next_backward", x.size(0), width, wide, *given, d_x, sums, d_weight, d_bias)
    return d_x, of_total(library, sums, curve, total), sums[0], d_weight, d_bias


class WeightedSums(torch.autograd.Function):
    """The sum of each row's events, of e (N, d), times their weights w (M, 1): (B, d)."""

    @staticmethod
    def forward(ctx: Any, library: Library, events: Events, w: Tensor, e: Tensor) -> Tensor:
        ctx.library = library
        ctx.save_for_backward(events.offsets, events.begins, w, e)
        out = _zeros(e, events.offsets.size(0) - 1, e.size(1))
        library.call("pool_forward", *out.shape, events.offsets, events.begins, w, e, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_of_sums(ctx.library, gradient, *ctx.saved_tensors)


@by_task
def _of_sums(
    library: Library, gradient: Tensor, offsets: Tensor, begins: Tensor, w: Tensor, e: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of w and e."""
    d_w, d_e = torch.empty_like(w), torch.zeros_like(e)
    library.call("pool_backward", *gradient.shape, offsets, begins, w, e, gradient.contiguous(), d_w, d_e)
    return d_w, d_e


class Compiled(Stack):
    """A stack whose layers are compiled passes.

    Args:
        library: to call.
        valid: (N,), 0 for padding; None where there is none.
        dices: the activations, at least one.
        linears: the layer after each of them, or after all but the last.
    """

    def __init__(
        self,
        library: Library,
        valid: Tensor | None,
        dices: Sequence[Dice],
        linears: Sequence[torch.nn.Linear],
    ) -> None:
        super().__init__(len(dices))
        self._library, self._valid, self._dices, self._linears = library, valid, dices, linears
        self._moments: Tensor | None = None

    @classmethod
    def of_events(
        cls,
        library: Library,
        events: Events,
        query: Tensor,
        e: Tensor,
        blocks: Sequence[Tensor],
        bias: Tensor,
        dices: Sequence[Dice],
        linears: Sequence[torch.nn.Linear],
    ) -> "Compiled":
        """Begin with the unit's first layer on every event of every row; at the end x is (M, 1), their weights.

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
        product = F.pad(of_product.t(), (0, width - bias.size(0), 0, of_side.size(1))).contiguous()  # (d + s, H)
        q = F.pad(query, (0, of_side.size(1))).contiguous()  # (B, d + s)
        stack = cls(library, events.valid, dices, linears)
        stack.x, stack._moments = First.apply(library, events, _centre(dices[0]), e, q, base, event, product)
        return stack

    @classmethod
    def of_rows(
        cls,
        library: Library,
        x: Tensor,
        weights: Tensor | None,
        first: torch.nn.Linear,
        dices: Sequence[Dice],
        linears: Sequence[torch.nn.Linear],
    ) -> "Compiled":
        """Begin with a linear layer.

        Args:
            library: to call.
            x: (B, k).
            weights: (B,), rows of weight 0 stay out of Dice's statistics; None takes every row.
            first: layer.
            dices: the activation of its output and of every following layer's.
            linears: the layer after each of them, or after all but the last.
        """
        width, valid = _room(first.out_features), valid_rows(weights, x)
        weight, bias = _pad(first.weight, width, 0), _pad(first.bias, width)
        stack = cls(library, valid, dices, linears)
        stack.x, stack._moments = Linear.apply(library, valid, _centre(dices[0]), x.contiguous(), weight, bias)
        return stack

    def asks(self, depth: int) -> Tensor | None:
        dice = self._dices[depth]
        if isinstance(dice, RunningDice) and self._moments is not None:
            dice.see(self._moments)
        return self._moments if dice.waits else None

    def go_on(self, depth: int, total: Tensor | None) -> None:
        dice, width, following = self._dices[depth], self.x.size(1), self._dices[depth + 1 : depth + 2]
        alpha = _pad(dice.alpha, width)
        if depth == len(self._linears):
            self.x = CompiledDice.apply(self._library, dice, self.x, total, alpha)[:, : dice.alpha.size(0)]
            return
        linear = self._linears[depth]
        wide, centre = (_room(linear.out_features), _centre(following[0])) if following else (linear.out_features, None)
        weight, bias = _pad(_pad(linear.weight, width), wide, 0), _pad(linear.bias, wide)
        given = (self._library, dice, self._valid, centre, self.x, total, alpha, weight, bias)
        self.x, self._moments = Next.apply(*given)


def _zeros(x: Tensor, *size: int) -> Tensor:
    """Return zeros to which rows of x are summed: at least float32."""
    return x.new_zeros(size, dtype=torch.promote_types(x.dtype, torch.float32))


def _given(gradient: Tensor | None, ctx: Any) -> Tensor:
    """Return the gradient of what a layer gave, which it saved last; zeros where there is none."""
    return torch.zeros_like(ctx.saved_tensors[-1]) if gradient is None else gradient


def _correction(library: Library, gradient: Tensor | None, centre: Tensor | None, width: int) -> Tensor | None:
    """Return `correction`; None where no gradient comes from the moments."""
    return None if gradient is None or centre is None else correction(library, gradient, centre, width)


def _centre(dice: Dice) -> Tensor:
    """Return what moments are around: a copy, for the running mean moves before the backward pass."""
    return dice.running_mean.clone()


def _room(width: int) -> int:
    """Return the next multiple of ALIGN."""
    return -(-width // ALIGN) * ALIGN


def _pad(x: Tensor, size: int, dim: int = -1) -> Tensor:
    """Return x with zeros added at the end of a dimension until it has a size."""
    missing = size - x.size(dim)
    return x if missing == 0 else F.pad(x, (0, missing) if dim in (-1, x.dim() - 1) else (0, 0, 0, missing))
