"""Integer layers on the C++ kernels of ``kernels/cpu``, for callers that keep rows of codes: ``native.py`` and runtimes.

Maps are rows: float32 or code tensors (M, C) with M = batch * height * width pixels and contiguous channels, any number
of elements from row to row, so that a slice of a wider row can be read and written. A grid is a float32 tensor (4,), or
(G, 4) where G equal parts of the rows (images) have grids of their own: step, shift, lowest and highest code;
``code = clamp(round((x + shift) / step), lowest, highest)``, halves to the even code. A code q is stored as the byte
q + zero with zero = 2^(bits - 1).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..native_library import address, function, library, threads
from ..prepared import Prepared

ACTIVATIONS = ("none", "silu", "gelu")
MOST_TAPS = 15
"""Largest kernel of a convolution that the kernels take, each way."""

_KINDS = {torch.float32: 0, torch.uint8: 1, torch.int8: 2}
_CODE_OUTPUTS = 2


class _Rows(ctypes.Structure):
    """Mirror of ``struct IntegerRows`` in kernels/cpu/integer.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("kind", "stride")),
        ("grid", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("grids", "zero")),
    ]


class _Finish(ctypes.Structure):
    """Mirror of ``struct IntegerFinish``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("scale", "factor", "sums", "bias")),
        *((name, ctypes.c_int64) for name in ("follows", "activation")),
        ("residual", ctypes.c_void_p),
        ("residual_stride", ctypes.c_int64),
        ("residual_scale", ctypes.c_void_p),
        ("residual_scales", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
        ("codes", ctypes.c_void_p * _CODE_OUTPUTS),
        ("codes_stride", ctypes.c_int64 * _CODE_OUTPUTS),
        ("codes_grid", ctypes.c_void_p * _CODE_OUTPUTS),
        ("codes_zero", ctypes.c_int64 * _CODE_OUTPUTS),
    ]


class _Args(ctypes.Structure):
    """Mirror of ``struct IntegerArgs``."""

    _fields_ = [
        ("x", _Rows),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
        *((name, ctypes.c_int64) for name in ("out_height", "out_width", "out")),
        *((name, ctypes.c_int64 * 2) for name in ("kernel", "stride", "padding", "dilation")),
        *((name, ctypes.c_int64) for name in ("groups", "threads")),
        ("blob", ctypes.c_void_p),
        ("blob_bytes", ctypes.c_int64),
        ("finish", _Finish),
    ]


class _ProductArgs(ctypes.Structure):
    """Mirror of ``struct IntegerProductArgs``."""

    _fields_ = [
        ("sizes", ctypes.c_int64 * 2),
        *((name, ctypes.c_int64) for name in ("rows", "terms", "columns", "threads")),
        *((name, _Rows) for name in ("a", "b")),
        *((name, ctypes.c_int64 * 2) for name in ("a_strides", "b_strides")),
        *((name, ctypes.c_int64) for name in ("b_row", "b_column", "shifted")),
        ("out", ctypes.c_void_p),
        ("out_strides", ctypes.c_int64 * 2),
        ("out_stride", ctypes.c_int64),
    ]


class Rows(NamedTuple):
    """Activations on a grid.

    Attributes:
        data: (M, C) float32, quantized as it is read; uint8 codes plus ``zero``; or int8 codes.
        grid: (4,) or (G, 4) float32.
        zero: 2^(bits - 1), 1 to 128.
    """

    data: Tensor
    grid: Tensor
    zero: int


class CodeRows(NamedTuple):
    """Codes of the next grid that a layer writes.

    Attributes:
        data: (M, O) uint8, filled.
        grid: (4,) float32.
        zero: 2^(bits - 1).
    """

    data: Tensor
    grid: Tensor
    zero: int


@dataclass(frozen=True)
class PackedWeight:
    """Weights in the order in which the kernels read them, see :func:`pack`."""

    blob: Tensor
    groups: int
    out: int
    inputs: int
    kernel: tuple[int, int]
    zero: int
    ones: bool


def pack(codes: Tensor, zero: int, *, groups: int = 1, ones: bool = False) -> PackedWeight:
    """Packs the codes of a layer once.

    Args:
        codes: int8 (G * O, I) of a linear layer, (G * O, I, kH, kW) of a convolution.
        zero: that of the activations that the layer takes.
        groups: G; with as many groups as channels and O = 1 the layer is packed for depthwise kernels.
        ones: the last of every O output channels has the weights 1 and is no output: see ``lowering/layers.py``.

    Raises:
        ValueError: sizes that the kernels do not take, or sums that int32 does not hold.
    """
    codes = codes.detach().to(torch.int8).contiguous()
    rows, inputs, *kernel = codes.shape
    kernel = tuple(kernel) or (1, 1)
    out, taps = rows // groups, kernel[0] * kernel[1]
    depthwise = inputs == 1 and groups > 1 and out == 1 + ones
    sizes = (groups, out, inputs, taps, zero, int(ones), int(depthwise))
    measure = function("qm_integer_packed_bytes", "i" * 7, status=False)
    size = measure(*sizes) if rows == out * groups else 0
    if not size:
        raise ValueError(
            f"no integer kernels for weights {tuple(codes.shape)} in {groups} groups, zero {zero}, ones {ones}"
        )
    blob = torch.empty(size, dtype=torch.uint8)
    function("qm_integer_pack", "p" + "i" * 7 + "pi")(address(codes), *sizes, address(blob), size)
    return PackedWeight(blob, groups, (out - ones) * groups, inputs * groups, kernel, zero, ones)


class IntegerLayer:
    """A linear layer or a convolution on packed weights.

    ``y = sum * (step * scale) [- ones * factor] [- shift * sums] [+ bias]``, then the activation, then the residual; a
    convolution adds the bias in front of the term of the shift. All terms are float32, kept as they are given.

    Args:
        weight: packed.
        scale: one for all, or (G * (O + 1)) with ``weight.ones`` and (G * O) without.
        bias: (G * O,) or None.
        sums: sums of the weights over the input channels, (G * O,) of a linear layer, (G * O, kH, kW) of a convolution:
            what the shift of the input is multiplied by; at the border of a map the taps inside it count. None: no shift.
        follows: the shift is that of the grid of the input; otherwise ``sums`` hold it already.
        factor: (G * O,), with ``weight.ones``.
        activation: one of ``ACTIVATIONS``; gelu is that of the error function.
        residual_scale: what a residual is multiplied by, one for all or (G * O,); None for 1.
        stride, padding, dilation: of a convolution.
    """

    def __init__(
        self,
        weight: PackedWeight,
        scale: Tensor,
        *,
        bias: Tensor | None = None,
        sums: Tensor | None = None,
        follows: bool = False,
        factor: Tensor | None = None,
        activation: str = "none",
        residual_scale: Tensor | None = None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ):
        self.weight, self.geometry = weight, (tuple(stride), tuple(padding), tuple(dilation))
        plain = self.geometry == ((1, 1), (0, 0), (1, 1))
        self.is_linear = weight.kernel == (1, 1) and weight.groups == 1 and plain
        self._name = "qm_integer_linear" if self.is_linear else "qm_integer_conv"
        scales = weight.out + weight.groups * weight.ones
        taps = weight.kernel[0] * weight.kernel[1]
        if sums is not None:
            sums = sums.reshape(weight.out, taps).t()
        self._kept = {
            "scale": _terms("scale", scale.expand(scales) if scale.numel() == 1 else scale, scales),
            "bias": _terms("bias", bias, weight.out),
            "sums": _terms("sums", sums, taps * weight.out),
            "factor": _terms("factor", factor, weight.out),
            "residual_scale": _terms("residual_scale", residual_scale, weight.out, 1),
        }
        if weight.ones and factor is None:
            raise ValueError("weights with a channel of ones need their factor")
        args = self._args = _Args(channels=weight.inputs, out=weight.out, groups=weight.groups)
        for name, values in zip(
            ("kernel", "stride", "padding", "dilation"), (weight.kernel, *self.geometry), strict=True
        ):
            setattr(args, name, (ctypes.c_int64 * 2)(*values))
        args.blob, args.blob_bytes = address(weight.blob), weight.blob.numel()
        for name, tensor in self._kept.items():
            setattr(args.finish, name, address(tensor))
        args.finish.residual_scales = 0 if residual_scale is None else residual_scale.numel()
        args.finish.follows, args.finish.activation = int(follows), ACTIVATIONS.index(activation)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for a map of the input."""
        stride, padding, dilation = self.geometry
        room = (
            n + 2 * p - d * (k - 1) - 1
            for n, p, d, k in zip((height, width), padding, dilation, self.weight.kernel, strict=True)
        )
        return tuple(r // s + 1 for r, s in zip(room, stride, strict=True))

    def __call__(
        self,
        x: Rows,
        shape: tuple[int, int, int] | None = None,
        *,
        out: Tensor | None = None,
        codes: Sequence[CodeRows] = (),
        residual: Tensor | None = None,
    ) -> Tensor | None:
        """The layer.

        Args:
            x: (batch * height * width, I).
            shape: batch, height and width; a linear layer takes any number of rows without.
            out: (rows, O) float32, filled; made where neither it nor ``codes`` is given.
            codes: up to two tensors of codes to fill.
            residual: (rows, O) float32; may be ``out``.

        Returns:
            ``out``.

        Raises:
            ValueError: a tensor of another kind or size, or sizes that the kernels refuse.
        """
        if out is None and not codes:
            out = torch.empty(self._rows(shape or (1, 1, x.data.shape[0])), self.weight.out)
        self.prepared(x, shape, out=out, codes=codes, residual=residual)()
        return out

    def _rows(self, shape: tuple[int, int, int]) -> int:
        height, width = shape[1:] if self.is_linear else self.size(*shape[1:])
        return shape[0] * height * width

    def prepared(
        self,
        x: Rows,
        shape: tuple[int, int, int] | None = None,
        *,
        out: Tensor | None = None,
        codes: Sequence[CodeRows] = (),
        residual: Tensor | None = None,
    ) -> Prepared:
        """The layer with its arguments, for tensors that are written anew before each call; see :meth:`__call__`."""
        args = _Args.from_buffer_copy(self._args)  # a layer may run in several threads
        finish = args.finish
        batch, height, width = shape or (1, 1, x.data.shape[0])
        args.batch, args.height, args.width = batch, height, width
        args.out_height, args.out_width = (height, width) if self.is_linear else self.size(height, width)
        rows = batch * args.out_height * args.out_width
        set_rows(args.x, x, self.weight.inputs, batch * height * width, self.weight.zero)
        finish.out, finish.out_stride = _matrix("out", out, torch.float32, rows, self.weight.out)
        finish.residual, finish.residual_stride = _matrix("residual", residual, torch.float32, rows, self.weight.out)
        for i in range(_CODE_OUTPUTS):
            if i >= len(codes):
                finish.codes[i] = None
                continue
            data, grid, zero = codes[i]
            finish.codes[i], finish.codes_stride[i] = _matrix("codes", data, torch.uint8, rows, self.weight.out)
            finish.codes_grid[i], finish.codes_zero[i] = _grid(grid, 1), zero
        args.threads = threads()
        return Prepared(self._name, args, (self, x, out, codes, residual))


def product(
    a: Rows,
    b: Rows,
    *,
    shifted: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Batched product of two activations, as in attention: ``a`` (n0, n1, M, K) times ``b`` (n0, n1, K, N).

    Args:
        a: ``data`` with contiguous terms (the last dimension), any other strides; one grid.
        b: any strides (``keys.transpose(-1, -2)`` costs nothing); one grid.
        shifted: the product of the values; False leaves the shifts out of it (``sums * step_a * step_b``).
        out: (n0, n1, M, N) float32 with contiguous last dimension, filled; made if None.
    """
    (n0, n1, m, k), (b0, b1, terms, n) = a.data.shape, b.data.shape
    if (n0, n1, k) != (b0, b1, terms) or (a.data.stride(-1) != 1 and k > 1):
        raise ValueError(f"product: {tuple(a.data.shape)} (strides {a.data.stride()}) times {tuple(b.data.shape)}")
    out = torch.empty(n0, n1, m, n) if out is None else out
    if out.shape != (n0, n1, m, n) or out.dtype != torch.float32 or (out.stride(-1) != 1 and n > 1):
        raise ValueError(f"product: out must be float32 {(n0, n1, m, n)} with contiguous rows, got {tuple(out.shape)}")
    args = _ProductArgs(rows=m, terms=k, columns=n, threads=threads(), shifted=int(shifted))
    for rows, side in ((args.a, a), (args.b, b)):
        rows.data, rows.kind, rows.grid = address(side.data), _KINDS[side.data.dtype], _grid(side.grid, 1)
        rows.grids, rows.zero = 1, side.zero
    args.a.stride, args.b_row, args.b_column = a.data.stride(2), b.data.stride(2), b.data.stride(3)
    pair = ctypes.c_int64 * 2
    args.sizes, args.a_strides, args.b_strides = pair(n0, n1), pair(*a.data.stride()[:2]), pair(*b.data.stride()[:2])
    args.out, args.out_strides, args.out_stride = address(out), pair(*out.stride()[:2]), max(out.stride(2), n)
    function("qm_integer_product", "p")(ctypes.addressof(args))
    return out


def quantize(x: Tensor, grid: Tensor, zero: int, out: Tensor | None = None, signed: bool = False) -> Tensor:
    """Codes of a dense float32 tensor on one grid: uint8 with ``zero`` added, or int8.

    Args:
        x: any shape, elements without gaps in any order.
        grid: (4,) float32.
        zero: 2^(bits - 1).
        out: dense like x, filled.
        signed: int8 codes without ``zero``.
    """
    out = torch.empty_like(x, dtype=torch.int8 if signed else torch.uint8) if out is None else out
    call = function("qm_integer_quantize", "ppipiii")
    call(address(x), address(out), x.numel(), _grid(grid, 1), zero, int(signed), threads())
    return out


def isa() -> str:
    """The instruction set that the integer kernels run with."""
    symbol = library().qm_integer_isa
    symbol.restype = ctypes.c_char_p
    return symbol().decode()


def set_rows(rows: _Rows, x: Rows, columns: int, count: int, zero: int) -> None:
    """Fill in the struct of an input, checked."""
    if x.data.dtype not in _KINDS or x.zero != zero:
        raise ValueError(f"rows must be float32, uint8 or int8 with zero {zero}, got {x.data.dtype} with zero {x.zero}")
    rows.data, rows.stride = _matrix("x", x.data, x.data.dtype, count, columns)
    rows.kind, rows.zero = _KINDS[x.data.dtype], zero
    rows.grids = x.grid.numel() // 4
    rows.grid = _grid(x.grid, rows.grids)


def _matrix(name: str, t: Tensor | None, dtype: torch.dtype, rows: int, columns: int) -> tuple[int | None, int]:
    """Address and elements from row to row of a matrix."""
    if t is None:
        return None, 0
    if t.dtype != dtype or t.shape != (rows, columns) or (t.stride(1) != 1 and columns > 1):
        raise ValueError(
            f"{name} must be {dtype} ({rows}, {columns}) with contiguous channels, got {t.dtype} {tuple(t.shape)} "
            f"with strides {t.stride()}"
        )
    return address(t), t.stride(0) if rows > 1 else columns


def _grid(t: Tensor, grids: int) -> int:
    if t.dtype != torch.float32 or t.numel() != 4 * grids or not t.is_contiguous():
        raise ValueError(f"a grid must be float32 ({grids}, 4) and contiguous, got {t.dtype} {tuple(t.shape)}")
    return address(t)


def _terms(name: str, t: Tensor | None, *sizes: int) -> Tensor | None:
    if t is None:
        return None
    if t.numel() not in sizes:
        raise ValueError(f"{name} has {t.numel()} values, the layer needs {' or '.join(map(str, sizes))}")
    return t.detach().to(torch.float32).contiguous().flatten().clone()
