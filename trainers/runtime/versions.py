"""The versions of the libraries that a result depends on."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Return the versions that decide what a run computes."""
    names = ["livetrain", "torch", "torchrec", "ray", "pyarrow", "numpy"]
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
