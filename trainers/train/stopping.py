"""A training that is told to stop: all ranks learn of it at the same step."""

from pathlib import Path

import torch

from livetrain.trainers.runtime import ranks, signals

EVERY = 8  # steps between two questions among several ranks


class Listener:
    """One rank's part in stopping a run: rank 0 looks for the words that runtime/signals.py leaves, and passes them on.

    Every rank makes one of its own, and asks it equally often. What asked workers before these to start again is over.

    Args:
        run: the run folder, on storage that rank 0 and whoever gives the word share.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._asked = run, 0
        if ranks.is_main():  # a network's caches may hide a new file for a minute, but not what is in an old one
            (run / signals.STOP).touch()
            (run / signals.AGAIN).write_bytes(b"")

    def told(self) -> bool:
        """Return whether to stop now: the same on every rank. Among several it is collective, every EVERY calls."""
        self._asked += 1
        return (ranks.world() == 1 or self._asked % EVERY == 0) and self.agreed()

    def agreed(self) -> bool:
        """Return whether rank 0 was told. Collective, through the hosts' memory: no GPU is waited for."""
        return bool(ranks.summed(torch.tensor([float(ranks.is_main() and self._said())])).item())

    def _said(self) -> bool:
        return any(signals.asked(self._run, name) for name in (signals.STOP, signals.AGAIN))
