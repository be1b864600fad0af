"""Attention among the events of one row, in Triton: what modules/layers/attend.py computes on a GPU.

Queries and keys stay where they are, row after row without padding. A program takes the queries of one head in one
tile, BLOCK events of one row, and passes over the row's keys, BLOCK at a time; no score leaves it. How many tiles the
rows have is known to the GPU alone: as many programs are started as shapes allow, N / BLOCK + B, and those beyond end.

Source: Dao et al., "FlashAttention", 2205.14135, and its second version, 2307.08691, for the passes of the gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from livetrain.modules.layers.gpu.launch import arithmetic, block
from livetrain.modules.layers.precision import widen

BLOCK = 32  # events of a tile


@triton.jit
def _scores(a, b, asks, answers, size, SCALE: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr):
    """Return SCALE a b', -inf where the event of `answers` is not seen by that of `asks`: both are places in a row."""
    s = tl.dot(a, tl.trans(b), input_precision=PRECISION) * SCALE
    seen = (answers < size)[None, :]
    if CAUSAL:
        seen = seen & (answers[None, :] <= asks[:, None])
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _forward(
    q, k, v, out, lse, tiles, firsts, asks, ask_begins, answers, answer_begins, rows, q_row, k_row, v_row,
    HEADS: tl.constexpr, SCALE: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    """out = softmax(SCALE q k') v and the logarithm of each softmax's denominator, of one tile and head."""
    row, head = tl.load(tiles + tl.program_id(0)), tl.program_id(1)
    if row < rows:
        place = (tl.program_id(0) - tl.load(firsts + row)) * BLOCK + tl.arange(0, BLOCK)
        of_ask, mine = tl.load(ask_begins + row) + place, place < tl.load(asks + row)
        first, size = tl.load(answer_begins + row), tl.load(answers + row)
        column = tl.arange(0, WIDE)
        within, column = column[None, :] < DIM, head * DIM + column[None, :]
        a = tl.load(q + of_ask[:, None] * q_row + column, mask=mine[:, None] & within, other=0.0).to(WORK)
        most = tl.full([BLOCK], float("-inf"), WORK)
        total = tl.zeros([BLOCK], WORK)
        mixed = tl.zeros([BLOCK, WIDE], WORK)
        end = size
        if CAUSAL:  # later keys are seen by no query of this tile
            end = tl.minimum(size, (tl.program_id(0) - tl.load(firsts + row) + 1) * BLOCK)
        for start in range(0, end, BLOCK):
            other = start + tl.arange(0, BLOCK)
            there, of_answer = (other < size)[:, None] & within, (first + other)[:, None]
            b = tl.load(k + of_answer * k_row + column, mask=there, other=0.0).to(WORK)
            c = tl.load(v + of_answer * v_row + column, mask=there, other=0.0).to(WORK)
            s = _scores(a, b, place, other, size, SCALE, CAUSAL, PRECISION)
            higher = tl.maximum(most, tl.max(s, 1))
            p, shrink = tl.exp(s - higher[:, None]), tl.exp(most - higher)
            total = total * shrink + tl.sum(p, 1)
            mixed = mixed * shrink[:, None] + tl.dot(p, c, input_precision=PRECISION)
            most = higher
        seen = total > 0  # a row without keys has zeros
        total = tl.where(seen, total, 1.0)
        where = of_ask[:, None] * (HEADS * DIM) + column
        tl.store(out + where, mixed / total[:, None], mask=mine[:, None] & within)
        tl.store(lse + of_ask * HEADS + head, tl.where(seen, most, 0.0) + tl.log(total), mask=mine)


@triton.jit
def _backward_queries(
    d_out, q, k, v, out, lse, delta, d_q, tiles, firsts, asks, ask_begins, answers, answer_begins, rows, q_row,
    k_row, v_row, HEADS: tl.constexpr, SCALE: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile's queries, and delta = sum(out d_out), of one head; p is computed again from `lse`."""
    row, head = tl.load(tiles + tl.program_id(0)), tl.program_id(1)
    if row < rows:
        place = (tl.program_id(0) - tl.load(firsts + row)) * BLOCK + tl.arange(0, BLOCK)
        of_ask, mine = tl.load(ask_begins + row) + place, place < tl.load(asks + row)
        first, size = tl.load(answer_begins + row), tl.load(answers + row)
        column = tl.arange(0, WIDE)
        within, column = column[None, :] < DIM, head * DIM + column[None, :]
        held = mine[:, None] & within
        a = tl.load(q + of_ask[:, None] * q_row + column, mask=held, other=0.0).to(WORK)
        where = of_ask[:, None] * (HEADS * DIM) + column
        g = tl.load(d_out + where, mask=held, other=0.0).to(WORK)
        through = tl.sum(g * tl.load(out + where, mask=held, other=0.0).to(WORK), 1)
        level = tl.load(lse + of_ask * HEADS + head, mask=mine, other=0.0)
        tl.store(delta + of_ask * HEADS + head, through, mask=mine)
        d_a = tl.zeros([BLOCK, WIDE], WORK)
        end = size
        if CAUSAL:
            end = tl.minimum(size, (tl.program_id(0) - tl.load(firsts + row) + 1) * BLOCK)
        for start in range(0, end, BLOCK):
            other = start + tl.arange(0, BLOCK)
            there, of_answer = (other < size)[:, None] & within, (first + other)[:, None]
            b = tl.load(k + of_answer * k_row + column, mask=there, other=0.0).to(WORK)
            c = tl.load(v + of_answer * v_row + column, mask=there, other=0.0).to(WORK)
            p = tl.exp(_scores(a, b, place, other, size, SCALE, CAUSAL, PRECISION) - level[:, None])
            d_s = p * (tl.dot(g, tl.trans(c), input_precision=PRECISION) - through[:, None])
            d_a += tl.dot(d_s, b, input_precision=PRECISION) * SCALE
        tl.store(d_q + where, d_a, mask=held)


@triton.jit
def _backward_keys(
    d_out, q, k, v, lse, delta, d_k, d_v, tiles, firsts, asks, ask_begins, answers, answer_begins, rows, q_row,
    k_row, v_row, HEADS: tl.constexpr, SCALE: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile's keys and values, of one head: the tiles are those of `answers`."""
    row, head = tl.load(tiles + tl.program_id(0)), tl.program_id(1)
    if row < rows:
        begin = (tl.program_id(0) - tl.load(firsts + row)) * BLOCK
        place = begin + tl.arange(0, BLOCK)
        of_answer, size = tl.load(answer_begins + row) + place, tl.load(answers + row)
        first, number = tl.load(ask_begins + row), tl.load(asks + row)
        column = tl.arange(0, WIDE)
        within, column = column[None, :] < DIM, head * DIM + column[None, :]
        held = (place < size)[:, None] & within
        b = tl.load(k + of_answer[:, None] * k_row + column, mask=held, other=0.0).to(WORK)
        c = tl.load(v + of_answer[:, None] * v_row + column, mask=held, other=0.0).to(WORK)
        d_b = tl.zeros([BLOCK, WIDE], WORK)
        d_c = tl.zeros([BLOCK, WIDE], WORK)
        start = begin if CAUSAL else 0  # earlier queries see no key of this tile
        for at in range(start, number, BLOCK):
            other = at + tl.arange(0, BLOCK)
            mine, of_ask = other < number, first + other
            there = mine[:, None] & within
            a = tl.load(q + of_ask[:, None] * q_row + column, mask=there, other=0.0).to(WORK)
            g = tl.load(d_out + of_ask[:, None] * (HEADS * DIM) + column, mask=there, other=0.0).to(WORK)
            level = tl.load(lse + of_ask * HEADS + head, mask=mine, other=0.0)
            through = tl.load(delta + of_ask * HEADS + head, mask=mine, other=0.0)
            p = tl.exp(_scores(a, b, other, place, size, SCALE, CAUSAL, PRECISION) - level[:, None])
            p = tl.where(mine[:, None], p, 0.0)
            d_c += tl.dot(tl.trans(p), g, input_precision=PRECISION)
            d_s = p * (tl.dot(g, tl.trans(c), input_precision=PRECISION) - through[:, None])
            d_b += tl.dot(tl.trans(d_s), a, input_precision=PRECISION) * SCALE
        where = of_answer[:, None] * (HEADS * DIM) + column
        tl.store(d_k + where, d_b, mask=held)
        tl.store(d_v + where, d_c, mask=held)


def _tiles(lengths: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return the row of each tile, (P,), B beyond the last, and each row's first tile, (B,).

    Args:
        lengths: (B,) integer.
        total: N, their sum. P = (N + B (BLOCK - 1)) // BLOCK tiles are enough.
    """
    each = (lengths.long() + (BLOCK - 1)) // BLOCK
    ends = each.cumsum(0)
    tiles = torch.arange((total + len(lengths) * (BLOCK - 1)) // BLOCK, device=lengths.device)
    return torch.searchsorted(ends, tiles, right=True), ends - each


def _shared(q: Tensor, k: Tensor, v: Tensor, asks: Tensor, answers: Tensor, heads: int) -> tuple[list, dict]:
    """Return what all kernels are given: arguments from `asks` on, and sizes known when they are compiled."""
    dim = q.size(1) // heads
    begins = [lengths.cumsum(0) - lengths for lengths in (asks, answers)]
    strides = [x.stride(0) for x in (q, k, v)]
    sizes = {"HEADS": heads, "SCALE": dim**-0.5, "DIM": dim, "WIDE": block(dim), "BLOCK": BLOCK, **arithmetic(q)}
    return [asks, begins[0], answers, begins[1], len(asks), *strides], sizes


def forward(
    q: Tensor, k: Tensor, v: Tensor, asks: Tensor, answers: Tensor, heads: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """Args and result as `livetrain.modules.layers.attend.attend`; columns of q, k and v must lie side by side."""
    out, lse = q.new_empty(q.shape), q.new_empty(len(q), heads, dtype=widen(q[:0]).dtype)
    tiles, firsts = _tiles(asks, len(q))
    if len(tiles):
        arguments, sizes = _shared(q, k, v, asks, answers, heads)
        _forward[(len(tiles), heads)](q, k, v, out, lse, tiles, firsts, *arguments, CAUSAL=causal, **sizes)
    return out, lse


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, asks: Tensor, answers: Tensor,
    heads: int, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v from that of `out`."""
    d_out = d_out.contiguous()
    d_q, d_k, d_v = (x.new_empty(x.shape) for x in (q, k, v))
    delta = torch.empty_like(lse)
    arguments, sizes = _shared(q, k, v, asks, answers, heads)
    tiles, firsts = _tiles(asks, len(q))
    if len(tiles):
        given = (d_out, q, k, v, out, lse, delta, d_q, tiles, firsts, *arguments)
        _backward_queries[(len(tiles), heads)](*given, CAUSAL=causal, **sizes)
    tiles, firsts = _tiles(answers, len(k))
    if len(tiles):
        given = (d_out, q, k, v, lse, delta, d_k, d_v, tiles, firsts, *arguments)
        _backward_keys[(len(tiles), heads)](*given, CAUSAL=causal, **sizes)
    return d_q, d_k, d_v
