"""Arithmetic that bf16 autocast must not narrow."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Return x in float32 if it has a 16-bit type, x itself otherwise."""
    return x.float() if x.dtype == torch.bfloat16 or x.dtype == torch.float16 else x
