"""Tables as an exported file stores them: as they were trained, in float16, or in 8 bits per number.

A table may lie outside the file (see modules.tables.mapped): then it is attached after the file was loaded.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Quantization
from livetrain.modules.tables.ids import IdMap
from livetrain.modules.tables.mapped import Room, in_memory

_BLOCK = 1 << 24  # bytes of float32 that are quantised at a time: what is held of a table besides its two forms


class FloatTable(nn.Module):
    """A table that is stored as floating-point numbers.

    Args:
        weight: (rows, dim), float32 or float16.
        name: under which it is attached.
        ids: which row an id has, of a table of `hash: table`.
    """

    rows: int
    name: str
    weight: Tensor

    def __init__(self, weight: Tensor, name: str = "", ids: IdMap | None = None) -> None:
        super().__init__()
        self.ids = ids
        self.rows = weight.size(0)
        self.name = name
        self.register_buffer("weight", weight.detach())  # the same memory

    def forward(self, rows: Tensor) -> Tensor:
        """Args: rows (N,) int64. Returns: (N, dim) float32."""
        _check_attached(self.weight, self.name)
        return nn.functional.embedding(rows, self.weight).float()

    def attach(self, tables: dict[str, Tensor]) -> None:
        """Take the numbers from `tables`: (rows, dim) under the table's name."""
        self.weight = _taken(tables, self.name, self.weight, self.rows)
        if self.ids is not None:
            self.ids.attach(tables)


class ByteTable(nn.Module):
    """A table of 8-bit steps between the least and the largest number of each row.

    x' = offset + scale * q,  q = round((x - offset) / scale) in 0..255,
    offset = min of the row,  scale = (max - min of the row) / 255

    so that |x - x'| <= scale / 2, half a step, up to float32's rounding; a constant row is kept exactly. It takes
    dim + 8 bytes per row instead of 4 dim. fbgemm's and PyTorch's 8-bit row-wise tables hold the same numbers, scale
    and offset at the end of each row's bytes; here they are a tensor of their own because TorchScript cannot
    reinterpret bytes.

    Args:
        weight: (rows, dim).
        name: under which it is attached.
        room: where its two tensors are made, NAME.steps and NAME.affine.
        ids: as of `FloatTable`.

    Source: Guan et al., "Post-training 4-bit quantization on embedding tables", 1911.02079 (uniform, asymmetric).
    """

    rows: int
    name: str
    steps: Tensor
    affine: Tensor

    def __init__(self, weight: Tensor, name: str = "", room: Room = in_memory, ids: IdMap | None = None) -> None:
        super().__init__()
        self.ids = ids
        self.rows = weight.size(0)
        self.name = name
        self.register_buffer("steps", room(f"{name}.steps", weight.shape, torch.uint8))  # (rows, dim)
        self.register_buffer("affine", room(f"{name}.affine", (self.rows, 2), torch.float32))  # scale, offset
        for here in _blocks(weight):
            block = weight.detach()[here].float()  # (n, dim)
            offset, highest = torch.aminmax(block, dim=1, keepdim=True)  # (n, 1)
            scale = (highest - offset) / 255
            steps = (block - offset).div_(torch.where(scale > 0, scale, 1))
            self.steps[here] = steps.round_().clamp_(0, 255)
            self.affine[here] = torch.cat([scale, offset], 1)

    def forward(self, rows: Tensor) -> Tensor:
        """Args: rows (N,) int64. Returns: (N, dim) float32."""
        _check_attached(self.steps, self.name)
        scale, offset = self.affine.index_select(0, rows).split(1, 1)  # (N, 1) each
        return torch.addcmul(offset, self.steps.index_select(0, rows).float(), scale)

    def attach(self, tables: dict[str, Tensor]) -> None:
        """Take the numbers from `tables`: (rows, dim) uint8 under NAME.steps, (rows, 2) float32 under NAME.affine."""
        self.steps = _taken(tables, self.name + ".steps", self.steps, self.rows)
        self.affine = _taken(tables, self.name + ".affine", self.affine, self.rows)
        if self.ids is not None:
            self.ids.attach(tables)


def _check_attached(stored: Tensor, name: str) -> None:
    if stored.size(0) == 0:
        raise ValueError("tables: '" + name + "' lies in a file of its own; map it and attach it before scoring")


def _taken(tables: dict[str, Tensor], name: str, before: Tensor, rows: int) -> Tensor:
    if name not in tables:
        raise ValueError("tables: '" + name + "' is missing")
    found = tables[name]
    fits = found.dim() == 2 and found.size(0) == rows and found.size(1) == before.size(1)
    if not fits or found.dtype != before.dtype:
        raise ValueError("tables: '" + name + "' is another table: " + str(list(found.size())))
    return found


def _blocks(weight: Tensor) -> list[slice]:
    """Return the rows of a table in blocks."""
    many = max(1, _BLOCK // (4 * weight.size(1)))
    return [slice(start, start + many) for start in range(0, weight.size(0), many)]


def stays(dtype: torch.dtype, quantize: Quantization) -> bool:
    """Return whether a table of a dtype is stored as it is."""
    return quantize == "none" or (quantize == "float16" and dtype == torch.float16)


def store(
    weight: Tensor, quantize: Quantization, name: str = "", room: Room = in_memory, ids: IdMap | None = None
) -> FloatTable | ByteTable:
    """Return a table's stored form, in the memory of `weight` where nothing has to change."""
    if ids is not None:
        ids = ids.placed(room)
    if quantize == "int8":
        return ByteTable(weight, name, room, ids)
    if stays(weight.dtype, quantize):
        return FloatTable(weight, name, ids)
    half = room(name, weight.shape, torch.float16)
    for here in _blocks(weight):
        half[here] = weight.detach()[here]
    return FloatTable(half, name, ids)


def stored(
    weights: Mapping[str, Tensor], quantize: Quantization, maps: Mapping[str, IdMap], room: Room = in_memory
) -> dict[str, FloatTable | ByteTable]:
    """Return the stored forms of a model's tables, by name.

    Args:
        weights: of the tables.
        quantize: how they are stored.
        maps: of the tables of `hash: table`, their ids.
        room: where they are to lie.
    """
    return {name: store(weight, quantize, name, room, maps.get(name)) for name, weight in weights.items()}


def let_go(tables: Mapping[str, FloatTable | ByteTable]) -> None:
    """Let tables forget their numbers, so that a file that they are saved in holds none: they are to be attached."""
    for table in tables.values():
        for module in table.modules():
            for key, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, key, buffer[:0].clone())
