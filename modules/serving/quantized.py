"""Tables as an exported file stores them: as they were trained, in float16, or in 8 bits per number."""

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Quantization

_BLOCK = 1 << 16  # rows quantised at a time: all that is ever held of a table besides its two forms


class FloatTable(nn.Module):
    """A table that is stored as floating-point numbers.

    Args:
        weight: (rows, dim), float32 or float16.
    """

    rows: int

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.rows = weight.size(0)
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)  # the same memory

    def forward(self, rows: Tensor) -> Tensor:
        """Args: rows (N,) int64. Returns: (N, dim) float32."""
        return nn.functional.embedding(rows, self.weight).float()


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

    Source: Guan et al., "Post-training 4-bit quantization on embedding tables", 1911.02079 (uniform, asymmetric).
    """

    rows: int
    steps: Tensor
    affine: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.rows = weight.size(0)
        self.register_buffer("steps", torch.empty(weight.shape, dtype=torch.uint8))  # (rows, dim)
        self.register_buffer("affine", torch.empty(self.rows, 2))  # scale, offset
        for start in range(0, self.rows, _BLOCK):
            block = weight.detach()[start : start + _BLOCK].float()  # (n, dim)
            offset, highest = torch.aminmax(block, dim=1, keepdim=True)  # (n, 1)
            scale = (highest - offset) / 255
            steps = (block - offset) / torch.where(scale > 0, scale, 1)
            self.steps[start : start + _BLOCK] = steps.round_().clamp_(0, 255)
            self.affine[start : start + _BLOCK] = torch.cat([scale, offset], 1)

    def forward(self, rows: Tensor) -> Tensor:
        """Args: rows (N,) int64. Returns: (N, dim) float32."""
        scale, offset = self.affine.index_select(0, rows).split(1, 1)  # (N, 1) each
        return torch.addcmul(offset, self.steps.index_select(0, rows).float(), scale)


def store(weight: Tensor, quantize: Quantization) -> FloatTable | ByteTable:
    """Return a table's stored form, in the memory of `weight` where nothing has to change."""
    if quantize == "int8":
        return ByteTable(weight)
    return FloatTable(weight.half() if quantize == "float16" else weight)
