"""What the launches of all Triton kernels share."""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor


def block(size: int) -> int:
    """Return the width of a block that holds `size` columns: a power of two, and at least the 16 of a matrix product.

    Example:
        >>> [block(size) for size in (3, 16, 80)]
        [16, 16, 128]
    """
    return max(16, 1 << (size - 1).bit_length())


def arithmetic(x: Tensor) -> dict[str, Any]:
    """Return in what a kernel that reads x computes (WORK), and how it multiplies matrices, after train.precision.

    16-bit numbers are read into float32, and TF32 holds every bfloat16 exactly: their products lose nothing.
    """
    narrow = x.dtype in (torch.bfloat16, torch.float16) or torch.get_float32_matmul_precision() != "highest"
    double = x.dtype == torch.float64
    return {"WORK": tl.float64 if double else tl.float32, "PRECISION": "tf32" if narrow and not double else "ieee"}
