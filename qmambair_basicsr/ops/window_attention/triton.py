"""Window attention on GPUs in Triton: no (windows, T, T) map reaches memory but one sum of them for some windows each.

T a power of two from 16 to 256, up to 64 channels a head; float32, or half precision with float32 arithmetic. The gradient
of the table is a sum in a fixed order: results do not vary from run to run.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..triton_support import DEVICES, INTERPRETED, is_available, next_power_of_2, on_its_device
from . import MASKED, check_values

__all__ = ["DEVICES", "accepts", "backward", "forward", "is_available"]

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_SIDE = 64  # of a tile of the attention map
_PROGRAMS = 1024  # that add up gradients of logits, at most about
_PAIRS = 256  # of tokens that share a row of the table, at a time

_pairs = (
    WeakIdKeyDictionary()
)  # index -> (its version, rows of the table, pairs in the order of their rows, where rows start)


@functools.cache
def _kernels():
    from . import triton_kernels  # importing it needs Triton

    return triton_kernels


@functools.cache
def _precision() -> str:
    """How products of float32 are made: by three products of TF32 where the GPU has those, which costs no digits that count."""
    return "ieee" if INTERPRETED or torch.cuda.get_device_capability() < (8, 0) else "tf32x3"


def accepts(qkv: Tensor, tokens: int, heads: int) -> bool:
    """Whether the kernels take an input; see ``is_fused``."""
    dim = qkv.shape[-1] // 3 // heads
    fits = 16 <= tokens <= 256 and tokens & (tokens - 1) == 0 and 0 < dim <= 64
    return qkv.dtype in _TYPES and fits and qkv.numel() > 0


class _Call:
    """Arguments that all kernels share."""

    def __init__(self, qkv, table, index, order, regions, scale):
        self.qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
        self.index, self.windows, self.tokens = index, *order.shape
        self.batch, self.length, channels = qkv.shape
        self.channels, self.heads = channels // 3, table.shape[1]
        self.bias = table.float()[index.flatten()].t().contiguous()  # (heads, T * T)
        self.tensors = self.qkv, self.bias, order, order if regions is None else regions
        self.side = min(_SIDE, self.tokens)
        self.constants = {
            "MASKED": MASKED,
            "HAS_REGIONS": regions is not None,
            "T": self.tokens,
            "D": max(16, next_power_of_2(self.channels // self.heads)),
            "BQ": self.side,
            "BK": self.side,
            "PRECISION": _precision(),
        }
        sizes = self.length, self.windows, self.channels, self.channels // self.heads
        self.numbers = scale, self.qkv.stride(0), self.qkv.stride(1), *sizes
        self.blocks = self.tokens // self.side


@on_its_device
def forward(qkv, table, index, order, regions, scale):
    """Output (B, L, C), and largest logits and inverse sums (B, windows, heads, 2, T) for the backward pass."""
    check_values(table, index, order)
    call = _Call(qkv, table, index, order, regions, scale)
    out = qkv.new_empty(call.batch, call.length, call.channels)
    norms = qkv.new_empty((call.batch, call.windows, call.heads, 2, call.tokens), dtype=torch.float32)
    _kernels().attention_forward[(call.batch * call.windows * call.blocks, call.heads)](
        *call.tensors, out, norms, *call.numbers, **call.constants, num_warps=4
    )
    return out, norms


@on_its_device
def backward(dout, qkv, table, index, order, regions, out, norms, scale):
    """Gradients of qkv and table."""
    call = _Call(qkv, table, index, order, regions, scale)
    total = call.batch * call.windows
    group = -(-total // max(1, _PROGRAMS // (call.blocks**2 * call.heads)))
    groups = -(-total // group)
    dqkv = qkv.new_empty(qkv.shape)
    dots = torch.empty(total * call.heads * call.tokens, device=qkv.device)
    dbias = torch.empty(groups, call.heads, call.tokens**2, device=qkv.device)
    dtable = torch.empty(table.shape, device=qkv.device)
    norms = norms.contiguous()
    given = dout.contiguous(), *call.tensors
    kernels = _kernels()
    programs = total * call.blocks, call.heads
    kernels.query_gradient[programs](
        *given, out.contiguous(), norms, dqkv, dots, *call.numbers, **call.constants, num_warps=4
    )
    kernels.key_gradient[programs](
        *given, norms, dqkv, dots, *call.numbers, **(call.constants | {"BQ": min(32, call.side)}), num_warps=4
    )
    kernels.bias_gradient[(groups * call.blocks**2, call.heads)](
        *given, norms, dbias, dots, *call.numbers, total, group, **call.constants, num_warps=8
    )
    pairs, starts = _pairs_of(index, table.shape[0])
    kernels.table_gradient[(table.shape[0], call.heads)](
        dbias, pairs, starts, dtable, groups, call.heads, T=call.tokens, BLOCK=_PAIRS, num_warps=4
    )
    return dqkv, dtable.to(table.dtype)


def _pairs_of(index: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Pairs of tokens in the order of the rows of the table that they share, and where those of each row start; int32."""
    version = None if index.is_inference() else index._version
    known = _pairs.get(index)
    if version is not None and known is not None and known[:2] == (version, rows):
        return known[2:]
    ordered, pairs = index.flatten().long().sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(rows + 1, device=index.device))
    found = pairs.int(), starts.int()
    if version is not None:
        _pairs[index] = version, rows, *found
    return found
