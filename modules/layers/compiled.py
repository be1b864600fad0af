"""Calls the passes behind activation units, Dice and attention among events, where there is a library of them.

There are two: fused.cpp, events.cpp and others.cpp compiled for a CPU, and for a GPU modules/layers/gpu/passes.py,
which has those of fused.cpp. trainers.train.compiled_layers chooses. Without one PyTorch computes the same as it is
written.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Apart(NamedTuple):
    """A matrix whose rows may lie apart, as columns of a wider one do: a pass is told the distance before it."""

    x: Tensor


class Library:
    """Passes by their names in fused.cpp, events.cpp and others.cpp, whoever computes them.

    Args:
        device: type of the device whose tensors it reads.
        dtype: of these tensors. Under autocast the events and what is computed of each are narrower.
        towers: whether it has the passes of layers that are not an activation unit's: those of events.cpp and
            others.cpp, and linear_forward and _backward.
    """

    def __init__(self, device: str, dtype: torch.dtype, towers: bool) -> None:
        self.device, self.dtype, self.towers = device, dtype, towers

    def call(self, name: str, *arguments: int | float | Tensor | Apart | None) -> None:
        """Call a pass with sizes and numbers, and with tensors to read and to write."""
        raise NotImplementedError


class Native(Library):
    """The compiled fused.cpp, events.cpp and others.cpp.

    Args:
        path: the shared object.
        dtype: what it was compiled for, its REAL.
    """

    def __init__(self, path: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__("cpu", dtype, towers=True)
        self._library = ctypes.CDLL(path)

    def call(self, name: str, *arguments: int | float | Tensor | Apart | None) -> None:
        """Call a function with sizes, doubles and tensors to read and write; torch's threads are added.

        Raises:
            ValueError: a tensor is not contiguous, or its type is not this library's.
        """
        given: list[ctypes.c_int64 | ctypes.c_double | ctypes.c_void_p] = []
        for argument in arguments:
            if isinstance(argument, int | float):
                given.append(ctypes.c_int64(argument) if isinstance(argument, int) else ctypes.c_double(argument))
                continue
            x = argument.x if isinstance(argument, Apart) else argument
            if isinstance(argument, Apart):
                given.append(ctypes.c_int64(argument.x.stride(0)))
                whole = argument.x.stride(1) == 1
            else:
                whole = argument is None or argument.is_contiguous()
            if x is not None and not (whole and x.dtype in (self.dtype, torch.int64)):
                raise ValueError(f"{name}: a {x.dtype} tensor of shape {tuple(x.shape)} cannot be read")
            given.append(ctypes.c_void_p(x.data_ptr() if x is not None else None))
        self._library[name](*given, ctypes.c_int64(torch.get_num_threads()))


_libraries: dict[tuple[str, torch.dtype], Library] = {}


def use(*libraries: Library) -> None:
    """Train with these libraries, at most one per device and type, from now on in this process, and with no other."""
    _libraries.clear()
    _libraries.update({(library.device, library.dtype): library for library in libraries})


@contextlib.contextmanager
def unused() -> Iterator[None]:
    """Let PyTorch compute for now what a library would, as for whoever counts its operators."""
    before = dict(_libraries)
    _libraries.clear()
    try:
        yield
    finally:
        _libraries.update(before)


def library_for(x: Tensor) -> Library | None:
    """Return the library that can train on x, if one is in use: on a CPU none under autocast.

    None where PyTorch's compiler looks on, which fuses what it is shown.
    """
    if torch.compiler.is_compiling() or (x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        return None
    return _libraries.get((x.device.type, x.dtype))


def reads_rows(device: str) -> bool:
    """Return whether a library in use on a device has the passes of events.cpp, which read rows as they lie."""
    if torch.compiler.is_compiling() or (device == "cpu" and torch.is_autocast_enabled("cpu")):
        return False
    return any(library.device == device and library.towers for library in _libraries.values())


def by_task(work: Callable[..., Any]) -> Callable[..., Any]:
    """Let a computation of gradients, which calls a library, be given those of several tasks by torch.func.vmap.

    Its passes read memory, where vmap has a tensor of one dimension more: it does one task after the other.

    Args:
        work: of anything, to a tensor or a tuple of tensors.
    """

    class Work(torch.autograd.Function):
        @staticmethod
        def forward(*given: Any) -> Any:
            return work(*given)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> Any:
            tasks = [
                work(*(x if dim is None else x.select(dim, task) for x, dim in zip(given, in_dims, strict=True)))
                for task in range(info.batch_size)
            ]
            if isinstance(tasks[0], Tensor):
                return torch.stack(tasks), 0
            found = tuple(torch.stack(parts) for parts in zip(*tasks, strict=True))
            return found, (0,) * len(found)

    return Work.apply
