"""Sweeps: many trainings of one recipe with other values, the best of which becomes a recipe."""

from livetrain.cluster.sweep.driver import resume, tune
from livetrain.cluster.sweep.results import Sweep
from livetrain.cluster.sweep.trials import Trial

__all__ = ["Sweep", "Trial", "resume", "tune"]
