"""How a multi-task network uses its experts: the mean weight that each gate gives to each of them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from livetrain.modules.layers.experts import Gate
from livetrain.trainers.runtime import ranks


class Utilisation:
    """Watches the gates of a network in the steps that are logged, and costs nothing in the others.

    Args:
        network: any network; one without gates has no figures.
    """

    def __init__(self, network: nn.Module) -> None:
        self._gates = [module for module in network.modules() if isinstance(module, Gate)]
        self._seen: dict[nn.Module, list[torch.Tensor]] = {}

    @contextmanager
    def watching(self, wanted: bool) -> Iterator[None]:
        """Keep what the gates say in the step inside, if it is wanted."""
        self._seen = {}
        hooks = [gate.register_forward_hook(self._see) for gate in self._gates] if wanted else []
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for gate in self._gates:
                if wanted and gate not in self._seen and gate.shares is not None:  # in a compiled graph
                    self._seen[gate] = [gate.shares]

    def _see(self, gate: nn.Module, inputs: tuple, shares: torch.Tensor) -> None:
        if not torch.compiler.is_compiling():  # see Gate
            self._seen.setdefault(gate, []).append(shares.detach())

    def read(self, weights: torch.Tensor) -> dict[str, float]:
        """Return the figures of the step that was watched, over the rows of all ranks. Collective.

        Args:
            weights: (B,) of the step's rows, 0 marks padding.

        Returns:
            `gate.<task>.<expert>`, the mean weight of an expert, and `gate.<task>.entropy`, the mean entropy of a row's
            weights over that of equal ones: 0 takes one expert per row, 1 takes all alike. A gate of an earlier level
            of PLE has `level<l>.` before the task, and that of the shared stream is called shared.
        """
        if not self._seen:
            return {}
        real = (weights > 0).double()
        # In parts a batch is computed once more in the backward pass; the first of every row counts.
        seen = [torch.cat(self._seen[gate])[: len(weights)] for gate in self._gates]
        entropies = [torch.special.entr(shares.double()).sum(1, keepdim=True) for shares in seen]
        sums = [real @ torch.cat(pair, 1) for pair in zip(seen, entropies, strict=True)]
        means = ranks.summed(torch.cat([*sums, real.sum().reshape(1)])).tolist()
        figures, rows = iter(means), max(means[-1], 1.0)
        out = {}
        for gate in self._gates:
            for expert in gate.experts:
                out[f"gate.{gate.name}.{expert}"] = next(figures) / rows
            out[f"gate.{gate.name}.entropy"] = next(figures) / rows / max(math.log(len(gate.experts)), 1e-9)
        return out
