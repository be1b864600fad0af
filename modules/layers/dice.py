"""Dice, the activation of DIN: a PReLU whose turning point follows the data."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from modules.layers.distributed import all_reduce_sum
from modules.layers.precision import widen


class _Dice(torch.autograd.Function):
    """Dice with given statistics, and with the gradient that flows through them as in batch normalisation.

    By hand because the chain of elementwise operations that autograd would record takes half as long again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor, mean: Tensor, scale: Tensor, valid: Tensor, count: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha, mean, scale, valid, count)
        p = torch.addcmul(-mean * scale, x, scale).sigmoid_()  # (B, H)
        return torch.addcmul(alpha, p, 1 - alpha).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, alpha, mean, scale, valid, count = ctx.saved_tensors
        z = torch.addcmul(-mean * scale, x, scale)  # (B, H)
        p = z.sigmoid()
        through_p = gradient * x
        through_p_p = through_p * p
        d_alpha = (through_p - through_p_p).sum(0)  # (H,)
        d_z = through_p_p.addcmul_(through_p_p, p, value=-1).mul_(1 - alpha)
        sums = all_reduce_sum(torch.stack([d_z.sum(0), (d_z * z).sum(0)])) / count  # (2, H)
        d_x = torch.addcmul(alpha, p, 1 - alpha).mul_(gradient).addcmul_(d_z, scale)
        d_statistics = torch.addcmul(sums[0], z, sums[1]).mul_(scale)
        return d_x.sub_(d_statistics.mul_(valid)), d_alpha, None, None, None, None


class Dice(nn.Module):
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
        p = torch.sigmoid((wide - self.running_mean) * torch.rsqrt(self.running_var + self.eps))
        return (wide * (self.alpha + p * (1 - self.alpha))).to(x.dtype)

    @torch.jit.unused
    def _train(self, x: Tensor, weights: Tensor | None) -> Tensor:
        with torch.no_grad():
            valid = (x.new_ones(x.size(0)) if weights is None else (weights > 0).to(x.dtype)).unsqueeze(1)  # (B, 1)
            mean, variance, count = self._statistics(x, valid)
            self._update(mean, variance, count)
            scale = torch.rsqrt(variance + self.eps)
        return _Dice.apply(x, self.alpha, mean, scale, valid, count)

    def _statistics(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean (H,), biased variance (H,) and number (), at least 1, of the valid rows of all ranks.

        One reduction carries sums of distances from the running mean: sums of raw squares would lose the variance
        of a neuron whose mean is large.
        """
        distance = (x - self.running_mean).mul_(valid)  # (B, H)
        first = distance.sum(0)
        sums = all_reduce_sum(torch.cat([first, distance.square_().sum(0), valid.sum(0)]))  # (2H + 1,)
        units = x.size(1)
        count = sums[-1].clamp(min=1)
        shift = sums[:units] / count
        variance = (sums[units:-1] / count - shift.square()).clamp_(min=0)
        return self.running_mean + shift, variance, count

    def _update(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        unbiased = variance * (count / (count - 1).clamp(min=1))
        # A batch with no valid row (every sequence empty) or one tells nothing about the variance.
        known = torch.where(count > 1, self.momentum, 0.0).to(mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), known)
