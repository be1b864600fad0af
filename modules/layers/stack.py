"""Layers after the first, of several stacks side by side, so that what each Dice asks of all ranks goes in one."""

from collections.abc import Sequence

from torch import Tensor, nn

from livetrain.modules.layers.dice import Dice
from livetrain.modules.layers.distributed import summed
from livetrain.modules.layers.precision import widen


class Stack:
    """An activation, a linear layer, and so on.

    Args:
        depth: how many activations there are.

    Attributes:
        x: what the last layer so far gave, (N, H).
    """

    x: Tensor

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def asks(self, depth: int) -> Tensor | None:
        """Return what is to be summed over ranks before the activation of a depth, from 0: None where nothing is."""
        raise NotImplementedError

    def go_on(self, depth: int, total: Tensor | None) -> None:
        """Take x through the activation of a depth and the layer after it, if one follows.

        Args:
            depth: as `asks` was given.
            total: the sum of what it answered.
        """
        raise NotImplementedError


class Plain(Stack):
    """A stack in PyTorch.

    Args:
        x: (N, H), what the first layer gave.
        weights: (N,), entries of weight 0 stay out of Dice's statistics; None takes every one.
        activations: of each layer.
        layers: what follows each activation.
        dropout: after each activation.
    """

    def __init__(
        self,
        x: Tensor,
        weights: Tensor | None,
        activations: Sequence[nn.Module],
        layers: Sequence[nn.Module],
        dropout: nn.Module,
    ) -> None:
        super().__init__(len(activations))
        self.x, self._weights, self._dropout = x, weights, dropout
        self._activations, self._layers = activations, layers
        self._centre = x  # of the moments that were asked for

    def asks(self, depth: int) -> Tensor | None:
        dice = self._activations[depth]
        if not isinstance(dice, Dice) or not dice.waits:
            return None
        self._centre = dice.running_mean.clone()
        return dice.moments(widen(self.x), self._weights, self._centre)

    def go_on(self, depth: int, total: Tensor | None) -> None:
        activation, kind = self._activations[depth], self.x.dtype
        if isinstance(activation, Dice) and total is not None:
            active = activation.activate(widen(self.x), total, self._centre).to(kind)
        else:
            active = activation(self.x, self._weights)
        self.x = self._layers[depth](self._dropout(active))


def side_by_side(stacks: Sequence[Stack]) -> list[Tensor]:
    """Take stacks through all their layers, with one sum over ranks per depth: the last layer of each. Collective.

    Args:
        stacks: as far as their first layer.
    """
    for depth in range(max([0, *[stack.depth for stack in stacks]])):
        here = [stack for stack in stacks if depth < stack.depth]
        asked = [stack.asks(depth) for stack in here]
        totals = iter(summed([moments for moments in asked if moments is not None]))
        for stack, moments in zip(here, asked, strict=True):
            stack.go_on(depth, None if moments is None else next(totals))
    return [stack.x for stack in stacks]
