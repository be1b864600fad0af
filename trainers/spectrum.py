"""What a frequency filter kept of a few users' histories: spectrum.png beside a run's report."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from modules.layers.frequency import Split, bins
from trainers.panels import COLORS, GREY, HAIR, legend, panel

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


def write_spectrum(run: Path, spectra: dict[str, list[dict[str, Any]]]) -> Path | None:
    """Write `spectrum.png` of a run, a row a filter and a panel a user.

    Args:
        run: the run's folder.
        spectra: what `Spectra.read` returned.

    Returns:
        Path of the picture, which appears whole or not at all; None where there is nothing to draw.
    """
    rows = {name: users for name, users in spectra.items() if users}
    if not rows:
        return None
    figure = Figure(figsize=(16, 4 * len(rows)), dpi=100, layout="constrained", facecolor="white")
    for number, (name, users) in enumerate(rows.items()):
        for column, user in enumerate(users):
            axes = figure.add_subplot(len(rows), USERS, number * USERS + column + 1)
            _draw(axes, f"{name}: {user['events']} events", user)
            if number == 0 and column == 0:
                legend(axes, "best")
    path, unfinished = run / "spectrum.png", run / ".spectrum.png.part"
    FigureCanvasAgg(figure).print_png(unfinished)
    os.replace(unfinished, path)
    return path


def _draw(axes: Axes, title: str, user: dict[str, Any]) -> None:
    """Draw one user's power by frequency, in cycles an event, before and behind the gates."""
    panel(axes, title, "cycles an event", "power")
    frequency = [k / user["events"] for k in range(len(user["power"]))]
    axes.axvspan(-0.01, (user["low"] - 0.5) / user["events"], color=HAIR, zorder=0, label="low frequencies")
    axes.plot(frequency, user["power"], color=GREY, marker=".", label="events")
    axes.plot(frequency, user["kept"], color=COLORS[0], marker=".", label="kept by the gates")
    axes.set_yscale("log")
    axes.set_xlim(-0.01, 0.51)
