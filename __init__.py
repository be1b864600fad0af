"""livetrain trains recommenders for live streaming: Ray, TorchRec and sharded embedding tables."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("livetrain")
    raise AttributeError(f"module 'livetrain' has no attribute '{name}'")
