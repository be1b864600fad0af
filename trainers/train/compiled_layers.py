"""Chooses by what passes layers train: C++ compiled here, or Triton's; without either PyTorch computes the same."""

import logging
from functools import cache
from pathlib import Path

import torch

from livetrain.modules.layers import compiled, fused
from livetrain.modules.layers.attend import has_triton
from livetrain.modules.layers.dice import Dice
from livetrain.modules.layers.frequency import Split
from livetrain.modules.layers.sequence import Attention
from livetrain.trainers.runtime import compiler

log = logging.getLogger("livetrain")

SOURCES = [Path(fused.__file__).with_name(name) for name in ("fused.cpp", "events.cpp", "others.cpp")]
_REAL = {torch.float32: "float", torch.float64: "double"}


def enable(model: torch.nn.Module, device: torch.device) -> None:
    """Let a model that has something to gain train by passes on this process's device; say where it cannot.

    On a CPU these are compiled here, on a GPU Triton compiles them when they are first called.
    """
    gaining = (Dice, Attention, Split) if device.type == "cpu" else Dice
    if not any(isinstance(part, gaining) for part in model.modules()):
        return
    if device.type == "cpu":
        try:
            compiled.use(library())
        except compiler.FAILURES as error:
            why = compiler.reason(error)
            log.warning("training without compiled layers, which takes DIN or FARM about twice as long: %s", why)
    elif has_triton():
        from livetrain.modules.layers.gpu.passes import Triton  # where there is no GPU there may be no Triton

        compiled.use(Triton(device.type))
    else:
        log.warning("training DIN without Triton's kernels, which moves about three times the bytes: no module triton")


@cache
def library(dtype: torch.dtype = torch.float32) -> compiled.Native:
    """Return the layers compiled for this machine.

    Raises:
        OSError, CalledProcessError: see `compiler.shared_object`.
    """
    return compiled.Native(str(compiler.shared_object(SOURCES[0], f"-DREAL={_REAL[dtype]}", others=SOURCES[1:])), dtype)
