"""Multi-layer perceptron with the activations of the ranking models."""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from livetrain.modules.layers import compiled, fused
from livetrain.modules.layers.dice import Dice, RunningDice
from livetrain.modules.layers.stack import Plain, Stack, side_by_side

Activation = Literal["dice", "running_dice", "relu"]


class Relu(nn.Module):
    """max(x, 0), called like `Dice`."""

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        return x.relu()


def activate(kind: Activation, units: int) -> nn.Module:
    """Return the activation module `kind` for `units` neurons: (B, units), weights (B,) or None -> (B, units)."""
    if kind == "relu":
        return Relu()
    return RunningDice(units) if kind == "running_dice" else Dice(units)


class MLP(nn.Module):
    """Linear layers, each followed by its activation and dropout, and an optional last linear layer.

    Args:
        width: size of the input.
        units: sizes of the hidden layers; may be empty.
        activation: of every hidden layer.
        dropout: share of activations dropped in training.
        outputs: size of the last, purely linear layer; None leaves it out.
    """

    def __init__(
        self,
        width: int,
        units: list[int],
        activation: Activation = "relu",
        dropout: float = 0.0,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        sizes = [width, *units]
        self.linears = nn.ModuleList(nn.Linear(m, n) for m, n in zip(sizes[:-1], units, strict=True))
        self.activations = nn.ModuleList(activate(activation, n) for n in units)
        self.dropout = nn.Dropout(dropout)
        self.dice = activation != "relu" and len(units) > 0
        self.last = nn.Identity() if outputs is None else nn.Linear(sizes[-1], outputs)

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Apply the layers.

        Args:
            x: (B, width).
            weights: (B,), rows of weight 0 stay out of Dice's statistics.

        Returns:
            (B, outputs), or (B, units[-1]) without a last layer.
        """
        if self.training and self.dice and not torch.jit.is_scripting():
            return side_by_side([self.stack(x, weights)])[0]
        for linear, activation in zip(self.linears, self.activations):  # noqa: B905  TorchScript knows no strict=
            x = self.dropout(activation(linear(x), weights))
        return self.last(x)

    @torch.jit.unused
    def stack(self, x: Tensor, weights: Tensor | None) -> Stack:
        """Return what is beyond the first layer, of x as `forward` takes it, for `side_by_side`; there is a Dice."""
        first, *linears = cast(list[nn.Linear], list(self.linears))
        layers: list[nn.Module] = [*linears, self.last]
        library = compiled.library_for(x)
        if library is None or not library.towers or self.dropout.p > 0:
            return Plain(first(x), weights, list(self.activations), layers, self.dropout)
        if isinstance(self.last, nn.Linear):
            linears.append(self.last)
        dices = cast(list[Dice], list(self.activations))
        return fused.Compiled.of_rows(library, x, weights, first, dices, linears)
