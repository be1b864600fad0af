"""The kernels of modules/layers/gpu/passes.py, which says what is in which array; each is a pass of fused.cpp.

Every one is one pass over rows or events, a block at a time, and computes in WORK, at least float32.
"""

import triton
import triton.language as tl


@triton.jit
def _dice(x, alpha, scale, shift):
    """Return p = sigmoid(scale x + shift) and the gate alpha + (1 - alpha) p of Dice: dice(x) = gate x."""
    p = tl.sigmoid(scale[None, :] * x + shift[None, :])
    return p, alpha[None, :] + (1 - alpha)[None, :] * p


@triton.jit
def _curve(curve, column, width, WORK: tl.constexpr):
    """Load alpha, scale and shift of some columns."""
    there = column < width
    alpha = tl.load(curve + column, mask=there, other=0.0).to(WORK)
    scale = tl.load(curve + width + column, mask=there, other=0.0).to(WORK)
    return alpha, scale, tl.load(curve + 2 * width + column, mask=there, other=0.0).to(WORK)


@triton.jit
def _weights(valid, place, inside, VALID: tl.constexpr, WORK: tl.constexpr):
    """Return 1 for the rows that count, (n, 1)."""
    weight = inside.to(WORK)
    if VALID:
        weight = tl.load(valid + place, mask=inside, other=0.0).to(WORK)
    return weight[:, None]


@triton.jit
def _completed(d, out, correction, valid, place, inside, column, width, GIVEN: tl.constexpr, VALID: tl.constexpr,
               WORK: tl.constexpr):  # fmt: skip
    """Load a block of a gradient d (N, width), completed by what its values' statistics add to it."""
    there = inside[:, None] & (column < width)[None, :]
    where = place[:, None] * width + column[None, :]
    found = tl.load(d + where, mask=there, other=0.0).to(WORK)
    if GIVEN:
        x = tl.load(out + where, mask=there, other=0.0).to(WORK)
        constant = tl.load(correction + column, mask=column < width, other=0.0).to(WORK)
        slope = tl.load(correction + width + column, mask=column < width, other=0.0).to(WORK)
        weight = _weights(valid, place, inside, VALID, WORK)
        found += weight * (constant[None, :] + slope[None, :] * x)
    return tl.where(there, found, 0.0)


@triton.jit
def _row_of(place, ends, first):
    """Return which of some rows each place lies in: as many rows end at it or before it."""
    return first + tl.sum((place[:, None] >= ends[None, :]).to(tl.int32), 1)


@triton.jit
def _ends(offsets, first, rows, ROWS: tl.constexpr):
    """Load where each of ROWS rows ends; those beyond the last are not reached."""
    row = first + tl.arange(0, ROWS)
    return tl.load(offsets + row + 1, mask=row < rows, other=9223372036854775807)


@triton.jit
def first_forward(
    offsets, begins, e, q, base, event, product, centre, valid, x, sums, rows, k, width,
    VALID: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    ends = _ends(offsets, first, rows, ROWS)
    begin, end = tl.load(offsets + first), tl.load(offsets + tl.minimum(first + ROWS, rows))
    unit = tl.arange(0, WIDE)
    of_unit = unit < width
    around = tl.load(centre + unit, mask=of_unit, other=0.0).to(WORK)
    one = tl.zeros([WIDE], WORK)
    two = tl.zeros([WIDE], WORK)
    for start in range(begin, end, TILE):
        place = start + tl.arange(0, TILE)
        inside = place < end
        row = tl.where(inside, _row_of(place, ends, first), first)
        own = tl.load(begins + row) + place - tl.load(offsets + row)
        there = inside[:, None] & of_unit[None, :]
        made = tl.load(base + row[:, None] * width + unit[None, :], mask=there, other=0.0).to(WORK)
        for begin_column in range(0, k, COLUMNS):
            column = begin_column + tl.arange(0, COLUMNS)
            held = inside[:, None] & (column < k)[None, :]
            a = tl.load(e + own[:, None] * k + column[None, :], mask=held, other=0.0).to(WORK)
            b = tl.load(q + row[:, None] * k + column[None, :], mask=held, other=0.0).to(WORK)
            layer, known = column[:, None] * width + unit[None, :], (column < k)[:, None] & of_unit[None, :]
            of_event = tl.load(event + layer, mask=known, other=0.0).to(WORK)
            made += tl.dot(a, of_event, input_precision=PRECISION)
            of_product = tl.load(product + layer, mask=known, other=0.0).to(WORK)
            made += tl.dot(a * b, of_product, input_precision=PRECISION)
        made = made.to(x.dtype.element_ty)
        tl.store(x + place[:, None] * width + unit[None, :], made, mask=there)
        distance = (made.to(WORK) - around[None, :]) * _weights(valid, place, inside, VALID, WORK)
        one += tl.sum(distance, 0)
        two += tl.sum(distance * distance, 0)
    into = sums + tl.program_id(0) * 2 * width + unit
    tl.store(into, one, mask=of_unit)
    tl.store(into + width, two, mask=of_unit)


@triton.jit
def next_forward(
    x, curve, weight, bias, centre, valid, out, sums, number, inner, m, width,
    CENTRE: tl.constexpr, VALID: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside, unit = place < number, tl.arange(0, WIDE)
    of_unit = unit < m
    made = tl.zeros([TILE, WIDE], WORK) + tl.load(bias + unit, mask=of_unit, other=0.0).to(WORK)[None, :]
    for begin in range(0, inner, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        there = inside[:, None] & (column < inner)[None, :]
        a = tl.load(x + place[:, None] * inner + column[None, :], mask=there, other=0.0).to(WORK)
        alpha, scale, shift = _curve(curve, column, inner, WORK)
        _, gate = _dice(a, alpha, scale, shift)
        known = (column < inner)[:, None] & of_unit[None, :]
        b = tl.load(weight + column[:, None] * width + unit[None, :], mask=known, other=0.0).to(WORK)
        made += tl.dot(a * gate, b, input_precision=PRECISION)
    made = made.to(out.dtype.element_ty)
    tl.store(out + place[:, None] * m + unit[None, :], made, mask=inside[:, None] & of_unit[None, :])
    if CENTRE:
        around = tl.load(centre + unit, mask=of_unit, other=0.0).to(WORK)
        distance = (made.to(WORK) - around[None, :]) * _weights(valid, place, inside, VALID, WORK)
        into = sums + tl.program_id(0) * 2 * width + unit
        tl.store(into, tl.sum(distance, 0), mask=unit < width)
        tl.store(into + width, tl.sum(distance * distance, 0), mask=unit < width)


@triton.jit
def next_backward(
    x, curve, weight, d_out, out, correction, valid, d_x, sums, d_weight, d_bias, number, inner, m,
    GIVEN: tl.constexpr, VALID: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    column, unit = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, WIDE)
    of_column, of_unit = column < inner, unit < m
    alpha, scale, shift = _curve(curve, column, inner, WORK)
    known = of_unit[:, None] & of_column[None, :]
    layer = tl.load(weight + unit[:, None] * inner + column[None, :], mask=known, other=0.0).to(WORK)
    d_alpha = tl.zeros([COLUMNS], WORK)
    sum_z = tl.zeros([COLUMNS], WORK)
    sum_zx = tl.zeros([COLUMNS], WORK)
    of_weight = tl.zeros([WIDE, COLUMNS], WORK)
    of_bias = tl.zeros([WIDE], WORK)
    for tile in range(tl.program_id(0), tl.cdiv(number, TILE), tl.num_programs(0)):
        place = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)
        inside = place < number
        d = _completed(d_out, out, correction, valid, place, inside, unit, m, GIVEN, VALID, WORK)
        there, where = inside[:, None] & of_column[None, :], place[:, None] * inner + column[None, :]
        a = tl.load(x + where, mask=there, other=0.0).to(WORK)
        p, gate = _dice(a, alpha, scale, shift)
        g = tl.dot(d, layer, input_precision=PRECISION)
        through = g * a * (1 - p)
        d_z = through * p * (1 - alpha)[None, :]
        tl.store(d_x + where, g * gate + d_z * scale[None, :], mask=there)
        d_alpha += tl.sum(through, 0)
        sum_z += tl.sum(d_z, 0)
        sum_zx += tl.sum(d_z * a, 0)
        of_weight += tl.dot(tl.trans(d), a * gate, input_precision=PRECISION)
        of_bias += tl.sum(d, 0)
    into = sums + tl.program_id(0) * 3 * inner + column
    tl.store(into, d_alpha, mask=of_column)
    tl.store(into + inner, sum_z, mask=of_column)
    tl.store(into + 2 * inner, sum_zx, mask=of_column)
    own = tl.program_id(0).to(tl.int64) * m
    tl.store(d_weight + (own + unit[:, None]) * inner + column[None, :], of_weight, mask=known)
    if tl.program_id(1) == 0:
        tl.store(d_bias + own + unit, of_bias, mask=of_unit)


@triton.jit
def first_backward(
    offsets, begins, e, q, product, event_t, product_t, d_x, x, correction, valid, d_e, d_base, d_q, d_event, d_product,
    rows, k, room, width, SHARED: tl.constexpr, GIVEN: tl.constexpr, VALID: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    column, unit = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, WIDE)
    of_column, of_unit = column < k, unit < width
    known = of_unit[:, None] & of_column[None, :]
    layer = unit[:, None] * room + column[None, :]
    of_event = tl.load(event_t + layer, mask=known, other=0.0).to(WORK)  # (H, columns)
    of_product = tl.load(product_t + layer, mask=known, other=0.0).to(WORK)
    d_events = tl.zeros([COLUMNS, WIDE], WORK)
    d_products = tl.zeros([COLUMNS, WIDE], WORK)
    for group in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        first = group * ROWS
        ends = _ends(offsets, first, rows, ROWS)
        begin, end = tl.load(offsets + first), tl.load(offsets + tl.minimum(first + ROWS, rows))
        bases = tl.zeros([ROWS, WIDE], WORK)
        queries = tl.zeros([ROWS, COLUMNS], WORK)
        for start in range(begin, end, TILE):
            place = start + tl.arange(0, TILE)
            inside = place < end
            row = tl.where(inside, _row_of(place, ends, first), first)
            own = tl.load(begins + row) + place - tl.load(offsets + row)
            d = _completed(d_x, x, correction, valid, place, inside, unit, width, GIVEN, VALID, WORK)
            held = inside[:, None] & of_column[None, :]
            a = tl.load(e + own[:, None] * k + column[None, :], mask=held, other=0.0).to(WORK)
            b = tl.load(q + row[:, None] * k + column[None, :], mask=held, other=0.0).to(WORK)
            both = tl.dot(d, of_product, input_precision=PRECISION)  # of q e
            found = tl.dot(d, of_event, input_precision=PRECISION) + b * both
            if SHARED:
                tl.atomic_add(d_e + own[:, None] * k + column[None, :], found, mask=held)
            else:
                tl.store(d_e + own[:, None] * k + column[None, :], found, mask=held)
            rank = first + tl.arange(0, ROWS)
            belongs = ((rank[:, None] == row[None, :]) & inside[None, :]).to(WORK)  # (ROWS, TILE)
            bases += tl.dot(belongs, d, input_precision="ieee")
            queries += tl.dot(belongs, a * both, input_precision="ieee")
            d_events += tl.dot(tl.trans(a), d, input_precision=PRECISION)
            d_products += tl.dot(tl.trans(a * b), d, input_precision=PRECISION)
        row = first + tl.arange(0, ROWS)
        if tl.program_id(1) == 0:
            there = (row < rows)[:, None] & of_unit[None, :]
            tl.store(d_base + row[:, None] * width + unit[None, :], bases, mask=there)
        there = (row < rows)[:, None] & of_column[None, :]
        tl.store(d_q + row[:, None] * k + column[None, :], queries, mask=there)
    where = (tl.program_id(0).to(tl.int64) * k + column[:, None]) * width + unit[None, :]
    known = of_column[:, None] & of_unit[None, :]
    tl.store(d_event + where, d_events, mask=known)
    tl.store(d_product + where, d_products, mask=known)


@triton.jit
def pool_forward(offsets, begins, w, e, pooled, k, TILE: tl.constexpr, COLUMNS: tl.constexpr, WORK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end, shift = tl.load(offsets + row), tl.load(offsets + row + 1), tl.load(begins + row)
    total = tl.zeros([COLUMNS], WORK)
    for start in range(begin, end, TILE):
        place = start + tl.arange(0, TILE)
        inside = place < end
        held = inside[:, None] & (column < k)[None, :]
        own = shift + place - begin
        a = tl.load(e + own[:, None] * k + column[None, :], mask=held, other=0.0).to(WORK)
        total += tl.sum(a * tl.load(w + place, mask=inside, other=0.0).to(WORK)[:, None], 0)
    tl.store(pooled + row * k + column, total, mask=column < k)


@triton.jit
def pool_backward(
    offsets, begins, w, e, d_pooled, d_w, d_e, k, SHARED: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
    WORK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    begin, end, shift = tl.load(offsets + row), tl.load(offsets + row + 1), tl.load(begins + row)
    for start in range(begin, end, TILE):
        place = start + tl.arange(0, TILE)
        inside = place < end
        own = shift + place - begin
        weight = tl.load(w + place, mask=inside, other=0.0).to(WORK)
        through = tl.zeros([TILE], WORK)
        for begin_column in range(0, k, COLUMNS):
            column = begin_column + tl.arange(0, COLUMNS)
            held, where = inside[:, None] & (column < k)[None, :], own[:, None] * k + column[None, :]
            d = tl.load(d_pooled + row * k + column, mask=column < k, other=0.0).to(WORK)
            through += tl.sum(tl.load(e + where, mask=held, other=0.0).to(WORK) * d[None, :], 1)
            if SHARED:
                tl.atomic_add(d_e + where, weight[:, None] * d[None, :], mask=held)
            else:
                tl.store(d_e + where, weight[:, None] * d[None, :], mask=held)
        tl.store(d_w + place, through, mask=inside)


@triton.jit
def dice_moments(
    x, centre, valid, sums, number, width, VALID: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
    WORK: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    of_column = column < width
    around = tl.load(centre + column, mask=of_column, other=0.0).to(WORK)
    one = tl.zeros([COLUMNS], WORK)
    two = tl.zeros([COLUMNS], WORK)
    for tile in range(tl.program_id(0), tl.cdiv(number, TILE), tl.num_programs(0)):
        place = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)
        inside = place < number
        there = inside[:, None] & of_column[None, :]
        a = tl.load(x + place[:, None] * width + column[None, :], mask=there, other=0.0).to(WORK)
        distance = (a - around[None, :]) * _weights(valid, place, inside, VALID, WORK)
        one += tl.sum(distance, 0)
        two += tl.sum(distance * distance, 0)
    into = sums + tl.program_id(0) * 2 * width + column
    tl.store(into, one, mask=of_column)
    tl.store(into + width, two, mask=of_column)


@triton.jit
def dice_forward(x, curve, y, number, width, TILE: tl.constexpr, COLUMNS: tl.constexpr, WORK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there, where = (place < number)[:, None] & (column < width)[None, :], place[:, None] * width + column[None, :]
    alpha, scale, shift = _curve(curve, column, width, WORK)
    a = tl.load(x + where, mask=there, other=0.0).to(WORK)
    _, gate = _dice(a, alpha, scale, shift)
    tl.store(y + where, a * gate, mask=there)


@triton.jit
def dice_backward(
    x, d_y, curve, d_x, sums, number, width, TILE: tl.constexpr, COLUMNS: tl.constexpr, WORK: tl.constexpr
):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    of_column = column < width
    alpha, scale, shift = _curve(curve, column, width, WORK)
    d_alpha = tl.zeros([COLUMNS], WORK)
    sum_z = tl.zeros([COLUMNS], WORK)
    sum_zx = tl.zeros([COLUMNS], WORK)
    for tile in range(tl.program_id(0), tl.cdiv(number, TILE), tl.num_programs(0)):
        place = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)
        there, where = (place < number)[:, None] & of_column[None, :], place[:, None] * width + column[None, :]
        a = tl.load(x + where, mask=there, other=0.0).to(WORK)
        g = tl.load(d_y + where, mask=there, other=0.0).to(WORK)
        p, gate = _dice(a, alpha, scale, shift)
        through = g * a * (1 - p)
        d_z = through * p * (1 - alpha)[None, :]
        tl.store(d_x + where, g * gate + d_z * scale[None, :], mask=there)
        d_alpha += tl.sum(through, 0)
        sum_z += tl.sum(d_z, 0)
        sum_zx += tl.sum(d_z * a, 0)
    into = sums + tl.program_id(0) * 3 * width + column
    tl.store(into, d_alpha, mask=of_column)
    tl.store(into + width, sum_z, mask=of_column)
    tl.store(into + 2 * width, sum_zx, mask=of_column)


@triton.jit
def dice_complete(
    d_x, x, correction, valid, number, width, VALID: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
    WORK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column, inside = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), place < number
    d = _completed(d_x, x, correction, valid, place, inside, column, width, True, VALID, WORK)
    there = inside[:, None] & (column < width)[None, :]
    tl.store(d_x + place[:, None] * width + column[None, :], d, mask=there)


@triton.jit
def dice_settle(
    total, alpha, mean, variance, curve, units, width, EPS: tl.constexpr, MOMENTUM: tl.constexpr, COLUMNS: tl.constexpr,
    WORK: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there, own = column < width, column < units
    rows = tl.maximum(tl.load(total + 2 * units).to(WORK), 1.0)
    distance = tl.load(total + column, mask=own, other=0.0).to(WORK) / rows
    found = tl.load(total + units + column, mask=own, other=0.0).to(WORK) / rows - distance * distance
    found = tl.where(found > 0, found, 0 * found)  # what is not a number stays so
    centre = tl.load(mean + column, mask=own, other=0.0).to(WORK)
    spread = tl.load(variance + column, mask=own, other=0.0).to(WORK)
    scale = tl.where(own, 1 / tl.sqrt(found + EPS), 0.0)
    tl.store(curve + column, tl.load(alpha + column, mask=there, other=0.0).to(WORK), mask=there)
    tl.store(curve + width + column, scale, mask=there)
    tl.store(curve + 2 * width + column, -(centre + distance) * scale, mask=there)
    tl.store(mean + column, centre + MOMENTUM * distance, mask=own)
    unbiased = found * rows / tl.maximum(rows - 1, 1.0)
    moved = tl.where(rows > 1, MOMENTUM, 0.0)  # one row has no variance
    tl.store(variance + column, spread + moved * (unbiased - spread), mask=own)


@triton.jit
def dice_total(sums, curve, total, gradient, units, width, COLUMNS: tl.constexpr, WORK: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    own = column < units
    rows = tl.maximum(tl.load(total + 2 * units).to(WORK), 1.0)
    _, scale, shift = _curve(curve, column, width, WORK)
    d_shift = tl.load(sums + width + column, mask=own, other=0.0).to(WORK)
    by_z = scale * tl.load(sums + 2 * width + column, mask=own, other=0.0).to(WORK) + shift * d_shift
    d_variance = -by_z * scale * scale / 2
    distance = tl.load(total + column, mask=own, other=0.0).to(WORK) / rows
    tl.store(gradient + column, (-scale * d_shift - 2 * distance * d_variance) / rows, mask=own)
    tl.store(gradient + units + column, d_variance / rows, mask=own)


@triton.jit
def dice_correction(gradient, centre, correction, units, width, COLUMNS: tl.constexpr, WORK: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there, own = column < width, column < units
    slope = 2 * tl.load(gradient + units + column, mask=own, other=0.0).to(WORK)
    by_mean = tl.load(gradient + column, mask=own, other=0.0).to(WORK)
    around = tl.load(centre + column, mask=own, other=0.0).to(WORK)
    tl.store(correction + column, by_mean - slope * around, mask=there)
    tl.store(correction + width + column, slope, mask=there)
