"""The passes of modules/layers/fused.cpp in Triton: what a GPU trains activation units and Dice by.

Nothing between two matrix products leaves the chip, and what a backward pass needs of the forward it computes again.
Names, arguments and zeros behind widths are fused.cpp's. A program's sums are written beside those of the others and
then added, in an order that is always the same. Only where rows share events do several programs add to an event's
gradient as they come.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from livetrain.modules.layers.compiled import Apart, Library
from livetrain.modules.layers.gpu import kernels
from livetrain.modules.layers.gpu.launch import arithmetic, block

ROWS = 16  # rows of a batch whose events one program takes at a time: no matrix product has fewer
TILE = 32  # events, or rows of a layer, in one block
COLUMNS = 64  # of an input that are in one block
PROGRAMS = 1024  # at most, where each keeps sums as large as a layer's weights: several for each processor of a GPU


class Triton(Library):
    """The passes of this file. Towers are not among them: their products are few, large, and PyTorch's.

    Args:
        device: type of the device that it computes on: cuda, or in Triton's interpreter cpu.
        dtype: of the tensors that it is given.
    """

    def __init__(self, device: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(device, dtype, towers=False)

    def call(self, name: str, *arguments: int | float | Tensor | Apart | None) -> None:
        PASSES[name](*arguments)


def _sizes(x: Tensor, width: int, inner: int) -> dict[str, Any]:
    """Return what the kernels of a layer are compiled for: widths of blocks, and the arithmetic of what they read."""
    wide = block(width)
    return {"WIDE": wide, "COLUMNS": min(block(inner), COLUMNS), "num_warps": 4 if wide <= 64 else 8, **arithmetic(x)}


def first_forward(
    rows: int, k: int, width: int, offsets: Tensor, begins: Tensor, e: Tensor, q: Tensor, base: Tensor, event: Tensor,
    product: Tensor, centre: Tensor, valid: Tensor | None, x: Tensor, sums: Tensor,
) -> None:  # fmt: skip
    groups = triton.cdiv(rows, ROWS)
    if groups == 0:
        return
    parts = sums.new_empty(groups, 2, width)
    kernels.first_forward[(groups,)](
        offsets, begins, e, q, base, event, product, centre, valid, x, parts, rows, k, width,
        VALID=valid is not None, ROWS=ROWS, TILE=TILE, **_sizes(e, width, k),
    )  # fmt: skip
    sums += parts.sum(0)


def next_forward(
    number: int, inner: int, m: int, width: int, x: Tensor, curve: Tensor, weight: Tensor, bias: Tensor,
    centre: Tensor | None, valid: Tensor | None, out: Tensor, sums: Tensor,
) -> None:  # fmt: skip
    tiles = triton.cdiv(number, TILE)
    if tiles == 0:
        return
    parts = sums if centre is None else sums.new_empty(tiles, 2, width)
    kernels.next_forward[(tiles,)](
        x, curve, weight, bias, centre, valid, out, parts, number, inner, m, width,
        CENTRE=centre is not None, VALID=valid is not None, TILE=TILE, **_sizes(x, width, inner),
    )  # fmt: skip
    if centre is not None:
        sums += parts.sum(0)


def next_backward(
    number: int, inner: int, m: int, x: Tensor, curve: Tensor, weight: Tensor, d_out: Tensor, out: Tensor | None,
    correction: Tensor | None, valid: Tensor | None, d_x: Tensor, sums: Tensor, d_weight: Tensor, d_bias: Tensor,
) -> None:  # fmt: skip
    programs = min(triton.cdiv(number, TILE), PROGRAMS)
    if programs == 0:
        return
    sizes = _sizes(x, m, inner)
    into = [total.new_empty(programs, *total.shape) for total in (sums, d_weight, d_bias)]
    kernels.next_backward[(programs, triton.cdiv(inner, sizes["COLUMNS"]))](
        x, curve, weight, d_out, out, correction, valid, d_x, *into, number, inner, m,
        GIVEN=correction is not None, VALID=valid is not None, TILE=TILE, **sizes,
    )  # fmt: skip
    for total, parts in zip((sums, d_weight, d_bias), into, strict=True):
        total += parts.sum(0)


def first_backward(
    rows: int, k: int, room: int, width: int, offsets: Tensor, begins: Tensor, e: Tensor, q: Tensor, product: Tensor,
    event_t: Tensor, product_t: Tensor, d_x: Tensor, x: Tensor, correction: Tensor | None, valid: Tensor | None,
    d_e: Tensor, d_base: Tensor, d_q: Tensor, d_event: Tensor, d_product: Tensor,
) -> None:  # fmt: skip
    programs = min(triton.cdiv(rows, ROWS), PROGRAMS)
    if programs == 0:
        return
    sizes, shared = _sizes(e, width, k), _shared(offsets, begins)
    into = [total.new_empty(programs, *total.shape) for total in (d_event, d_product)]
    to_events = _summed(d_e) if shared else d_e
    kernels.first_backward[(programs, triton.cdiv(k, sizes["COLUMNS"]))](
        offsets, begins, e, q, product, event_t, product_t, d_x, x, correction, valid, to_events, d_base, d_q, *into,
        rows, k, room, width, SHARED=shared, GIVEN=correction is not None, VALID=valid is not None, ROWS=ROWS,
        TILE=TILE, **sizes,
    )  # fmt: skip
    for total, parts in zip((d_event, d_product), into, strict=True):
        total += parts.sum(0)
    if to_events is not d_e:
        d_e.copy_(to_events)


def pool_forward(rows: int, k: int, offsets: Tensor, begins: Tensor, w: Tensor, e: Tensor, pooled: Tensor) -> None:
    columns, work = min(block(k), COLUMNS), arithmetic(e)["WORK"]
    if rows:
        grid = (rows, triton.cdiv(k, columns))
        kernels.pool_forward[grid](offsets, begins, w, e, pooled, k, TILE=TILE, COLUMNS=columns, WORK=work)


def pool_backward(
    rows: int, k: int, offsets: Tensor, begins: Tensor, w: Tensor, e: Tensor, d_pooled: Tensor, d_w: Tensor,
    d_e: Tensor,
) -> None:  # fmt: skip
    if not rows:
        return
    columns, work, shared = min(block(k), COLUMNS), arithmetic(e)["WORK"], _shared(offsets, begins)
    to_events = _summed(d_e) if shared else d_e
    kernels.pool_backward[(rows,)](
        offsets, begins, w, e, d_pooled, d_w, to_events, k, SHARED=shared, TILE=TILE, COLUMNS=columns, WORK=work
    )
    if to_events is not d_e:
        d_e.copy_(to_events)


def dice_moments(number: int, width: int, x: Tensor, centre: Tensor, valid: Tensor | None, sums: Tensor) -> None:
    grid, sizes = _by_columns(number, width, x, PROGRAMS)
    if grid[0] == 0:
        return
    parts = sums.new_empty(grid[0], 2, width)
    kernels.dice_moments[grid](x, centre, valid, parts, number, width, VALID=valid is not None, **sizes)
    sums += parts.sum(0)


def dice_forward(number: int, width: int, x: Tensor, curve: Tensor, y: Tensor) -> None:
    grid, sizes = _by_columns(number, width, x)
    if grid[0]:
        kernels.dice_forward[grid](x, curve, y, number, width, **sizes)


def dice_backward(number: int, width: int, x: Tensor, d_y: Tensor, curve: Tensor, d_x: Tensor, sums: Tensor) -> None:
    grid, sizes = _by_columns(number, width, x, PROGRAMS)
    if grid[0] == 0:
        return
    parts = sums.new_empty(grid[0], 3, width)
    kernels.dice_backward[grid](x, d_y, curve, d_x, parts, number, width, **sizes)
    sums += parts.sum(0)


def dice_complete(number: int, width: int, d_x: Tensor, x: Tensor, correction: Tensor, valid: Tensor | None) -> None:
    grid, sizes = _by_columns(number, width, x)
    if grid[0]:
        kernels.dice_complete[grid](d_x, x, correction, valid, number, width, VALID=valid is not None, **sizes)


def dice_settle(
    units: int, width: int, eps: float, momentum: float, total: Tensor, alpha: Tensor, mean: Tensor, variance: Tensor,
    curve: Tensor,
) -> None:  # fmt: skip
    grid, sizes = _of_units(width, curve)
    kernels.dice_settle[grid](total, alpha, mean, variance, curve, units, width, EPS=eps, MOMENTUM=momentum, **sizes)


def dice_total(units: int, width: int, sums: Tensor, curve: Tensor, total: Tensor, gradient: Tensor) -> None:
    grid, sizes = _of_units(width, curve)
    kernels.dice_total[grid](sums, curve, total, gradient, units, width, **sizes)


def dice_correction(units: int, width: int, gradient: Tensor, centre: Tensor, correction: Tensor) -> None:
    grid, sizes = _of_units(width, correction)
    kernels.dice_correction[grid](gradient, centre, correction, units, width, **sizes)


def _of_units(width: int, like: Tensor) -> tuple[tuple[int], dict[str, Any]]:
    """Return the grid over columns alone, and what a kernel of it asks."""
    columns = min(block(width), COLUMNS)
    return (triton.cdiv(width, columns),), {"COLUMNS": columns, "WORK": arithmetic(like)["WORK"]}


def _by_columns(number: int, width: int, x: Tensor, most: int | None = None) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the grid over tiles of rows, `most` programs if given, and columns, and what a kernel of it asks."""
    columns = min(block(width), COLUMNS)
    tiles = triton.cdiv(number, TILE)
    grid = (tiles if most is None else min(tiles, most), triton.cdiv(width, columns))
    return grid, {"TILE": TILE, "COLUMNS": columns, "WORK": arithmetic(x)["WORK"]}


def _shared(offsets: Tensor, begins: Tensor) -> bool:
    """Return whether rows share events: where none does, its events begin where its pairs with them do."""
    return offsets.data_ptr() != begins.data_ptr()


def _summed(d_e: Tensor) -> Tensor:
    """Return where several programs may add to d_e: in at least float32."""
    return d_e if d_e.dtype in (torch.float32, torch.float64) else d_e.float()


PASSES: dict[str, Callable[..., None]] = {
    made.__name__: made
    for made in (first_forward, next_forward, next_backward, first_backward, pool_forward, pool_backward)
    + (dice_moments, dice_forward, dice_backward, dice_complete, dice_settle, dice_total, dice_correction)
}
