"""Dice, the activation of DIN: a PReLU whose turning point follows the data.

A layer with Dice has two halves, for what lies between them is a sum over ranks: `Dice.moments` tells it what this rank
knows, `Dice.activate` goes on with what all ranks know. modules/layers/stack.py lets several layers ask together.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from livetrain.modules.layers.compiled import Library, by_task, library_for
from livetrain.modules.layers.distributed import all_reduce_sum
from livetrain.modules.layers.moving import Moving
from livetrain.modules.layers.precision import widen


def valid_rows(weights: Tensor | None, like: Tensor) -> Tensor | None:
    """Return 1 for rows that count and 0 for padding, (B,), or None if all count: a GPU is not asked for that.

    Args:
        weights: (B,), 0 marks padding; None if there is none.
        like: a tensor of the type wanted.
    """
    if weights is None or (weights.device.type == "cpu" and bool((weights > 0).all())):
        return None
    return (weights > 0).to(like.dtype)


class _CompiledMoments(torch.autograd.Function):
    """`Dice.moments` by a compiled pass, for contiguous x; valid is None where every row is."""

    @staticmethod
    def forward(ctx: Any, library: Library, x: Tensor, centre: Tensor, valid: Tensor | None) -> Tensor:
        sums = x.new_zeros(2, x.size(1))
        library.call("dice_moments", *x.shape, x, centre, valid, sums)
        ctx.library = library
        ctx.save_for_backward(x, centre, valid)
        return with_number(sums, x, valid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, _of_moments(ctx.library, gradient, *ctx.saved_tensors), None, None


class CompiledDice(torch.autograd.Function):
    """`Dice.activate` by compiled passes, for contiguous x."""

    @staticmethod
    def forward(ctx: Any, library: Library, dice: "Dice", x: Tensor, total: Tensor | None, alpha: Tensor) -> Tensor:
        out, curve = torch.empty_like(x), dice.settle(library, total, alpha)
        library.call("dice_forward", *x.shape, x, curve, out)
        ctx.library = library
        ctx.save_for_backward(x, total, curve)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        d_x, d_total, d_alpha = _of_dice(ctx.library, gradient, *ctx.saved_tensors)
        return None, None, d_x, d_total if ctx.needs_input_grad[3] else None, d_alpha


@by_task
def _of_moments(library: Library, gradient: Tensor, x: Tensor, centre: Tensor, valid: Tensor | None) -> Tensor:
    """Return the gradient of x through its moments, from theirs."""
    correct, d_x = correction(library, gradient, centre, x.size(1)), torch.zeros_like(x)
    library.call("dice_complete", *x.shape, d_x, x, correct, valid)
    return d_x


@by_task
def _of_dice(library: Library, gradient: Tensor, x: Tensor, total: Tensor | None, curve: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of x, of the totals and of alpha."""
    d_x, sums = torch.empty_like(x), x.new_zeros(3, x.size(1))
    library.call("dice_backward", *x.shape, x, gradient.contiguous(), curve, d_x, sums)
    return d_x, of_total(library, sums, curve, total), sums[0]


def with_number(sums: Tensor, x: Tensor, valid: Tensor | None) -> Tensor:
    """Return sums (2, H) and the number of the valid rows of x (N, ...) as `Dice.moments` does, (2 H + 1,)."""
    number = sums.new_full((1,), x.size(0)) if valid is None else valid.sum(dtype=sums.dtype).reshape(1)
    return torch.cat([sums.flatten(), number])


def correction(library: Library, gradient: Tensor, centre: Tensor, width: int) -> Tensor:
    """Return what moments (2 H + 1,) with this gradient add to that of x: constant and slope of valid rows, (2, width).

    Args:
        library: to call.
        gradient: (2 H + 1,).
        centre: (H,) at least, what the moments are around.
        width: columns of x, filled with zeros beyond H.
    """
    out = gradient.new_zeros(2, width)
    library.call("dice_correction", gradient.size(0) // 2, width, gradient.contiguous(), centre, out)
    return out


def of_total(library: Library, sums: Tensor, curve: Tensor, total: Tensor | None) -> Tensor:
    """Return the gradient of the totals (2 H + 1,) that made a curve (3, W): of none, none.

    Args:
        library: to call.
        sums: (3, W), over this rank's rows, of d_alpha, d_z and d_z x, with z = scale x + shift.
        curve: alpha, scale, shift.
        total: see `Dice.activate`; None where the curve was made of what is known already.
    """
    if total is None:
        return sums.new_zeros(0)
    out = torch.zeros_like(total)
    library.call("dice_total", total.size(0) // 2, sums.size(1), sums, curve, total, out)
    return out


def statistics(total: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (H,), variance (H,) and the number () of the rows, at least 1, of `Dice.moments` around a centre."""
    count = total[-1].clamp(min=1)
    distance, square = (total[:-1] / count).view(2, -1)
    return centre + distance, (square - distance.square()).clamp(min=0), count


class Dice(Moving):
    """Data-adaptive activation.

    y = p * x + (1 - p) * alpha * x,  p = sigmoid((x - E[x]) / sqrt(Var[x] + eps)),  per neuron

    In training E and Var are those of the valid rows of the global batch: they are summed over the ranks, and the
    gradient flows through them. In evaluation they are the running statistics, kept as `nn.BatchNorm1d` keeps them
    (running <- (1 - momentum) * running + momentum * batch, with the unbiased variance).

    Args:
        units: H, the number of neurons.
        momentum: weight of a batch in the running statistics.
        eps: added to the variance.

    Source: Zhou et al., "Deep interest network", 1706.06978, equation 3; alpha starts at 0.
    """

    waits = True  # for sums over ranks, in training
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, units: int, momentum: float = 0.1, eps: float = 1e-8) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.alpha = nn.Parameter(torch.zeros(units))
        self.register_buffer("running_mean", torch.zeros(units))
        self.register_buffer("running_var", torch.ones(units))

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Activate.

        Args:
            x: (B, H).
            weights: (B,), rows of weight 0 stay out of the statistics; None takes every row.

        Returns:
            (B, H) of x's type; the arithmetic is at least float32.
        """
        wide = widen(x)
        if self.training and not torch.jit.is_scripting():  # a scripted file only scores
            centre = self.running_mean.clone()
            return self.activate(wide, all_reduce_sum(self.moments(wide, weights, centre)), centre).to(x.dtype)
        scale = torch.rsqrt(self.running_var + self.eps)
        p = torch.addcmul(-self.running_mean * scale, wide, scale).sigmoid_()  # most of a DIN's time when it scores
        return torch.addcmul(self.alpha, p, 1 - self.alpha).mul_(wide).to(x.dtype)

    @torch.jit.unused
    def moments(self, x: Tensor, weights: Tensor | None, centre: Tensor) -> Tensor:
        """Return what this rank knows of the statistics of a training step, (2 H + 1,), differentiable.

        These are sums over its valid rows of the distance from a centre and of the square of that, and the number of
        these rows. Sums of raw squares would lose the variance of a neuron whose mean is large.

        Args:
            x: (B, H), of at least float32.
            weights: see `forward`.
            centre: (H,), the running mean; a copy, for that moves.
        """
        library = library_for(x)
        if library is not None:
            return _CompiledMoments.apply(library, x.contiguous(), centre, valid_rows(weights, x))
        distance = x - centre
        if weights is None:
            valid = x.new_ones(x.size(0))
        else:
            valid = (weights > 0).to(x.dtype)
            distance = distance * valid.unsqueeze(1)
        return torch.cat([distance.sum(0), distance.square().sum(0), valid.sum().reshape(1)])

    @torch.jit.unused
    def activate(self, x: Tensor, total: Tensor, centre: Tensor) -> Tensor:
        """Activate with the statistics of a training step, differentiable; the running ones move.

        Args:
            x: (B, H), of at least float32.
            total: (2 H + 1,), the `moments` of all ranks.
            centre: what those are around.
        """
        library = library_for(x)
        if library is not None:
            return CompiledDice.apply(library, self, x.contiguous(), total, self.alpha)
        mean, variance, count = statistics(total, centre)
        self._move(mean.detach(), variance.detach(), count)
        p = ((x - mean) * torch.rsqrt(variance + self.eps)).sigmoid()
        return x * (self.alpha + (1 - self.alpha) * p)

    @torch.jit.unused
    def settle(self, library: Library, total: Tensor | None, alpha: Tensor) -> Tensor:
        """Return the curve (3, W) of a training step: alpha, scale and shift; the running statistics move.

        Args:
            library: to call.
            total: (2 H + 1,), the `moments` of all ranks around the running mean.
            alpha: (W,), this one's or with zeros added to it.
        """
        assert total is not None
        units, width = self.alpha.size(0), alpha.size(0)
        curve, running = total.new_empty(3, width), (self.running_mean, self.running_var)
        sizes = (units, width, float(self.eps), float(self.momentum))
        library.call("dice_settle", *sizes, total, alpha.detach(), *running, curve)
        return curve

    @torch.jit.unused
    def _move(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        unbiased = variance * (count / (count - 1).clamp(min=1))
        # A batch with no valid row (every sequence empty) or one tells nothing about the variance.
        known = torch.where(count > 1, self.momentum, 0.0).to(mean.dtype)
        moved = torch.lerp(self.running_mean, mean.to(self.running_mean.dtype), self.momentum)
        spread = torch.lerp(self.running_var, unbiased.to(self.running_var.dtype), known.to(self.running_var.dtype))
        self.move({"running_mean": moved, "running_var": spread})


class RunningDice(Dice):
    """Dice that sees in training what it sees in evaluation: running statistics, those of the steps before.

    No gradient flows through them, and no step waits for another rank within its layers: what this rank saw of a step
    is left in `seen`, to be summed over ranks with the gradients, and then moves the running statistics. Who trains
    without livetrain's step calls `follow` after every backward pass.

    Args:
        units: H, the number of neurons.
        momentum: weight of a batch in the running statistics.
        eps: added to the variance.

    Attributes:
        seen: (2 H + 1,), the `moments` of what it was given since the last call of `follow`; None of nothing.

    Example:
        >>> dice = RunningDice(1)
        >>> dice(torch.tensor([[1.0], [3.0]])).detach().flatten() == dice.eval()(torch.tensor([[1.0], [3.0]])).flatten()
        tensor([True, True])
        >>> dice.follow(dice.seen)  # on one rank what it saw is all there was
        >>> dice.running_mean  # .1 of the mean 2
        tensor([0.2000])
    """

    waits = False

    def __init__(self, units: int, momentum: float = 0.1, eps: float = 1e-8) -> None:
        super().__init__(units, momentum, eps)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Activate; see `Dice.forward`."""
        wide = widen(x)
        if self.training and not torch.jit.is_scripting():
            return self._train(wide, weights).to(x.dtype)
        scale = torch.rsqrt(self.running_var + self.eps)
        p = torch.addcmul(-self.running_mean * scale, wide, scale).sigmoid_()
        return torch.addcmul(self.alpha, p, 1 - self.alpha).mul_(wide).to(x.dtype)

    @torch.jit.unused
    def _train(self, x: Tensor, weights: Tensor | None) -> Tensor:
        library, centre = library_for(x), self.running_mean.clone()
        with torch.no_grad():
            self.see(self.moments(x, weights, centre))
        if library is not None:
            return CompiledDice.apply(library, self, x.contiguous(), None, self.alpha)
        scale = torch.rsqrt(self.running_var + self.eps)
        p = torch.addcmul(-centre * scale, x, scale).sigmoid()
        return torch.addcmul(self.alpha, p, 1 - self.alpha) * x

    @torch.jit.unused
    def see(self, moments: Tensor) -> None:
        """Keep what this rank saw, (2 H + 1,), until `follow`."""
        self.seen = moments.detach() if self.seen is None else self.seen + moments.detach()

    @torch.jit.unused
    def settle(self, library: Library, total: Tensor | None, alpha: Tensor) -> Tensor:
        """Return the curve (3, W) of a training step: alpha (W,), scale and shift."""
        scale = torch.rsqrt(self.running_var + self.eps)
        curve = alpha.new_zeros(3, alpha.size(0))
        curve[0] = alpha.detach()
        curve[1, : scale.size(0)], curve[2, : scale.size(0)] = scale, -self.running_mean * scale
        return curve

    @torch.jit.unused
    @torch.no_grad()
    def follow(self, total: Tensor) -> None:
        """Move the running statistics by what all ranks saw, (2 H + 1,)."""
        self._move(*statistics(total, self.running_mean))
        self.seen = None
