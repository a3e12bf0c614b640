"""GPU implementation of the directional selective scan in CUDA C++ (``kernels/cuda``, compiled on first use).

One scan is cut into chunks of tokens that run side by side; all directions share every launch, and a thread holds all
states of one channel. Forward: (1) each chunk from a zero state, (2) the carry from chunk to chunk, (3) each chunk from
the state that enters it: y. Backward: (1) the adjoint of each chunk from zero, (2) its carry, (3) per chunk the forward
recurrence again and all gradients. Between the two only the chunk states are kept.

With rounded states (``rounded.py``) y is read from rounded ones, and the adjoint of a chunk runs the recurrence forward
first: one bit per state says whether its gradient passes. Step, offset and bounds are read, and their gradients summed, on
the device.

Sums over directions, images, chunks and blocks of channels are added in a fixed order: results repeat bit for bit.
Launches go to torch's current stream, nothing waits for the device: a training step with scans can be captured.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from ..build import BuildError
from ..cuda_library import DEVICES, SIMULATED, library
from ..cuda_library import is_available as _can_compile
from ..triton_support import on_its_device
from .maps import partial, per_direction, strides, tokens

if TYPE_CHECKING:
    from ..rounding import Rounding

__all__ = ["DEVICES", "backward", "chunk_of", "forward", "is_available", "rounded_backward", "rounded_forward"]

_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_MOST_STATES = 64
_MOST_CODE = 1 << 20  # of rounded states: a quarter of a level is exact, rounding by adding 1.5 2^23 too
_MOST_WARPS = 4  # of a block; a warp has 32 channels
_MOST_NAMED = 32  # directions whose names fit into one word
_ENOUGH = (128, 2048), (64, 2048), (32, 1024)  # tokens of a chunk, and warps from which on it is chosen (measured)


class _Map(ctypes.Structure):
    """Mirror of ``struct QmMap`` in kernels/cuda/scan.h."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("image", "token", "direction"))]


class _Scan(ctypes.Structure):
    """Mirror of ``struct QmScan``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "directions", "channels", "state")),
        *((name, ctypes.c_int64) for name in ("chunk", "warps", "softplus", "device")),
        ("ways", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("order", "stream")),
        *((name, _Map) for name in ("x", "delta", "B", "C", "dy")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "bias", "sums", "states", "adjoint")),
        *((name, _Map) for name in ("y", "dx", "ddelta", "dB", "dC")),
        *((name, ctypes.c_int64) for name in ("parts", "float_y", "float_dx", "float_dbc")),
        *((name, ctypes.c_void_p) for name in ("dskip", "dbias", "dA", "dD", "ddelta_bias")),
        *((name, ctypes.c_void_p) for name in ("step", "offset", "lower", "upper")),
        *((name, ctypes.c_int64) for name in ("lowest", "highest")),
        *((name, ctypes.c_void_p) for name in ("grid_shares", "dstep", "doffset", "dlower", "dupper")),
    ]


def is_available() -> tuple[bool, str]:
    """Whether the kernels can be compiled and run here, and why (not)."""
    able, reason = _can_compile()
    if not able:
        return able, reason
    try:
        _load(16, 0, _architecture(torch.cuda.current_device() if not SIMULATED else None))
    except (BuildError, OSError, AttributeError) as error:
        return False, f"the CUDA kernels do not compile here: {error}"
    return True, reason


def _architecture(device: int | None) -> str:
    return "host" if device is None else "{}{}".format(*torch.cuda.get_device_capability(device))


def _load(states: int, element: int, architecture: str, rounded: bool = False) -> ctypes.CDLL:
    """The kernels for so many states and an element type, with a read-out that rounds the states or without."""
    macros = ("QM_STATES", states), ("QM_ELEMENT", element), *((("QM_ROUNDED", 1),) if rounded else ())
    found = library(macros, architecture)
    found.qm_scan_message.restype = ctypes.c_char_p
    found.qm_scan_struct.restype = found.qm_scan_warps.restype = ctypes.c_int64
    found.qm_scan_warps.argtypes = [ctypes.c_int64] * 3
    found.qm_scan_add_up.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 4 + [ctypes.c_void_p]
    if found.qm_scan_struct() != ctypes.sizeof(_Scan):
        raise BuildError("kernels/cuda/scan.h and ops/ss2d_scan/cuda.py describe another struct QmScan")
    return found


def chunk_of(x: torch.Tensor, A: torch.Tensor) -> int:
    """Tokens of a chunk: as many as leave enough chunks to fill a GPU, since each chunk costs memory for its states."""
    count, channels, _ = A.shape
    warps = x.shape[0] * count * -(-channels // 32) * x.shape[1] * x.shape[2]
    return next((chunk for chunk, enough in _ENOUGH if warps >= enough * chunk), 16)


def _padded(state: int) -> int:
    """States of a thread: few different numbers, so that few libraries are built."""
    return -(-state // 4) * 4 if state <= 16 else -(-state // 16) * 16


def _warps(channels: int) -> int:
    """Warps of a block, so that the channels of the last block are few short of it."""
    warps = -(-channels // 32)
    blocks = -(-warps // _MOST_WARPS)
    return -(-warps // blocks)


class _Call:
    """Arguments of the launches of one call; keeps the tensors alive whose addresses they hold."""

    def __init__(self, x, delta, A, B, C, D, delta_bias, softplus, directions, dy=None, rounding=None):
        self.count = len(directions)
        self.batch, self.height, self.width = x.shape[:3]
        self.length = self.height * self.width
        self.channels, self.state = A.shape[1:]
        if self.state > _MOST_STATES:
            raise ValueError(
                f"ss2d_scan: the CUDA kernels take a state of at most {_MOST_STATES}, got N = {self.state}; set "
                "QMAMBAIR_BACKEND=reference"
            )
        self.device = None if SIMULATED else x.device.index
        given = [t for t in (x, delta, B, C, dy) if t is not None]
        same = all(t.dtype == x.dtype for t in given) and x.dtype in _ELEMENTS
        self.dtype = x.dtype if same else torch.float32
        rounded = rounding is not None
        self.library = _load(_padded(self.state), _ELEMENTS[self.dtype], _architecture(self.device), rounded)
        self.chunk = chunk_of(x, A)
        self.chunks = -(-self.length // self.chunk)
        self.pairs = self.batch * self.count
        index = 0 if self.device is None else self.device
        self.warps = self.library.qm_scan_warps(_warps(self.channels), self.chunk, index)
        self.blocks = -(-self.channels // (32 * self.warps)) if self.warps else 0
        self.like = x
        self.kept = []
        self.s = _Scan(
            self.batch, self.height, self.width, self.count, self.channels, self.state, self.chunk, self.warps,
            int(softplus), index,
        )  # fmt: skip
        if isinstance(directions, torch.Tensor):
            self.s.order = self.keep(directions)
        elif self.count <= _MOST_NAMED:
            self.s.ways = sum(code << 2 * k for k, code in enumerate(directions))
        else:
            raise ValueError(f"ss2d_scan: the CUDA kernels take {_MOST_NAMED} named directions, got {self.count}")
        if not SIMULATED:
            self.s.stream = torch.cuda.current_stream(x.device).cuda_stream
        for name, t in (("x", x), ("delta", delta), ("B", B), ("C", C), ("dy", dy)):
            if t is not None:
                self.set_map(name, per_direction(tokens(t.detach().to(self.dtype)), self.count))
        self.s.A = self.keep(A.detach().to(torch.float32).transpose(1, 2).contiguous())
        for name, t in (("D", D), ("bias", delta_bias)):
            if t is not None:
                setattr(self.s, name, self.keep(t.detach().to(torch.float32).contiguous()))
        if rounded:
            self.set_rounding(rounding)

    def keep(self, t: torch.Tensor) -> int:
        """The address of a tensor that lives as long as this call."""
        self.kept.append(t)
        return t.data_ptr()

    def set_map(self, name: str, t: torch.Tensor) -> None:
        """A map (B, L, K, C) becomes an argument."""
        setattr(self.s, name, _Map(self.keep(t), *strides(t)))

    def set_rounding(self, rounding: Rounding) -> None:
        """The grid becomes arguments: addresses, so that nothing waits for its values."""
        if max(abs(rounding.qmin), abs(rounding.qmax)) > _MOST_CODE:
            raise ValueError(
                f"ss2d_scan: the CUDA kernels round states to codes within +-{_MOST_CODE}, got {rounding.qmin} to "
                f"{rounding.qmax}; set QMAMBAIR_BACKEND=reference"
            )
        for name, t in zip(("step", "offset", "lower", "upper"), rounding.tensors, strict=True):
            if t is not None:
                setattr(self.s, name, self.keep(t.detach().to(torch.float32)))
        self.s.lowest, self.s.highest = rounding.qmin, rounding.qmax

    def rounding_gradients(self, rounding: Rounding) -> tuple[torch.Tensor | None, ...]:
        """Where the launches leave the gradients of scale, offset, lower and upper."""
        self.s.grid_shares = self.keep(self.new(self.pairs, self.chunks, self.blocks, len(rounding.tensors)))
        grads = tuple(None if t is None else self.new(*t.shape) for t in rounding.tensors)
        for name, grad in zip(("dstep", "doffset", "dlower", "dupper"), grads, strict=True):
            if grad is not None:
                setattr(self.s, name, grad.data_ptr())
        return grads

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.like.device)

    def run(self, name: str) -> None:
        """Launch; memory that only the launches read goes back to torch's allocator, which knows the stream."""
        self.check(getattr(self.library, name)(ctypes.byref(self.s)))
        self.kept.clear()

    def added(self, parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The sum over the first dimension of contiguous float32 parts."""
        wide = dtype == torch.float32
        out = self.new(*parts.shape[1:], dtype=dtype if wide else self.dtype)
        self.check(
            self.library.qm_scan_add_up(
                parts.data_ptr(), out.data_ptr(), out.numel(), parts.shape[0], wide, self.s.device, self.s.stream
            )
        )
        return out.to(dtype)

    def check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"ss2d_scan: CUDA kernels: {self.library.qm_scan_message(status).decode()}")

    def merged(self, part: torch.Tensor, like: torch.Tensor, merge: bool) -> torch.Tensor:
        """The map (B, H, W, D), or (B, H, W, K, D) unless directions are merged, from what ``maps.partial`` gave."""
        if merge and self.count > 1:
            part = self.added(part.permute(2, 0, 1, 3), like.dtype)
        elif merge:
            part = part.squeeze(2)
        return part.unflatten(1, like.shape[1:3]).to(like.dtype)


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
    """Outputs and chunk states; arguments and results as in ``reference.forward``, chunks of :func:`chunk_of` tokens.

    Raises:
        ValueError: a state size N above 64, more than 32 named directions.
        RuntimeError: a launch failed, or sizes that the kernels refuse.
    """
    return _forward(_Call(x, delta, A, B, C, D, delta_bias, softplus, directions), x, merge, save_states)


@on_its_device
def rounded_forward(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    rounding: Rounding,
    softplus: bool,
    directions: list[int] | torch.Tensor,
    merge: bool,
    save_states: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`forward` with states that the read-out rounds (``rounded.py``).

    Raises:
        ValueError: as :func:`forward`; codes beyond 2^20.
        RuntimeError: as :func:`forward`.
    """
    call = _Call(x, delta, A, B, C, D, delta_bias, softplus, directions, rounding=rounding)
    return _forward(call, x, merge, save_states)


def _forward(call: _Call, x: torch.Tensor, merge: bool, save_states: bool) -> tuple[torch.Tensor, torch.Tensor]:
    states = call.new(call.pairs, call.chunks, call.state, call.channels)
    call.s.states = states.data_ptr()
    call.s.sums = call.keep(call.new(call.pairs, call.chunks, call.channels))
    y = partial(x.detach().to(call.dtype), call.length, call.count, merge)
    call.set_map("y", y)
    call.s.float_y = y.dtype == torch.float32
    call.run("qm_scan_forward")
    states = states.view(call.batch, call.count, *states.shape[1:])
    return call.merged(y, x, merge), states if save_states else states[:, :, -1:].clone()


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
    call = _Call(x, delta, A, B, C, D, delta_bias, softplus, directions, dy)
    return _backward(call, x, delta, A, B, C, D, delta_bias, states)


@on_its_device
def rounded_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    states: torch.Tensor,
    rounding: Rounding,
    softplus: bool,
    directions: list[int] | torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of :func:`rounded_forward`: those of :func:`backward`, then of the rounding's scale, offset and bounds."""
    call = _Call(x, delta, A, B, C, D, delta_bias, softplus, directions, dy, rounding)
    of_rounding = call.rounding_gradients(rounding)
    grads = _backward(call, x, delta, A, B, C, D, delta_bias, states)
    pairs = zip(of_rounding, rounding.tensors, strict=True)
    return *grads, *(grad if grad is None else grad.to(t.dtype) for grad, t in pairs)


def _backward(call: _Call, x, delta, A, B, C, D, delta_bias, states) -> tuple[torch.Tensor | None, ...]:
    s, shared = call.s, x.dim() == 4
    s.states = call.keep(states.contiguous())
    s.sums = call.keep(call.new(call.pairs, call.chunks, call.channels))
    s.adjoint = call.keep(call.new(call.pairs, call.chunks, call.state, call.channels))

    dx = partial(x.detach().to(call.dtype), call.length, call.count, shared)
    s.float_dx = dx.dtype == torch.float32
    ddelta = call.new(call.batch, call.length, call.count, call.channels, dtype=call.dtype)
    whole = call.blocks == 1  # a block sees all channels: its sums over them are the results
    shape = call.batch, call.length, call.count, call.state
    db, dc = (call.new(*shape, dtype=call.dtype) if whole else call.new(call.blocks, *shape) for _ in range(2))
    s.parts, s.float_dbc = db[0].numel(), db.dtype == torch.float32
    for name, t in (("dx", dx), ("ddelta", ddelta), ("dB", db if whole else db[0]), ("dC", dc if whole else dc[0])):
        call.set_map(name, t)
    da = call.new(call.count, call.channels, call.state)
    s.dA = da.data_ptr()
    dskip = dbias = None
    if D is not None:
        dskip = call.new(call.count, call.channels)
        s.dD, s.dskip = dskip.data_ptr(), call.keep(call.new(call.pairs, call.chunks, call.channels))
    if delta_bias is not None:
        dbias = call.new(call.count, call.channels)
        s.ddelta_bias, s.dbias = dbias.data_ptr(), call.keep(call.new(call.pairs, call.chunks, call.channels))
    call.run("qm_scan_backward")

    return (
        call.merged(dx, x, shared),
        ddelta.view(delta.shape).to(delta.dtype),
        da.to(A.dtype),
        *(
            (t if whole else call.added(t, like.dtype)).view(like.shape).to(like.dtype)
            for t, like in ((db, B), (dc, C))
        ),
        None if dskip is None else dskip.to(D.dtype),
        None if dbias is None else dbias.to(delta_bias.dtype),
    )
