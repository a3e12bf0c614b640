"""Window attention on the C++ kernels of ``kernels/cpu``: float32 tensors on the CPU, T a multiple of 16."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..native_library import add_in_order, address, is_available, library, threads
from . import MASKED, check_values

__all__ = [
    "DEVICES",
    "accepts",
    "backward",
    "forward",
    "forward_into",
    "is_available",
    "rounded_backward",
    "rounded_forward",
]

DEVICES = ("cpu",)
_GROUP = 16  # windows that share one partial sum of the table's gradient
_MAX_TOKENS, _MAX_DIM = 1024, 128
_NO_MEMORY = 1  # of enum AttentionStatus in kernels/cpu/attention.h


class _Args(ctypes.Structure):
    """Mirror of ``struct AttentionArgs`` in kernels/cpu/attention.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "windows", "tokens", "heads", "dim")),
        *((name, ctypes.c_int64) for name in ("entries", "groups", "image_stride", "token_stride", "threads")),
        *((name, ctypes.c_float) for name in ("scale", "masked")),
        *((name, ctypes.c_void_p) for name in ("qkv", "table", "index", "order", "regions")),
        *((name, ctypes.c_void_p) for name in ("out", "norms", "dout", "dqkv", "dtable", "grid", "dgrid")),
    ]


def accepts(qkv: Tensor, tokens: int, heads: int) -> bool:
    """Whether the kernels take an input; see ``is_fused``."""
    dim = qkv.shape[-1] // 3 // heads
    fits = tokens % 16 == 0 and tokens <= _MAX_TOKENS and 0 < dim <= _MAX_DIM
    return qkv.dtype == torch.float32 and fits and qkv.numel() > 0


class _Call:
    """The arguments of one call, and the tensors whose addresses they hold."""

    def __init__(self, qkv, table, index, order, regions, scale, rounding=None):
        batch, _, channels = qkv.shape
        windows, tokens = order.shape
        self.tensors = {
            "qkv": qkv if qkv.stride(-1) == 1 else qkv.contiguous(),
            "table": table.to(torch.float32).contiguous(),
            "index": index.to(
                torch.int64
            ).contiguous(),  # values are checked in C++: at the speed of memory, every time
            "order": order.to(torch.int64).contiguous(),
        }
        if regions is not None:
            self.tensors["regions"] = regions.to(torch.int32).contiguous()
        heads = table.shape[1]
        self.grid = None if rounding is None else rounding.numbers()
        self.args = _Args(
            grid=None if rounding is None else ctypes.addressof(self.grid),
            batch=batch,
            windows=windows,
            tokens=tokens,
            heads=heads,
            dim=channels // 3 // heads,
            entries=table.shape[0],
            groups=-(-batch * windows // _GROUP),
            image_stride=self.tensors["qkv"].stride(0),
            token_stride=self.tensors["qkv"].stride(1),
            threads=threads(),
            scale=scale,
            masked=MASKED,
            **{name: address(t) for name, t in self.tensors.items()},
        )

    def run(self, name: str, **tensors: Tensor) -> None:
        """Call a C function with more tensors."""
        for field, tensor in tensors.items():
            setattr(self.args, field, address(tensor))
        symbol = getattr(library(), name)
        symbol.restype = ctypes.c_int64
        status = symbol(ctypes.byref(self.args))
        if status == _NO_MEMORY:
            raise MemoryError("window_attention: no memory for the scratch of the CPU kernels")
        if status:
            check_values(self.tensors["table"], self.tensors["index"], self.tensors["order"])
            raise ValueError("window_attention: the CPU kernels refuse these sizes")


def forward_into(out, qkv, table, index, order, regions, scale):
    """The output into ``out``, contiguous float32 (B, L, C), and nothing for a backward pass."""
    _Call(qkv, table, index, order, regions, scale).run("qm_attention_forward", out=out)


def forward(qkv, table, index, order, regions, scale):
    """Output (B, L, C), and largest logits and inverse sums (B, windows, heads, 2, T) for the backward pass."""
    return rounded_forward(qkv, table, index, order, regions, scale, None)


def rounded_forward(qkv, table, index, order, regions, scale, rounding):
    """:func:`forward` with the probabilities rounded, where there is a rounding."""
    call = _Call(qkv, table, index, order, regions, scale, rounding)
    batch, length, channels = qkv.shape
    out = qkv.new_empty(batch, length, channels // 3)
    norms = qkv.new_empty(batch, order.shape[0], table.shape[1], 2, order.shape[1])
    call.run("qm_attention_forward", out=out, norms=norms)
    return out, norms


def backward(dout, qkv, table, index, order, regions, out, norms, scale):
    """Gradients of qkv and table."""
    call = _Call(qkv, table, index, order, regions, scale)
    return _gradients(call, table.dtype, dout, norms, out=out.contiguous())


def rounded_backward(dout, qkv, table, index, order, regions, norms, scale, rounding):
    """Gradients of qkv and table, and of scale, offset, lower and upper of the rounding."""
    call = _Call(qkv, table, index, order, regions, scale, rounding)
    dgrid = qkv.new_empty(call.args.groups, table.shape[1], 4, dtype=torch.float64)
    grads = _gradients(
        call, table.dtype, dout, norms, out=dout.contiguous(), dgrid=dgrid
    )  # the output itself is not read
    return *grads, *rounding.gradients(dgrid.flatten(0, 1))


def _gradients(call: _Call, kind: torch.dtype, dout: Tensor, norms: Tensor, **tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Of qkv and table (as ``kind``), by the C function."""
    qkv, table = call.tensors["qkv"], call.tensors["table"]
    dqkv = qkv.new_empty(qkv.shape)
    dtable = qkv.new_empty(call.args.groups, table.shape[1], table.shape[0])
    tensors |= {"dout": dout.contiguous(), "norms": norms.contiguous(), "dqkv": dqkv, "dtable": dtable}
    call.run("qm_attention_backward", **tensors)
    return dqkv, add_in_order(dtable).t().contiguous().to(kind)
