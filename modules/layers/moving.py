"""Layers whose buffers move while they train, by no gradient: running statistics, counters."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Moving(nn.Module):
    """A layer that hands new values of its buffers to `move`, and never writes to one itself.

    A compiled graph must not write to a buffer: its backward pass may compute again from the buffer what the forward
    pass had computed of the old value, and the gradients are wrong without an error. So there the new values leave the
    graph, and `written` takes them into the buffers once the backward pass is done.

    Example:
        >>> class Steps(Moving):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("steps", torch.zeros(()))
        ...     def forward(self, x):
        ...         self.move({"steps": self.steps + 1})
        ...         return x
        >>> layer = Steps()
        >>> _ = layer(torch.ones(2))
        >>> layer.steps
        tensor(1.)
    """

    moved = None  # by a compiled graph, and not yet written

    @torch.jit.unused
    def move(self, values: "dict[str, Tensor | tuple[Tensor, Tensor]]") -> None:
        """Give buffers new values, which no gradient flows through.

        Args:
            values: by the buffers' names: all of a buffer, or (places, those of its rows).
        """
        if torch.compiler.is_compiling():
            self.moved = {name: _apart(value) for name, value in values.items()}
        else:
            _write([(self, values)])


@contextlib.contextmanager
def unmoved(module: nn.Module) -> Iterator[None]:
    """Let passes write to copies of all buffers of a module, and forget these.

    On copies: a graph may hold the buffers for its backward pass, and nothing may write to them until then.
    """
    kept = [(part, dict(part._buffers)) for part in module.modules()]
    for part, buffers in kept:
        part._buffers.update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)


def _apart(value: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
    """Return the same without a gradient, or a graph's backward pass would begin with zeros for it."""
    return value.detach() if isinstance(value, Tensor) else (value[0], value[1].detach())


def written(layers: Sequence[Moving]) -> None:
    """Take what a compiled graph found for the buffers of its layers into these."""
    waiting = [(layer, layer.moved) for layer in layers if layer.moved is not None]
    _write(waiting)
    for layer, _ in waiting:
        layer.moved = None


@torch.no_grad()
def _write(moves: list[tuple[Moving, Any]]) -> None:
    """Write to all buffers, those that are written whole at once."""
    buffers: list[Tensor] = []
    whole: list[Tensor] = []
    for layer, values in moves:
        for name, value in values.items():
            buffer = getattr(layer, name)
            if isinstance(value, tuple):
                buffer[value[0]] = value[1]
            else:
                buffers.append(buffer)
                whole.append(value)
    if whole:
        torch._foreach_copy_(buffers, whole)
