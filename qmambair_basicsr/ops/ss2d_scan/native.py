"""The scan on the C++ kernels of ``kernels/cpu``: float32 work on CPU tensors of any floating dtype but float64.

Signatures and meaning are those of ``reference.py``.
"""

from __future__ import annotations

import ctypes

import torch

from ..native_library import add_in_order, address, dense_last, is_available, library, threads

__all__ = ["CHUNK", "DEVICES", "backward", "forward", "is_available", "rounded_backward", "rounded_forward"]

DEVICES = ("cpu",)
CHUNK = 64
_MAX_STATE = 256
_DONE, _NO_MEMORY = 0, 1  # ``enum ScanStatus`` in kernels/cpu/scan.h
_GROUP = 64  # channels that share one partial sum of dB and dC

_Strides = ctypes.c_int64 * 4


class _ScanArgs(ctypes.Structure):
    """Mirror of ``struct ScanArgs`` in kernels/cpu/scan.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "directions", "channels", "state")),
        *(
            (name, ctypes.c_int64)
            for name in ("chunk", "groups", "softplus", "save_states", "merge", "threads", "trusted")
        ),
        *((name, ctypes.c_void_p) for name in ("order", "path", "x", "delta", "B", "C", "dy")),
        *((f"{name}_stride", _Strides) for name in ("x", "delta", "B", "C", "dy")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "bias", "y", "dx", "states")),
        *((name, ctypes.c_void_p) for name in ("ddelta", "dB", "dC", "dA", "dD", "dbias", "grid", "dgrid")),
    ]


def _strides(t: torch.Tensor) -> ctypes.Array:
    """Strides of batch, row, column, direction; a map shared by the directions has 0 for the last."""
    return _Strides(*t.stride()[:3], t.stride(3) if t.dim() == 5 else 0)


def _dense(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.to(torch.float32).contiguous()


class _Call:
    """The arguments of one call, and the tensors whose addresses they hold."""

    def __init__(self, x, delta, A, B, C, D, delta_bias, softplus, directions, dy=None, rounding=None):
        if A.shape[-1] > _MAX_STATE:
            raise ValueError(f"ss2d_scan: the CPU kernels take at most {_MAX_STATE} states, got N = {A.shape[-1]}")
        maps = {"x": x, "delta": delta, "B": B, "C": C, "dy": dy}
        self.maps = {name: dense_last(t) for name, t in maps.items() if t is not None}
        self.A, self.D, self.bias = _dense(A.transpose(1, 2)), _dense(D), _dense(delta_bias)
        explicit = isinstance(directions, torch.Tensor)
        self.order = directions if explicit else (ctypes.c_int64 * len(directions))(*directions)
        self.grid = None if rounding is None else rounding.numbers()
        self.shape = (*x.shape[:3], len(directions), x.shape[-1], A.shape[-1])
        names = ("batch", "height", "width", "directions", "channels", "state")
        self.args = _ScanArgs(
            **dict(zip(names, self.shape, strict=True)),
            chunk=CHUNK,
            groups=max(1, x.shape[-1] // _GROUP),
            softplus=softplus,
            threads=threads(),
            trusted=explicit,  # ``orders.verified`` has looked at it, and nobody writes to it
            order=None if explicit else ctypes.addressof(self.order),
            path=address(self.order) if explicit else None,
            A=address(self.A),
            D=address(self.D),
            bias=address(self.bias),
            grid=None if rounding is None else ctypes.addressof(self.grid),
            **{name: address(t) for name, t in self.maps.items()},
            **{f"{name}_stride": _strides(t) for name, t in self.maps.items()},
        )

    def output_map(self, like: torch.Tensor, merge: bool, tasks: int) -> torch.Tensor:
        """Memory for a map: one per direction where they are kept apart or where merging would leave threads idle."""
        batch, height, width, count, channels, _ = self.shape
        self.args.merge = merge and (count == 1 or batch * tasks >= 2 * self.args.threads)
        shape = (batch, height, width, channels) if self.args.merge else (batch, height, width, count, channels)
        return like.new_empty(shape, dtype=torch.float32)

    def run(self, name: str) -> None:
        """Call a C function."""
        symbol = getattr(library(), name)
        symbol.restype = ctypes.c_int64
        status = symbol(ctypes.byref(self.args))
        if status == _NO_MEMORY:
            raise MemoryError("ss2d_scan: no memory for the scratch of the CPU kernels")
        if status != _DONE:
            raise ValueError("ss2d_scan: the CPU kernels refuse an order that is no permutation of the pixels")


def _finished(t: torch.Tensor, merge: bool, dtype: torch.dtype) -> torch.Tensor:
    """The map with its directions summed in their order, if they have to be."""
    return (add_in_order(t.unbind(3)) if merge and t.dim() == 5 else t).to(dtype)


def forward(x, delta, A, B, C, D, delta_bias, softplus, directions, merge, save_states):
    """See ``reference.forward``."""
    return rounded_forward(x, delta, A, B, C, D, delta_bias, None, softplus, directions, merge, save_states)


def rounded_forward(x, delta, A, B, C, D, delta_bias, rounding, softplus, directions, merge, save_states):
    """See ``rounded.py``; without a rounding, :func:`forward`."""
    call = _Call(x, delta, A, B, C, D, delta_bias, softplus, directions, rounding=rounding)
    batch, height, width, count, channels, state = call.shape
    chunks = -(-height * width // CHUNK) if save_states else 1
    y = call.output_map(x, merge, tasks=-(-channels // 16))
    states = y.new_empty(batch, count, chunks, state, channels)
    call.args.save_states, call.args.y, call.args.states = save_states, y.data_ptr(), states.data_ptr()
    call.run("qm_scan_forward")
    return _finished(y, merge, x.dtype), states


def backward(dy, x, delta, A, B, C, D, delta_bias, states, softplus, directions):
    """See ``reference.backward``."""
    return rounded_backward(dy, x, delta, A, B, C, D, delta_bias, states, None, softplus, directions)[:7]


def rounded_backward(dy, x, delta, A, B, C, D, delta_bias, states, rounding, softplus, directions):
    """See ``rounded.py``; without a rounding, :func:`backward` and four times None."""
    call = _Call(x, delta, A, B, C, D, delta_bias, softplus, directions, dy, rounding)
    batch, height, width, count, channels, state = call.shape
    args, groups = call.args, call.args.groups
    shared = x.dim() == 4
    dx = call.output_map(x, shared, tasks=groups)
    ddelta = dx.new_empty(batch, height, width, count, channels)
    dB, dC = (dx.new_empty(groups, batch, height, width, count, state) for _ in range(2))
    dA = dx.new_empty(batch, count, state, channels)
    dD, dbias = (None if t is None else dx.new_empty(batch, count, channels) for t in (D, delta_bias))
    states = _dense(states)
    args.save_states, args.states, args.dx = 1, states.data_ptr(), dx.data_ptr()
    for name, t in (("ddelta", ddelta), ("dB", dB), ("dC", dC), ("dA", dA), ("dD", dD), ("dbias", dbias)):
        setattr(args, name, address(t))
    to_grid = None if rounding is None else dx.new_empty(groups, batch, count, 4, dtype=torch.float64)
    args.dgrid = address(to_grid)
    call.run("qm_scan_backward")
    return (
        _finished(dx, shared, x.dtype),
        ddelta.to(delta.dtype),
        add_in_order(dA).transpose(1, 2).contiguous().to(A.dtype),
        add_in_order(dB).to(B.dtype),
        add_in_order(dC).to(C.dtype),
        None if D is None else add_in_order(dD).to(D.dtype),
        None if delta_bias is None else add_in_order(dbias).to(delta_bias.dtype),
        *((None,) * 4 if rounding is None else rounding.gradients(to_grid.flatten(0, 2))),
    )
