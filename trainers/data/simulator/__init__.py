"""A simulated world of live streaming whose truth is known."""

from trainers.data.simulator.run import simulate
from trainers.data.simulator.settings import Settings, count

__all__ = ["Settings", "count", "simulate"]
