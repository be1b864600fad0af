"""Sweeps: many trainings of one recipe with other values, the best of which becomes a recipe."""

from livetrain.cluster.sweep.driver import resume, tune
from livetrain.cluster.sweep.trials import Sweep, Trial

__all__ = ["Sweep", "Trial", "resume", "tune"]
