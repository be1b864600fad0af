"""Multi-layer perceptron with the activations of the ranking models."""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from livetrain.modules.layers import compiled, fused
from livetrain.modules.layers.dice import Dice

Activation = Literal["dice", "relu"]


class Relu(nn.Module):
    """max(x, 0), called like `Dice`."""

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        return x.relu()


def activate(kind: Activation, units: int) -> nn.Module:
    """Return the activation module `kind` for `units` neurons: (B, units), weights (B,) or None -> (B, units)."""
    return Dice(units) if kind == "dice" else Relu()


class MLP(nn.Module):
    """Linear layers, each followed by its activation and dropout, and an optional last linear layer.

    Args:
        width: size of the input.
        units: sizes of the hidden layers; may be empty.
        activation: "dice" or "relu".
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
        self.native = activation == "dice" and dropout == 0 and len(units) > 0
        self.last = nn.Identity() if outputs is None else nn.Linear(sizes[-1], outputs)

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Apply the layers.

        Args:
            x: (B, width).
            weights: (B,), rows of weight 0 stay out of Dice's statistics.

        Returns:
            (B, outputs), or (B, units[-1]) without a last layer.
        """
        if self.training and self.native and not torch.jit.is_scripting():
            library = compiled.library_for(x)
            if library is not None:
                return self._native(library, x, weights)
        for linear, activation in zip(self.linears, self.activations):  # noqa: B905  TorchScript knows no strict=
            x = self.dropout(activation(linear(x), weights))
        return self.last(x)

    @torch.jit.unused
    def _native(self, library: compiled.Library, x: Tensor, weights: Tensor | None) -> Tensor:
        """Do what `forward` does by compiled passes."""
        linears, dices = cast(list[nn.Linear], list(self.linears)), cast(list[Dice], list(self.activations))
        if isinstance(self.last, nn.Linear):
            return fused.layers(library, x, weights, [*linears, self.last], dices)
        *dices, last = dices
        return last(fused.layers(library, x, weights, linears, dices), weights)
