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
# queries and keys of a tile, by the channels of a head (16, 32, 64): as many as stay in registers on sm_80 and sm_90
TILES = {
    "attention_forward": {16: (64, 64), 32: (64, 64), 64: (32, 32)},
    "query_gradient": {16: (64, 32), 32: (64, 32), 64: (32, 32)},
    "key_gradient": {16: (32, 32), 32: (32, 16), 64: (16, 32)},
    "bias_gradient": {16: (64, 32), 32: (64, 32), 64: (32, 16)},
}
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
        self.dim = max(16, next_power_of_2(self.channels // self.heads))
        self.constants = {
            "MASKED": MASKED,
            "HAS_REGIONS": regions is not None,
            "T": self.tokens,
            "D": self.dim,
            "PRECISION": _precision(),
            "num_warps": 4,
        }
        sizes = self.length, self.windows, self.channels, self.channels // self.heads
        self.numbers = scale, self.qkv.stride(0), self.qkv.stride(1), *sizes

    def tile(self, kernel: str) -> tuple[int, int]:
        """Queries and keys of a tile."""
        queries, keys = TILES[kernel][self.dim]
        return min(queries, self.tokens), min(keys, self.tokens)

    def launch(self, kernel: str, blocks: int, *arguments) -> None:
        """Run a kernel: so many programs for each head."""
        queries, keys = self.tile(kernel)
        getattr(_kernels(), kernel)[(blocks, self.heads)](*arguments, **self.constants, BQ=queries, BK=keys)


@on_its_device
def forward(qkv, table, index, order, regions, scale):
    """Output (B, L, C), and largest logits and inverse sums (B, windows, heads, 2, T) for the backward pass."""
    check_values(table, index, order)
    call = _Call(qkv, table, index, order, regions, scale)
    out = qkv.new_empty(call.batch, call.length, call.channels)
    norms = qkv.new_empty((call.batch, call.windows, call.heads, 2, call.tokens), dtype=torch.float32)
    blocks = call.batch * call.windows * (call.tokens // call.tile("attention_forward")[0])
    call.launch("attention_forward", blocks, *call.tensors, out, norms, *call.numbers)
    return out, norms


@on_its_device
def backward(dout, qkv, table, index, order, regions, out, norms, scale):
    """Gradients of qkv and table."""
    check_values(table, index, order)  # remembered from the forward pass, but torch.ops leads here without one
    call = _Call(qkv, table, index, order, regions, scale)
    total, tokens = call.batch * call.windows, call.tokens
    queries, keys = call.tile("bias_gradient")
    tiles = (tokens // queries) * (tokens // keys)
    group = -(-total // max(1, _PROGRAMS // (tiles * call.heads)))
    groups = -(-total // group)
    dqkv = qkv.new_empty(qkv.shape)
    dots = torch.empty(total * call.heads * tokens, device=qkv.device)
    dbias = torch.empty(groups, call.heads, tokens**2, device=qkv.device)
    dtable = torch.empty(table.shape, device=qkv.device)
    norms = norms.contiguous()
    given = dout.contiguous(), *call.tensors
    blocks = total * (tokens // call.tile("query_gradient")[0])
    call.launch("query_gradient", blocks, *given, out.contiguous(), norms, dqkv, dots, *call.numbers)
    blocks = total * (tokens // call.tile("key_gradient")[1])
    call.launch("key_gradient", blocks, *given, norms, dqkv, dots, *call.numbers)
    call.launch("bias_gradient", groups * tiles, *given, norms, dbias, dots, *call.numbers, total, group)
    pairs, starts = _pairs_of(index, table.shape[0])
    _kernels().table_gradient[(table.shape[0], call.heads)](
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
