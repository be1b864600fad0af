"""Dice, the activation of DIN: a PReLU whose turning point follows the data."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from livetrain.modules.layers.compiled import Library, library_for
from livetrain.modules.layers.distributed import all_reduce_sum
from livetrain.modules.layers.moving import Moving
from livetrain.modules.layers.precision import widen

_TILE = 2048  # rows; a CPU's cache holds a tile through the whole chain of elementwise operations


def _tiles(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of N rows into tiles that a CPU's cache holds; on a GPU, and in a compiled graph, there is one."""
    if tensors[0].device.type != "cpu" or torch.compiler.is_compiling():
        return iter([tensors])
    return zip(*(tensor.split(_TILE) for tensor in tensors), strict=True)


def valid_rows(weights: Tensor | None, like: Tensor) -> Tensor | None:
    """Return 1 for rows that count and 0 for padding, (B,), or None if all count; for a CPU, where it costs no wait.

    Args:
        weights: (B,), 0 marks padding; None if there is none.
        like: a tensor of the type wanted.
    """
    if weights is None or bool((weights > 0).all()):
        return None
    return (weights > 0).to(like.dtype)


def correction(sums: Tensor, scale: Tensor, shift: Tensor, count: Tensor) -> Tensor:
    """Return what mean and variance, functions of every valid row, add to the gradient of x. Collective.

    As in batch normalisation, with d_z the gradient of z = scale x + shift, the gradient of x through z is
    scale (d_z - valid (mean(d_z) + z mean(d_z z))) = scale d_z + valid (constant + slope x).

    Args:
        sums: (3, H), over this rank's rows, of d_alpha, d_z and d_z x.
        scale: (H,), 1 / sqrt(variance + eps).
        shift: (H,), -mean scale.
        count: (), the valid rows of all ranks.

    Returns:
        (2, H): constant and slope.
    """
    _, sum_z, sum_zx = sums
    by_mean, by_z = all_reduce_sum(torch.stack([sum_z, scale * sum_zx + shift * sum_z])) / count  # (H,), (H,)
    return torch.stack([-(by_mean + shift * by_z) * scale, -by_z * scale * scale])


def compiled_correction(library: Library, units: int, sums: Tensor, curve: Tensor, count: Tensor) -> Tensor:
    """Return `correction` (2, W) by a compiled pass, from sums (3, W) and what `settle_compiled` gave. Collective."""
    total, out = all_reduce_sum(sums[1:, :units].contiguous()), torch.empty_like(sums[1:])
    library.call("dice_correction", units, sums.size(1), total, curve, count, out)
    return out


class _Dice(torch.autograd.Function):
    """Dice with given statistics, and with the gradient that flows through them as in batch normalisation.

    By hand, and tile by tile, because the chain of elementwise operations that autograd would record passes over main
    memory at every link: it takes twice as long.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, scale: Tensor, shift: Tensor, valid: Tensor, count: Tensor
    ) -> Tensor:
        out, p = torch.empty_like(x), torch.empty_like(x)  # (B, H)
        rest = 1 - alpha
        for x_t, p_t, out_t in _tiles(x, p, out):
            torch.addcmul(shift, x_t, scale, out=p_t).sigmoid_()
            torch.addcmul(alpha, p_t, rest, out=out_t).mul_(x_t)
        ctx.save_for_backward(x, p, alpha, scale, shift, valid, count)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, p, alpha, scale, shift, valid, count = ctx.saved_tensors
        rest = 1 - alpha
        d_x, d_z = torch.empty_like(x), torch.empty_like(x)  # (B, H); z = scale * x + shift, p = sigmoid(z)
        d_alpha, sum_z, sum_zx = (torch.zeros_like(alpha) for _ in range(3))
        for x_t, p_t, g_t, d_x_t, d_z_t in _tiles(x, p, gradient, d_x, d_z):
            torch.addcmul(alpha, p_t, rest, out=d_x_t).mul_(g_t)
            through = g_t * x_t
            through.sub_(through * p_t)
            d_alpha += through.sum(0)
            torch.mul(through, p_t, out=d_z_t).mul_(rest)
            sum_z += d_z_t.sum(0)
            sum_zx += through.copy_(d_z_t).mul_(x_t).sum(0)
        constant, slope = correction(torch.stack([d_alpha, sum_z, sum_zx]), scale, shift, count)
        for x_t, valid_t, d_x_t, d_z_t in _tiles(x, valid, d_x, d_z):
            d_x_t.addcmul_(d_z_t, scale).addcmul_(torch.addcmul(constant, x_t, slope), valid_t)
        return d_x, d_alpha, None, None, None, None


class _CompiledDice(torch.autograd.Function):
    """`_Dice` by compiled passes, for contiguous x; valid is None where every row is."""

    @staticmethod
    def forward(
        ctx: Any, library: Library, x: Tensor, alpha: Tensor, curve: Tensor, valid: Tensor | None, count: Tensor
    ) -> Tensor:
        out = torch.empty_like(x)
        library.call("dice_forward", *x.shape, x, curve, out)
        ctx.library = library
        ctx.save_for_backward(x, curve, valid, count)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, curve, valid, count = ctx.saved_tensors
        d_x, sums = torch.empty_like(x), x.new_zeros(3, x.size(1))
        ctx.library.call("dice_backward", *x.shape, x, gradient.contiguous(), curve, d_x, sums)
        change = compiled_correction(ctx.library, x.size(1), sums, curve, count)
        ctx.library.call("dice_complete", *x.shape, d_x, x, change, valid)
        return None, d_x, sums[0], None, None, None


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
            return self._train(wide, weights).to(x.dtype)
        scale = torch.rsqrt(self.running_var + self.eps)
        p = torch.addcmul(-self.running_mean * scale, wide, scale).sigmoid_()  # most of a DIN's time when it scores
        return torch.addcmul(self.alpha, p, 1 - self.alpha).mul_(wide).to(x.dtype)

    @torch.jit.unused
    def _train(self, x: Tensor, weights: Tensor | None) -> Tensor:
        library = library_for(x)
        if library is not None:
            return self._train_compiled(library, x.contiguous(), weights)
        with torch.no_grad():
            valid = (x.new_ones(x.size(0)) if weights is None else (weights > 0).to(x.dtype)).unsqueeze(1)  # (B, 1)
            sums = x.new_zeros(2, x.size(1))
            for x_t, valid_t in _tiles(x, valid):
                distance = (x_t - self.running_mean).mul_(valid_t)
                sums[0] += distance.sum(0)
                sums[1] += distance.square_().sum(0)
            scale, shift, count = self.settle(sums, valid.sum())
        return _Dice.apply(x, self.alpha, scale, shift, valid, count)

    @torch.jit.unused
    def _train_compiled(self, library: Library, x: Tensor, weights: Tensor | None) -> Tensor:
        with torch.no_grad():
            valid = valid_rows(weights, x)
            sums = x.new_zeros(2, x.size(1))
            library.call("dice_moments", *x.shape, x, self.running_mean, valid, sums)
            number = x.new_tensor(x.size(0)) if valid is None else valid.sum()
            curve, count = self.settle_compiled(library, self.alpha, sums, number)
        return _CompiledDice.apply(library, x, self.alpha, curve, valid, count)

    @torch.jit.unused
    def settle(self, sums: Tensor, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn sums over this rank's valid rows into the statistics of this step; the running ones move. Collective.

        One reduction carries sums of distances from the running mean: sums of raw squares would lose the variance
        of a neuron whose mean is large.

        Args:
            sums: (2, H), of x - running_mean and of its square.
            number: (), of those rows.

        Returns:
            scale (H,) and shift (H,) with (x - mean) / deviation = scale x + shift, and the number () of the rows of
            all ranks, at least 1.
        """
        total = all_reduce_sum(torch.cat([sums.flatten(), number.reshape(1)]))
        count = total[-1].clamp(min=1)
        distance, square = (total[:-1] / count).view_as(sums)
        variance = (square - distance.square()).clamp_(min=0)
        mean = self.running_mean + distance
        self._update(mean, variance, count)
        scale = torch.rsqrt(variance + self.eps)
        return scale, -mean * scale, count

    @torch.jit.unused
    def settle_compiled(self, library: Library, alpha: Tensor, sums: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Do what `settle` does by one compiled pass instead of twenty small operations. Collective.

        Args:
            library: to call.
            alpha: (W,), this one's or with zeros added to it.
            sums: (2, W), see `settle`.
            number: (), see `settle`.

        Returns:
            The curve (3, W): alpha, scale and shift; and the number () of the rows of all ranks, at least 1.
        """
        units = self.alpha.size(0)
        total = all_reduce_sum(torch.cat([sums[:, :units].flatten(), number.reshape(1)]))
        curve, count = sums.new_empty(3, sums.size(1)), torch.empty_like(number)
        statistics = (self.running_mean, self.running_var)
        sizes = (units, sums.size(1), float(self.eps), float(self.momentum))
        library.call("dice_settle", *sizes, total, alpha.detach(), *statistics, curve, count)
        return curve, count

    def _update(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        unbiased = variance * (count / (count - 1).clamp(min=1))
        # A batch with no valid row (every sequence empty) or one tells nothing about the variance.
        known = torch.where(count > 1, self.momentum, 0.0).to(mean.dtype)
        moved = torch.lerp(self.running_mean, mean.to(self.running_mean.dtype), self.momentum)
        spread = torch.lerp(self.running_var, unbiased.to(self.running_var.dtype), known.to(self.running_var.dtype))
        self.move({"running_mean": moved, "running_var": spread})
