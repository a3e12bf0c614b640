"""Device functions that the kernels of several operators share. Importing this module needs Triton.

Kernel modules do without postponed annotations: the interpreter of Triton 3.0 reads ``tl.constexpr`` from them.
"""

import triton
import triton.language as tl


@triton.jit
def round_half_even(v):
    """Nearest integer, ties to even, for |v| <= 2^22: adding 1.5 * 2^23 leaves no bits for a fraction. NaN stays NaN."""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def clamp(v, low, high):
    """v limited to [low, high]; NaN stays NaN (``tl.clamp`` and min/max drop it)."""
    v = tl.where(v < low, low, v)
    return tl.where(v > high, high, v)


@triton.jit
def limited(v):
    """v within +-2^80, the limit of float32 in ``limits``; NaN stays NaN."""
    return clamp(v, -1208925819614629174706176.0, 1208925819614629174706176.0)


@triton.jit
def count_up(out_ptr, steps_ptr):
    """Loops steps[0] times and adds the steps that a mask lets through: shows whether Triton's interpreter runs here."""
    i = tl.arange(0, 4)
    total = tl.zeros((4,), tl.float32)
    for _ in range(tl.load(steps_ptr).to(tl.int32)):
        total += tl.load(steps_ptr + i, mask=i < 2, other=0.0)
    tl.store(out_ptr + i, total, mask=i < 3)


@triton.jit
def step_in_use(scale, floor):
    """max(|scale|, floor), or scale as it is where the floor is negative; as ``learned.step_in_use``."""
    size = tl.abs(scale)
    size = tl.where(size < floor, floor, size)
    return tl.where(floor < 0, scale, size)


@triton.jit
def step_gradient(grad, scale, floor, grad_scale):
    """Gradient of the step in use carried to scale; as ``learned.step_gradient``."""
    grad = grad * grad_scale
    return tl.where(scale < 0, grad * tl.where(floor < 0, 1.0, -1.0), grad)


@triton.jit
def pick(i, p0, p1, p2, p3, SLOTS: tl.constexpr):
    """The i-th of SLOTS pointers."""
    p = p0
    if SLOTS > 1:
        p = tl.where(i == 1, p1, p)
    if SLOTS > 2:
        p = tl.where(i == 2, p2, p)
    if SLOTS > 3:
        p = tl.where(i == 3, p3, p)
    return p


@triton.jit
def in_fours(n, ALIGNED: tl.constexpr):
    """n, which is a multiple of 4 if ALIGNED: the compiler sees that values can be read and written four at a time."""
    if ALIGNED:
        return n // 4 * 4
    else:
        return n


@triton.jit
def arrived_last(counter_ptr, programs):
    """Whether this is the last of some programs to come here: it sees what the others wrote before, read past the L1 cache.

    The counter starts at 0 and is 0 again afterwards.
    """
    tl.debug_barrier()  # what all threads of this program wrote comes first
    before = tl.atomic_add(counter_ptr, 1, sem="acq_rel")
    last = before == programs - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def place(ints_ptr, tiles_ptr, first: tl.constexpr, count: tl.constexpr, MANY: tl.constexpr):
    """Of this program: its item, that item's ten integers of the table, row and number within the row.

    ``first`` and ``count`` are where the table has the item's first program and the programs of a row. Without MANY there
    is one item, and no ``tiles``.
    """
    tile = tl.program_id(0)
    if MANY:
        item = tl.load(tiles_ptr + tile)
    else:
        item = tile * 0
    ints_ptr += item * 10
    programs = tl.load(ints_ptr + count).to(tl.int32)
    local = tile - tl.load(ints_ptr + first).to(tl.int32)
    return item, ints_ptr, local // programs, (local % programs).to(tl.int64)


@triton.jit
def grid_terms(grad, x, step, offset, lowest, highest):
    """Of ``(clamp(round((x + offset) / step)) - offset / step) * step``: dx, and each value's share of dstep and doffset."""
    scaled = tl.div_rn(x + offset, tl.zeros_like(x) + step)
    code = clamp(scaled, lowest, highest)
    inside = code == scaled
    dx = tl.where(inside, grad, 0.0)
    return dx, grad * (round_half_even(code) - tl.where(inside, scaled, scaled * 0.0)), dx - grad  # * 0: NaN counts
