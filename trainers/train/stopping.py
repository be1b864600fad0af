"""A training that is told to stop: all ranks learn of it at the same step."""

from pathlib import Path

import torch

from livetrain.trainers.runtime import ranks
from livetrain.trainers.runtime.signals import STOP

EVERY = 8  # steps between two questions among several ranks


class Listener:
    """One rank's part in stopping a run: rank 0 looks for the word that runtime/signals.py leaves, and passes it on.

    Every rank makes one of its own, and asks it equally often.

    Args:
        run: the run folder, on storage that rank 0 and whoever gives the word share.
    """

    def __init__(self, run: Path) -> None:
        self._file, self._asked = run / STOP, 0
        if ranks.is_main():
            self._file.touch()  # a network's caches may hide a new file for a minute, but not what is in an old one

    def told(self) -> bool:
        """Return whether to stop now: the same on every rank. Among several it is collective, every EVERY calls."""
        self._asked += 1
        return (ranks.world() == 1 or self._asked % EVERY == 0) and self.agreed()

    def agreed(self) -> bool:
        """Return whether rank 0 was told. Collective, through the hosts' memory: no GPU is waited for."""
        return bool(ranks.summed(torch.tensor([float(ranks.is_main() and self._said())])).item())

    def _said(self) -> bool:
        try:
            return bool(self._file.read_bytes())
        except OSError:
            return False
