"""What the frequency layers of a network did to single users' histories."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from livetrain.modules.layers.frequency import Split, bins

USERS, SHORTEST = 4, 8  # a domain; events without which a spectrum says little


class Spectra:
    """Watches a network's `Split` filters in the first batch that they see, on this rank.

    Args:
        network: any network; one without such filters has no spectra.
    """

    def __init__(self, network: nn.Module) -> None:
        self._filters = [module for module in network.modules() if isinstance(module, Split)]
        self._seen: dict[str, list[dict[str, Any]]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the spectra of a few users from the batches inside."""
        hooks = [split.register_forward_hook(self._see) for split in self._filters]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _see(self, split: Split, inputs: tuple, out: torch.Tensor) -> None:
        if split.name in self._seen:
            return
        values, lengths = (part.detach().cpu() for part in inputs)
        long = [row for row in lengths.argsort().tolist() if lengths[row] >= SHORTEST]
        chosen = [long[round(i * (len(long) - 1) / (USERS - 1))] for i in range(USERS)] if long else []
        gates = split.weights(*inputs).detach().cpu()
        parts = values.float().split(lengths.tolist())
        self._seen[split.name] = [_spectrum(parts[row], gates[row], split.cutoff) for row in dict.fromkeys(chosen)]

    def read(self) -> dict[str, list[dict[str, Any]]]:
        """Return filter -> users, from short to long histories: `events`, `low` (how many frequencies are low), `power`
        of each frequency before the gates, and `kept` of it behind them, both means over an event's columns.
        """
        return self._seen


def _spectrum(events: torch.Tensor, gates: torch.Tensor, cutoff: float) -> dict[str, Any]:
    """Return one user's spectrum, from (T, d) events and their gates [alpha, beta], (2 d,)."""
    length, low = len(events), int(bins(torch.tensor(len(events)), cutoff))
    amplitude = torch.fft.rfft(events, dim=0, norm="ortho").abs()  # (T // 2 + 1, d)
    alpha, beta = gates.chunk(2)
    gain = torch.where(torch.arange(len(amplitude)).unsqueeze(1) < low, alpha, beta)
    power, kept = (x.square().mean(1).tolist() for x in (amplitude, amplitude * gain))
    return {"events": length, "low": low, "power": power, "kept": kept}
