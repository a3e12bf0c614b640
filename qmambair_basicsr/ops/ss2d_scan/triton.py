"""GPU implementation of the directional selective scan in Triton (kernels: ``triton_kernels.py``, ``triton_gradient.py``).

One scan is cut into chunks of ``CHUNK`` tokens that run side by side; all directions share every launch.

Forward: (1) each chunk from a zero state: what it adds, and its sum of dt; (2) carry: the state after every chunk;
(3) each chunk from the state that enters it: y. Backward: (1) the adjoint of each chunk from zero, (2) its carry, (3) the
forward recurrence again, keeping the state before every 16th token, (4) the gradients. Between the two passes only the
chunk states are kept: N / CHUNK numbers per element of delta; inside the backward pass N / 16.

A feature map is read and written in place in each direction's order; only B and C, which are small, are copied into
that order for step 4. Sums over directions, batch, chunks and channel blocks go through partial buffers that are added
in a fixed order: results do not vary from run to run.
"""

from __future__ import annotations

import functools
import math

import torch

from ..triton_support import DEVICES, INTERPRETED, direction_codes, is_available, next_power_of_2, on_its_device
from .maps import partial, per_direction, strides, tokens

__all__ = ["CHUNK", "DEVICES", "backward", "forward", "is_available"]

CHUNK = 64
_TILE = 16  # tokens whose states gradient_chunk holds in registers
_MAX_STATE = 64


@functools.cache
def _kernels():
    from . import triton_gradient, triton_kernels  # importing them needs Triton

    return triton_kernels, triton_gradient


def _reduced(partial: torch.Tensor, like: torch.Tensor, merge: bool) -> torch.Tensor:
    """The map (B, H, W, D), or (B, H, W, K, D) unless directions are merged, from what :func:`maps.partial` gave."""
    if merge:
        partial = partial.squeeze(2) if partial.shape[2] == 1 else partial.sum(2).to(like.dtype)
    return partial.unflatten(1, like.shape[1:3])


class _Launch:
    """Sizes, flags and contiguous parameters that the launches of one call share."""

    def __init__(self, x, delta, A, B, C, D, delta_bias, softplus, directions):
        self.kernels, self.gradients = _kernels()
        self.count = len(directions)
        self.batch, self.height, self.width = x.shape[:3]
        self.length = self.height * self.width
        self.channels, self.state = A.shape[1:]
        if self.state > _MAX_STATE:
            raise ValueError(
                f"ss2d_scan: the Triton kernels take a state of at most {_MAX_STATE}, got N = {self.state}; set "
                "QMAMBAIR_BACKEND=reference"
            )
        self.chunks = -(-self.length // CHUNK)
        self.pairs = self.batch * self.count
        self.x = per_direction(tokens(x), self.count)
        self.delta, self.b, self.c = tokens(delta), tokens(B), tokens(C)
        self.a = (A.transpose(1, 2).to(torch.float32) * math.log2(math.e)).contiguous()  # (K, N, D)
        self.skip = None if D is None else D.to(torch.float32).contiguous()
        self.bias = None if delta_bias is None else delta_bias.to(torch.float32).contiguous()
        self.listed = isinstance(directions, torch.Tensor)
        self.order = directions if self.listed else direction_codes(tuple(directions), x.device)
        self.softplus = softplus
        self.block_n = next_power_of_2(self.state)
        # one channel per lane; the interpreter has no lanes and would only compute padding
        self.block_d = min(32, next_power_of_2(self.channels)) if INTERPRETED else 32
        self.blocks = -(-self.channels // self.block_d)
        self.grid = (self.blocks, self.chunks, self.pairs)
        self.sizes = (self.count, self.channels, self.height, self.width)

    def new(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.a.device)

    def forward_chunk(self, mode, entering, out, sums, y):
        dummy = self.a  # a pointer the chosen mode never follows
        y_strides = (0, 0, 0) if y is None else strides(y)
        self.kernels.forward_chunk[self.grid](
            self.x, self.delta, self.b, self.c, self.a,
            dummy if self.skip is None else self.skip,
            dummy if self.bias is None else self.bias,
            self.order,
            *(dummy if t is None else t for t in (entering, out, sums, y)),
            *strides(self.x), *strides(self.delta), *strides(self.b), *strides(self.c), *y_strides, *self.sizes,
            N=self.state, BN=self.block_n, BD=self.block_d, CHUNK=CHUNK, T=_TILE, SOFTPLUS=self.softplus,
            HAS_SKIP=self.skip is not None, HAS_BIAS=self.bias is not None, LISTED=self.listed, MODE=mode, num_warps=1,
        )  # fmt: skip

    def carry(self, local, sums, out, slots, reverse):
        """Fill slots 0 .. chunks - 1 of out (pairs, slots, N, D)."""
        self.kernels.carry[(self.blocks, self.state, self.pairs)](
            local, sums, self.a, out, slots * self.state * self.channels, self.count, self.channels, self.chunks,
            N=self.state, BC=16, BD=self.block_d, REVERSE=reverse, num_warps=1,
        )  # fmt: skip

    def adjoint_chunk(self, dy, out, sums):
        self.kernels.adjoint_chunk[self.grid](
            dy, self.delta, self.c, self.a, self.a if self.bias is None else self.bias, self.order, out, sums,
            *strides(dy), *strides(self.delta), *strides(self.c), *self.sizes,
            N=self.state, BN=self.block_n, BD=self.block_d, CHUNK=CHUNK, SOFTPLUS=self.softplus,
            HAS_BIAS=self.bias is not None, LISTED=self.listed, num_warps=1,
        )  # fmt: skip

    def to_sequence(self, t):
        padded = self.chunks * CHUNK
        out = self.new(self.pairs, self.state, padded)
        self.gradients.to_sequence[(self.chunks, self.pairs)](
            t, out, self.order, *strides(t), self.count, self.height, self.width, padded,
            N=self.state, BN=self.block_n, BT=CHUNK, LISTED=self.listed, num_warps=2,
        )  # fmt: skip
        return out

    def to_raster(self, parts, like):
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        self.gradients.to_raster[(self.chunks, self.pairs)](
            parts, out, self.order, self.count, self.height, self.width, self.chunks * CHUNK, self.blocks,
            N=self.state, BN=self.block_n, BT=CHUNK, LISTED=self.listed, num_warps=2,
        )  # fmt: skip
        return out

    def gradient_chunk(self, dy, fine, r, dx, ddelta, db, dc, da, dskip, dbias):
        self.gradients.gradient_chunk[self.grid](
            dy, self.x, self.delta, self.to_sequence(self.b), self.to_sequence(self.c), self.a,
            self.a if self.skip is None else self.skip,
            self.a if self.bias is None else self.bias,
            self.order, fine, r, dx, ddelta, db, dc, da, dskip, dbias,
            *strides(dy), *strides(self.x), *strides(self.delta), *strides(dx), *self.sizes, self.chunks * CHUNK,
            N=self.state, BD=self.block_d, CHUNK=CHUNK, SOFTPLUS=self.softplus,
            HAS_SKIP=self.skip is not None, HAS_BIAS=self.bias is not None, LISTED=self.listed, num_warps=1,
        )  # fmt: skip


@on_its_device
def forward(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    softplus: bool,
    directions: list[int] | torch.Tensor,
    merge: bool,
    save_states: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and chunk states; arguments and results as in ``reference.forward``.

    Raises:
        ValueError: a state size N above 64.
    """
    run = _Launch(x, delta, A, B, C, D, delta_bias, softplus, directions)
    local = run.new(run.pairs, run.chunks, run.state, run.channels)
    sums = run.new(run.pairs, run.chunks, run.channels)
    run.forward_chunk(0, None, local, sums, None)
    states = torch.empty_like(local)
    run.carry(local, sums, states, run.chunks, reverse=False)
    y = partial(x, run.length, run.count, merge)
    run.forward_chunk(1, states, None, None, y)
    states = states.view(run.batch, run.count, *states.shape[1:])
    return _reduced(y, x, merge), states if save_states else states[:, :, -1:].clone()


@on_its_device
def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    states: torch.Tensor,
    softplus: bool,
    directions: list[int] | torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of the scan; arguments and results as in ``reference.backward``."""
    run = _Launch(x, delta, A, B, C, D, delta_bias, softplus, directions)
    dy = per_direction(tokens(dy), run.count)
    states = states.contiguous()
    chunk_shape = (run.pairs, run.chunks, run.state, run.channels)
    local, sums = run.new(*chunk_shape), run.new(run.pairs, run.chunks, run.channels)
    run.adjoint_chunk(dy, local, sums)
    r = run.new(run.pairs, run.chunks + 1, run.state, run.channels)
    r[:, -1] = 0.0
    run.carry(local, sums, r, run.chunks + 1, reverse=True)

    fine = run.new(run.pairs, run.chunks * (CHUNK // _TILE), run.state, run.channels)
    run.forward_chunk(2, states, fine, None, None)
    shared = x.dim() == 4
    dx = partial(x, run.length, run.count, shared)
    ddelta = torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)
    db, dc = (run.new(run.pairs, run.blocks, run.state, run.chunks * CHUNK) for _ in range(2))
    da = local.zero_()
    dskip, dbias = (run.new(run.batch, run.count, run.chunks, run.channels) for _ in range(2))
    run.gradient_chunk(dy, fine, r, dx, ddelta, db, dc, da, dskip, dbias)

    da = da.view(run.batch, run.count, *chunk_shape[1:]).sum((0, 2), dtype=torch.float64)  # (K, N, D)
    return (
        _reduced(dx, x, shared),
        ddelta,
        da.transpose(1, 2).to(A.dtype).contiguous(),
        run.to_raster(db, B),
        run.to_raster(dc, C),
        None if D is None else dskip.sum((0, 2), dtype=torch.float64).to(D.dtype),
        None if delta_bias is None else dbias.sum((0, 2), dtype=torch.float64).to(delta_bias.dtype),
    )
