"""What lies around the events of rows in training on a CPU, by the passes of events.cpp: linear layers on normalised
input, and the frequency filter. sequence.py, domain.py and frequency.py are the plain twins; attend.py has attention.

What is kept from forward to backward is each pass's input; what it normalises and filters is cheaper to compute again.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from livetrain.modules.layers.compiled import Library, by_task, library_for

ALIGN = 16  # what events.cpp wants widths of outputs to be multiples of


def passes_for(x: Tensor, *widths: int) -> Library | None:
    """Return the library that has passes for layers of these outputs on x, (N, d), if one is in use."""
    library = library_for(x)
    return library if library and library.towers and not any(width % ALIGN for width in widths) else None


def layer(
    library: Library,
    x: Tensor,
    norm: nn.LayerNorm | None,
    linears: list[nn.Linear],
    relu: bool = False,
    beside: Tensor | None = None,
) -> Tensor:
    """Return f(W norm(x) + b) + beside, differentiable.

    Args:
        library: from `passes_for`.
        x: (N, k).
        norm: of x; None takes x as it is.
        linears: W and b, of several layers one after the other: they share what is normalised.
        relu: f; without it f is nothing.
        beside: (N, H), or None; not with `relu`.

    Returns:
        (N, H), H the outputs of all layers.
    """
    weight: Tensor = linears[0].weight
    bias: Tensor | None = linears[0].bias
    if len(linears) > 1:
        weight = torch.cat([linear.weight for linear in linears])
        bias = torch.cat([linear.bias for linear in linears])
    of_norm = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
    return _Layer.apply(library, relu, *of_norm, x.contiguous(), weight, bias, beside)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        library: Library,
        relu: bool,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        beside: Tensor | None,
    ) -> Tensor:
        (rows, k), width = x.shape, weight.size(0)
        out = x.new_empty(rows, width)
        given = (x, gamma, beta, weight.t().contiguous(), bias, None if beside is None else beside.contiguous())
        library.call("layer_forward", rows, k, width, int(relu), float(eps), *given, out)
        ctx.library, ctx.relu, ctx.eps = library, relu, eps
        ctx.save_for_backward(gamma, beta, x, weight, bias, out if relu else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gamma, beta, x, weight, bias, out = ctx.saved_tensors
        found = _of_layer(ctx.library, ctx.relu, ctx.eps, gradient, gamma, beta, x, weight, out)
        d_x, d_weight, d_bias, d_gamma, d_beta = found
        of_norm = (None, None, None) if gamma is None else (d_gamma, d_beta, None)
        of_bias = None if bias is None else d_bias
        return None, None, *of_norm, d_x, d_weight, of_bias, gradient if ctx.needs_input_grad[8] else None


@by_task
def _of_layer(
    library: Library,
    relu: bool,
    eps: float,
    gradient: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    x: Tensor,
    weight: Tensor,
    out: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, W, the bias, gamma and beta."""
    (rows, k), width = x.shape, weight.size(0)
    room = -(-k // ALIGN) * ALIGN
    d_x, d_weight, d_bias = torch.empty_like(x), x.new_zeros(k, width), x.new_zeros(width)
    d_gamma, d_beta = x.new_zeros(2, k).unbind()
    turned = F.pad(weight, (0, room - k)).contiguous()  # (H, room)
    given = (x, gamma, beta, turned, gradient.contiguous(), out, d_x, d_weight, d_bias, d_gamma, d_beta)
    library.call("layer_backward", rows, k, room, width, int(relu), float(eps), *given)
    return d_x, d_weight.t(), d_bias, d_gamma, d_beta


class Split(torch.autograd.Function):
    """x + alpha low + beta (x - low), as `frequency.Split` adds its gated frequencies."""

    @staticmethod
    def forward(ctx: Any, library: Library, lengths: Tensor, kept: Tensor, x: Tensor, gates: Tensor) -> Tensor:
        """Args:
        library: from `passes_for`.
        lengths: (B,) integer.
        kept: (B,) int64, how many frequencies of each row are low.
        x: (N, d), d a multiple of ALIGN.
        gates: (B, 2 d), alpha and beta.
        """
        offsets = F.pad(lengths.long().cumsum(0), (1, 0))
        x, gates, kept, out = x.contiguous(), gates.contiguous(), kept.contiguous(), torch.empty_like(x)
        library.call("split_forward", lengths.size(0), x.size(1), offsets, kept, x, gates, out)
        ctx.library = library
        ctx.save_for_backward(offsets, kept, x, gates)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *_of_split(ctx.library, gradient, *ctx.saved_tensors)


@by_task
def _of_split(
    library: Library, gradient: Tensor, offsets: Tensor, kept: Tensor, x: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and the gates."""
    d_x, d_gates = torch.empty_like(x), torch.zeros_like(gates)
    given = (offsets, kept, x, gates, gradient.contiguous(), d_x, d_gates)
    library.call("split_backward", gates.size(0), x.size(1), *given)
    return d_x, d_gates
