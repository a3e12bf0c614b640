"""The scan on codes on GPUs in Triton (kernels: ``triton_kernels.py``); signatures and meaning are those of ``reference.py``.

A sequence is cut into chunks of ``CHUNK`` tokens that run side by side: each from a zero state, then the carry from chunk
to chunk, then each from the state that enters it. What a chunk does to a state is the product of its rows of the table.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..ss2d_scan.maps import partial, per_direction, strides, tokens
from ..triton_support import DEVICES, INTERPRETED, direction_codes, is_available, next_power_of_2, on_its_device
from . import OnGrid, Tables
from .reference import build

__all__ = ["CHUNK", "DEVICES", "build", "is_available", "scan"]

CHUNK = 64
_VALUES, _CODES, _ENTERING = 0, 1, 2


@functools.cache
def _kernels():
    from . import triton_kernels  # importing it needs Triton

    return triton_kernels


def _operand(operand: OnGrid, count: int, dummy: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """A map as (B, L, K, C), its grids, numbers between the grids of two images, and what it holds."""
    data = per_direction(tokens(operand.data), count)
    if operand.grid is None:
        return data, dummy, 0, _VALUES
    grid = operand.grid.to(torch.float32).contiguous()
    kind = _CODES if data.dtype == torch.uint8 else _ENTERING
    return data, grid, 4 if grid.numel() > 4 else 0, kind


def scan(
    x: OnGrid,
    delta: OnGrid,
    tables: Tables,
    B: OnGrid,
    C: OnGrid,
    D: Tensor | None,
    directions: list[int] | Tensor,
    merge: bool,
    out: Tensor,
) -> None:
    """Scan into ``out``, see ``table_scan.table_scan``; directions are codes or checked index lists (K, H * W)."""
    _launch(out, x, delta, tables, B, C, D, directions, merge)


@on_its_device
def _launch(out, x, delta, tables, B, C, D, directions, merge) -> None:
    batch, height, width, count, channels = delta.data.shape
    length, state = height * width, B.data.shape[-1]
    decays, steps = tables.decays.contiguous(), tables.steps.contiguous()
    maps = [_operand(operand, count, steps) for operand in (x, delta, B, C)]
    listed = isinstance(directions, Tensor)
    order = directions if listed else direction_codes(tuple(directions), out.device)
    skip = steps if D is None else D.to(torch.float32).contiguous()
    block_n = next_power_of_2(state)
    block_d = min(32 if block_n <= 64 else 8, next_power_of_2(channels)) if INTERPRETED else 32 if block_n <= 64 else 8
    blocks, chunks, pairs = -(-channels // block_d), -(-length // CHUNK), batch * count
    states, change = (
        torch.empty(pairs, chunks, state, channels, dtype=torch.float32, device=out.device) for _ in range(2)
    )
    parted = merge and count > 1
    y = partial(out, length, count, True) if parted else out.view(batch, length, count, channels)
    kinds = dict(zip(("X_KIND", "Q_KIND", "B_KIND", "C_KIND"), (kind for *_, kind in maps), strict=True))
    bits = {"BITS": delta.bits, "X_BITS": x.bits, "B_BITS": B.bits, "C_BITS": C.bits}
    kernels = _kernels()

    def chunk_pass(output: bool) -> None:
        kernels.table_chunk[(blocks, chunks, pairs)](
            *(data for data, *_ in maps), decays, steps, skip, order,
            *(grid for _, grid, _, _ in maps), *(apart for _, _, apart, _ in maps), states, change, y,
            *(stride for data, *_ in maps for stride in strides(data)), *strides(y),
            0 if len(steps) == 1 else count * channels, count, channels, height, width,
            N=state, BN=block_n, BD=block_d, CHUNK=CHUNK, LEVELS=steps.shape[-1], ROW=decays.shape[-1], **bits, **kinds,
            HAS_SKIP=D is not None, LISTED=listed, OUTPUT=output, num_warps=1,
        )  # fmt: skip

    if chunks > 1:
        chunk_pass(False)
        kernels.table_carry[(blocks, state, pairs)](
            states, change, channels, chunks, N=state, BC=16, BD=block_d, num_warps=1
        )
    chunk_pass(True)
    if parted:
        torch.sum(y, 2, out=out.view(batch, length, channels))
