"""Tables in files of their own, mapped into memory: a process holds the rows that it looks up, and they can be dropped.

    <folder>/<name>.table    the numbers alone, row after row, as the processor keeps them

An index says of each what is in it: {name: {"file", "dtype", "shape"}}. All that maps one needs no more than PyTorch,
in Python or in C++ (`torch.from_file`).
"""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from livetrain.configs.errors import BadInput

Room = Callable[[str, Sequence[int], torch.dtype], Tensor]  # of a name, a shape and a dtype: where a table may lie
ENDING = ".table"


def in_memory(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return room for a table in this process's memory; a `Room`."""
    return torch.empty(*shape, dtype=dtype)


class Files:
    """Room for tables in files of a folder. What is written to a table is in its file.

    Args:
        folder: which is there.

    Attributes:
        index: of the tables that have got room: {name: {"file", "dtype", "shape"}}.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = Files(Path(folder))
        ...     _ = files.room("movie", (2, 4), torch.float32).fill_(0.5)
        ...     opened(Path(folder), files.index)["movie"].sum()
        tensor(4.)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, dict[str, Any]] = {}

    def room(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return room for a table; a `Room`.

        Raises:
            BadInput: the disk has none.
        """
        path = self.folder / f"{name}{ENDING}"
        try:
            with path.open("xb") as file:  # taken now: a disk that is full later would kill the process
                os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise BadInput(f"{path}: there is no space for this table ({error.strerror}); make some") from error
        self.index[name] = {"file": path.name, "dtype": str(dtype).removeprefix("torch."), "shape": [*shape]}
        return _mapped(path, shape, dtype, shared=True)


def opened(folder: Path, index: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the tables of an index, mapped: nothing is read before it is looked up, nor can a file be changed.

    Raises:
        BadInput: a file is not there, or not as long as its table.
    """
    for about in index.values():
        path, dtype = folder / about["file"], getattr(torch, about["dtype"])
        size, wanted = path.stat().st_size if path.is_file() else None, math.prod(about["shape"]) * dtype.itemsize
        if size != wanted:
            found = "is not there" if size is None else f"has {size:,} bytes instead of {wanted:,}"
            raise BadInput(f"{path}: this table {found}; copy the whole folder again, or export the run again")
    return {
        name: _mapped(folder / about["file"], about["shape"], getattr(torch, about["dtype"]), shared=False)
        for name, about in index.items()
    }


def _mapped(path: Path, shape: Sequence[int], dtype: torch.dtype, shared: bool) -> Tensor:
    return torch.from_file(str(path), shared=shared, size=math.prod(shape), dtype=dtype).view(*shape)


@contextmanager
def nameless(parent: Path) -> Iterator[Files]:
    """Yield files in a folder of their own whose names go with it: the space is free once nobody maps them."""
    folder = parent / f".tables-{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir()
    try:
        yield Files(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a shared storage may keep it until nobody maps its files
