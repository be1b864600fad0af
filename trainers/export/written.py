"""A TorchScript file: written, and had again as whoever scores has it."""

import errno
import os
from pathlib import Path

import torch

from livetrain.configs.errors import BadInput
from livetrain.modules.tables.mapped import Files, opened
from livetrain.trainers.train import memory

_CODE = 1 << 20  # bytes of a file besides its tensors, more than any has


def written(module: torch.jit.ScriptModule, file: Path, beside: Files) -> torch.jit.ScriptModule:
    """Write a file, and return it as whoever scores has it: loaded again, with the tables beside it.

    Raises:
        BadInput: the disk has no space for it: torch would end the process.
    """
    once = {part.data_ptr(): part.nbytes for part in module.state_dict().values()}  # features may share a table
    size = _CODE + sum(once.values())
    try:
        with file.open("xb") as room:
            os.posix_fallocate(room.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise BadInput(
            f"{file.parent.parent}: there is no space for {file.name} of {memory.amount(size)} ({error.strerror}); "
            "make some, or name another folder with --out"
        ) from error
    module.save(str(file))
    loaded = torch.jit.load(str(file))
    if beside.index:
        loaded.attach(opened(beside.folder, beside.index))
    return loaded
