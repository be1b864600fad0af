"""Deltas: what changed of a published model since its base or the delta before. Written by trainers.export.deltas.

    delta.bin     numbers alone, tensor after tensor, each from a multiple of 64 bytes on, little-endian
    delta.json    where each lies in delta.bin: {"dtype", "shape", "at" (bytes)}
                    rows:    by table the rows that changed, (n,) int64, rising
                    values:  by tensor of a table (see modules.serving.quantized) what those rows hold now, (n, width)
                    files:   by file of the export
                        rows:   its tensors that are changed by rows: {"table", "values"}
                        whole:  its other tensors, as they are now

A delta holds of a table the changed rows and of everything else the whole, so it fits one state of the model alone:
the one before. All that is needed to apply one is PyTorch, in Python or in C++ (serve/deltas.h).
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from livetrain.configs.schema import Quantization
from livetrain.modules.serving.quantized import store

INDEX, NUMBERS = "delta.json", "delta.bin"
FORMAT = 1
_ALIGNED = 64
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.bool)
    + (torch.int8, torch.int16, torch.int32, torch.int64)
}


class Writer:
    """Writes the numbers of a delta, tensor after tensor.

    Args:
        folder: which is there.
    """

    def __init__(self, folder: Path) -> None:
        if sys.byteorder != "little":
            raise RuntimeError("deltas are little-endian, and this processor is not")
        self._folder, self._file, self._at = folder, (folder / NUMBERS).open("xb"), 0

    def put(self, value: Tensor) -> dict[str, Any]:
        """Write a tensor; return where it lies."""
        value = value.detach().cpu().contiguous()
        self._file.write(bytes(-self._at % _ALIGNED))
        at = self._file.tell()
        self._file.write(value.flatten().view(torch.uint8).numpy().data)
        self._at = self._file.tell()
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": [*value.shape], "at": at}

    def close(self, rows: dict[str, Any], values: dict[str, Any], files: dict[str, Any]) -> None:
        """Write the index, once all numbers are written."""
        self._file.close()
        index = {"format": FORMAT, "rows": rows, "values": values, "files": files}
        (self._folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


class Delta:
    """A delta that is read: its tensors are mapped.

    Args:
        folder: of a delta that is known to be whole.

    Raises:
        ValueError: it is of another format, or its index does not fit its numbers.
    """

    def __init__(self, folder: Path) -> None:
        self._index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if self._index.get("format") != FORMAT:
            raise ValueError(f"{folder}: this delta is of format {self._index.get('format')}, and {FORMAT} is known")
        size = (folder / NUMBERS).stat().st_size
        path = str(folder / NUMBERS)
        self._numbers = torch.from_file(path, shared=False, size=size, dtype=torch.uint8) if size else torch.zeros(0)
        self.rows = {name: self._tensor(about) for name, about in self._index["rows"].items()}
        self._values = {name: self._tensor(about) for name, about in self._index["values"].items()}

    def _tensor(self, about: Mapping[str, Any]) -> Tensor:
        dtype, shape = _DTYPES[about["dtype"]], torch.Size(about["shape"])
        part = self._numbers[about["at"] : about["at"] + shape.numel() * dtype.itemsize]
        if part.numel() != shape.numel() * dtype.itemsize:
            raise ValueError("delta.bin is shorter than delta.json says")
        return part.view(dtype).view(shape) if shape.numel() else torch.zeros(shape, dtype=dtype)

    def changes(self, states: Mapping[str, Mapping[str, Tensor]]) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        """Return what is to be written where: (tensor, its rows or None for the whole, values). Nothing is written yet.

        Args:
            states: of each loaded file of the export, its tensors by name (``state_dict()``).

        Raises:
            ValueError: the delta is of another model.
        """
        found: dict[int, tuple[Tensor, Tensor | None, Tensor]] = {}
        for file, state in states.items():
            if file not in self._index["files"]:
                raise ValueError(f"{file} is no part of this delta")
            asked = self._index["files"][file]
            for name, about in asked["rows"].items():
                rows, values = self.rows[about["table"]], self._values[about["values"]]
                target = _target(state, name, values)
                if len(rows) != len(values) or (len(rows) and not 0 <= int(rows[0]) <= int(rows[-1]) < len(target)):
                    raise ValueError(f"'{name}' has {len(target)} rows, and the delta has others")
                found[target.data_ptr()] = target, rows, values  # features share tables
            for name, about in asked["whole"].items():
                value = self._tensor(about)
                target = _target(state, name, value)
                if target.shape != value.shape:
                    raise ValueError(f"'{name}' is {list(target.shape)}, and in the delta {list(value.shape)}")
                if target.numel():
                    found[target.data_ptr()] = target, None, value
        return list(found.values())


def _target(state: Mapping[str, Tensor], name: str, value: Tensor) -> Tensor:
    target = state.get(name)
    if target is None or target.dtype != value.dtype or target.shape[1:] != value.shape[1:]:
        raise ValueError(f"'{name}' is not in the model as it is in the delta")
    return target


@torch.no_grad()
def apply(changes: Sequence[tuple[Tensor, Tensor | None, Tensor]]) -> None:
    """Write what `Delta.changes` has found; whoever scores meanwhile would see half of it."""
    for target, rows, values in changes:
        if rows is None:
            target.copy_(values)
        else:
            target.index_copy_(0, rows, values)


def stored_rows(weight: Tensor, quantize: Quantization, name: str) -> dict[str, Tensor]:
    """Return rows of a table as an export stores them, by the names in `values`; of each row nothing else matters.

    Args:
        weight: (n, dim), the rows.
        quantize: none, float16 or int8.
        name: the table's.
    """
    return {f"{name}.{part}": value for part, value in store(weight, quantize, name).named_buffers()}
