"""Has the layers' C++ compiled where that is possible; elsewhere PyTorch computes the same."""

import logging
from functools import cache
from pathlib import Path

import torch

from livetrain.modules.layers import compiled, fused
from livetrain.modules.layers.dice import Dice
from livetrain.trainers.runtime import compiler

log = logging.getLogger("livetrain")

SOURCE = Path(fused.__file__).with_name("fused.cpp")
_REAL = {torch.float32: "float", torch.float64: "double"}


def enable(model: torch.nn.Module, device: torch.device) -> None:
    """Let a model that has something to gain train by compiled passes on this process's CPU; say where it cannot."""
    if device.type != "cpu" or not any(isinstance(part, Dice) for part in model.modules()):
        return
    try:
        compiled.use(library())
    except compiler.FAILURES as error:
        why = compiler.reason(error)
        log.warning("training DIN without compiled layers, which takes about twice as long: %s", why)


@cache
def library(dtype: torch.dtype = torch.float32) -> compiled.Library:
    """Return the layers compiled for this machine.

    Raises:
        OSError, CalledProcessError: see `compiler.shared_object`.
    """
    return compiled.Library(str(compiler.shared_object(SOURCE, f"-DREAL={_REAL[dtype]}")), dtype)
