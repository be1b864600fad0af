"""Whether torch.export looks on.

What it records has to be one graph of PyTorch's own operators, which no value of a tensor leads another way, and whose
sizes come from shapes. So where a layer asks a tensor which way to go, or has an operator of its own, it goes the way
of a scripted file, and where that asks too, a way without asking.
"""

import torch
from torch import Tensor


def exporting() -> bool:
    """Return whether torch.export looks on; never in a scripted file.

    Example:
        >>> exporting()
        False
    """
    if torch.jit.is_scripting():
        return False
    else:  # noqa: RET505  TorchScript compiles the branch otherwise
        return torch.compiler.is_exporting()


@torch.jit.unused
def longest(lengths: Tensor, total: int) -> int:
    """Return a size to pad (B,) lengths to whose sum is `total`, as torch.export records it: two more than the largest,
    so that nothing has to ask whether it is 0 or 1. Of several rows it is the one size that is not from a shape."""
    if lengths.size(0) == 1:
        return total + 2
    size = lengths.max().item()  # not int(), which would want to know it
    torch._check(size >= 0)
    return size + 2  # type: ignore[return-value]
