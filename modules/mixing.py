"""Random numbers of NumPy that depend on a key alone: the same for any number of ranks, and after a resume."""

import numpy as np


def mix(x: np.ndarray) -> np.ndarray:
    """Return splitmix64 of uint64 numbers: every bit depends on every bit."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniform(bits: np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1) of 53 bits each."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
