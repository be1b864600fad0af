"""Attention among the events of one row as one operator, whatever computes it.

PyTorch's compiler and its fake tensors see one operator whose shapes follow from shapes: how rows are laid out, which
depends on their lengths' values, is its own affair. On a GPU it is Triton's (modules/layers/gpu/attend.py), and nothing
waits; on a CPU it is events.cpp's where that is compiled; elsewhere rows are padded in groups.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from livetrain.modules.layers import compiled
from livetrain.modules.layers.buckets import Buckets, buckets, pad, paired, present, unpad
from livetrain.modules.layers.exporting import exporting
from livetrain.modules.layers.precision import widen


def attend(q: Tensor, k: Tensor, v: Tensor, asks: Tensor, answers: Tensor, heads: int, causal: bool) -> Tensor:
    """Let each row's queries look at the keys of the same row.

        out = concat_h softmax(q_h k_h' / sqrt(d / h)) v_h

    Args:
        q: (M, d), M = sum of `asks`.
        k: (N, d), N = sum of `answers`.
        v: (N, d).
        asks: (B,) integer, queries of each row.
        answers: (B,) integer, keys of each row; with `causal` the same.
        heads: h, divides d.
        causal: the i-th query of a row sees its first i keys alone.

    Returns:
        (M, d); zeros in rows without keys.

    Example:
        >>> x = torch.eye(3, 4)
        >>> attend(x, x, x, torch.tensor([1, 0, 2]), torch.tensor([1, 0, 2]), 2, True)[:2]
        tensor([[1., 0., 0., 0.],
                [0., 1., 0., 0.]])
    """
    return _attend(q, k, v, asks, answers, heads, causal)[0]


def reads_rows(lengths: Tensor) -> bool:
    """Return whether attention reads rows as they lie, by `attend`, so that nobody need lay them out.

    So it is on a GPU, on a CPU with compiled passes, and where PyTorch's compiler looks on. A scripted file has what
    PyTorch has, and no operator.
    """
    if torch.jit.is_scripting() or exporting():
        return False
    else:  # noqa: RET505  TorchScript compiles the branch otherwise
        return (
            torch.compiler.is_compiling()
            or (lengths.is_cuda and has_triton())
            or compiled.reads_rows(lengths.device.type)
        )


@cache
def has_triton() -> bool:
    """Return whether Triton is there: PyTorch for GPUs brings it."""
    return find_spec("triton") is not None


@torch.library.custom_op("livetrain::attend", mutates_args=(), device_types="cpu")
def _attend(
    q: Tensor, k: Tensor, v: Tensor, asks: Tensor, answers: Tensor, heads: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """Return what `attend` does, and the logarithm of each softmax's denominator, (M, h), at least float32."""
    out, lse = torch.zeros_like(q, memory_format=torch.contiguous_format), widen(q).new_zeros(len(q), heads)
    library = compiled.library_for(q)
    if library is not None:
        library.call("attend_forward", *_sizes(q, asks, heads, causal), *_read(q, k, v, asks, answers), out, lse)
        return out, lse
    one, two = _layouts(q, k, asks, answers, causal)
    mixed: list[Tensor] = []
    denominators: list[Tensor] = []
    for a, b, c, mask in zip(*_blocks((q, k, v), one, two, heads), _masks(two, q, causal), strict=True):
        found, level = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(a, b, c, 0.0, causal, attn_mask=mask)
        mixed.append(_whole(found))
        denominators.append(level.transpose(1, 2))  # (n, T, h)
    if mixed:
        out, lse = unpad(mixed, one, q[:0]), unpad(denominators, one, lse[:0])
    return out, lse


@torch.library.custom_op("livetrain::attend_backward", mutates_args=(), device_types="cpu")
def _backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    asks: Tensor,
    answers: Tensor,
    heads: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    library = compiled.library_for(q)
    if library is not None:
        found = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        given = (*_read(q, k, v, asks, answers), lse, d_out.contiguous())
        library.call("attend_backward", *_sizes(q, asks, heads, causal), *given, *found)
        return found[0], found[1], found[2]
    one, two = _layouts(q, k, asks, answers, causal)
    gradients: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    asked = _blocks((q, k, v), one, two, heads), _blocks((d_out, out), one, one, heads), pad(lse, one)
    for (a, b, c), (g, o), level, mask in zip(
        zip(*asked[0], strict=True), zip(*asked[1], strict=True), asked[2], _masks(two, q, causal), strict=True
    ):
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g, a, b, c, o, level.transpose(1, 2), 0.0, causal, attn_mask=mask
        )
        for kept, x in zip(gradients, found, strict=True):
            kept.append(_whole(x))
    d_q, d_k, d_v = (
        unpad(blocks, layout, x[:0]) if blocks else torch.zeros_like(x, memory_format=torch.contiguous_format)
        for blocks, layout, x in zip(gradients, (one, two, two), (q, k, v), strict=True)
    )
    return d_q, d_k, d_v


def _sizes(q: Tensor, asks: Tensor, heads: int, causal: bool) -> tuple[int, ...]:
    return asks.size(0), heads, q.size(1) // heads, int(causal)


def _read(q: Tensor, k: Tensor, v: Tensor, asks: Tensor, answers: Tensor) -> tuple[Tensor | compiled.Apart, ...]:
    """Return what passes read of what `_attend` was given: the rows' offsets, then q, k and v."""
    offsets = (F.pad(lengths.long().cumsum(0), (1, 0)) for lengths in (asks, answers))
    return *offsets, *(compiled.Apart(x if x.stride(1) == 1 else x.contiguous()) for x in (q, k, v))


def _layouts(q: Tensor, k: Tensor, asks: Tensor, answers: Tensor, causal: bool) -> tuple[Buckets, Buckets]:
    if causal:
        layout = buckets(asks, len(q))
        return layout, layout
    return paired(asks, len(q), answers, len(k))


def _blocks(values: Sequence[Tensor], first: Buckets, others: Buckets, heads: int) -> list[list[Tensor]]:
    """Pad each of `values`, and part its blocks among heads: (n, h, T, d / h)."""
    layouts = [first, *[others] * (len(values) - 1)]
    return [
        [block.unflatten(2, (heads, -1)).transpose(1, 2) for block in pad(x, layout)]
        for x, layout in zip(values, layouts, strict=True)
    ]


def _masks(layout: Buckets, like: Tensor, causal: bool) -> list[Tensor | None]:
    """Return a mask of each block's keys, (n, 1, 1, T), -inf on padding: with `causal` that lies where nobody looks."""
    if causal:
        return [None] * len(layout.counts)
    return [
        torch.zeros_like(there, dtype=like.dtype).masked_fill_(~there, -float("inf"))[:, None, None]
        for there in present(layout)
    ]


def _whole(x: Tensor) -> Tensor:
    """Put heads together again: (n, h, T, d / h) -> (n, T, d)."""
    return x.transpose(1, 2).flatten(2)


@_attend.register_kernel("cuda")
def _attend_on_gpu(
    q: Tensor, k: Tensor, v: Tensor, asks: Tensor, answers: Tensor, heads: int, causal: bool
) -> tuple[Tensor, Tensor]:
    from livetrain.modules.layers.gpu import attend as gpu  # where there is no GPU there may be no Triton

    return gpu.forward(q, k, v, asks, answers, heads, causal)


@_backward.register_kernel("cuda")
def _backward_on_gpu(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from livetrain.modules.layers.gpu import attend as gpu

    return gpu.backward(*arguments)


@_attend.register_fake
def _attend_shapes(
    q: Tensor, k: Tensor, v: Tensor, asks: Tensor, answers: Tensor, heads: int, causal: bool
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), widen(q).new_empty(q.size(0), heads)


@_backward.register_fake
def _backward_shapes(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.heads, ctx.causal = inputs
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])


def _gradients(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(d_out, *ctx.saved_tensors, ctx.heads, ctx.causal), None, None, None, None)


_attend.register_autograd(_gradients, setup_context=_setup)


@_backward.register_vmap
def _backward_each(info: Any, in_dims: tuple[int | None, ...], d_out: Tensor, *others: Any) -> tuple[Any, Any]:
    """One gradient after the other: those of several tasks by one backward pass."""
    task, *rest = in_dims
    assert task is not None  # what the forward pass kept is of all tasks
    assert all(dim is None for dim in rest)
    found = [_backward(each, *others) for each in d_out.unbind(task)]
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True)), (0, 0, 0)
