"""Quantized layers in the form that ONNX runtimes turn into integer kernels.

With integer codes q and p of activation and weight, y = sum (s_a q - o_a)(s_w p - o_w) + bias. Runtimes know only
symmetric grids, s q and s p, so the offsets are moved out of the product, exactly:

* o_w: one more output channel whose weights are all the code 1 gives sum(s_w s_a q) in the same integer kernel; the
  other channels subtract zero_w = o_w / s_w times it.
* o_a: sum(o_a w) is part of the bias; where zero padding surrounds the map the sum runs over fewer pixels at the border
  and is the convolution of a map of ones.

Activations: Add(offset) -> Clip -> QuantizeLinear(int8, zero point 0) -> DequantizeLinear. Weights: int8 codes ->
DequantizeLinear. DLS that was not frozen has a scale computed from the input and stays floating point.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...archs.ss2d import ScanParameters
from ...layers.convert import FixedGrid, FrozenCodes
from ...layers.matmul import QuantMatMul
from ...layers.quant_layers import QuantConv2d, QuantEmbedding, QuantLinear
from ...ops.dls.reference import grid as dls_grid
from ...ops.onnx_nodes import cast, onnx_node
from ...quantizers import DLS, Identity, Quantizer
from ...quantizers.affine import AffineQuantizer
from .operators import dequantize, quantize


class ExportError(ValueError):
    """A network cannot be exported as asked; the message says which part and what to do."""


class StaticGrid(nn.Module):
    """Activation on a constant grid; returns the value plus ``offset`` (see the module docstring).

    Args:
        step, offset: units of the activation.
        lowest, highest: codes.
        dtype: of the step.
    """

    def __init__(self, step: float, offset: float, lowest: float, highest: float, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.register_buffer("step", torch.tensor(step, dtype=dtype))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int8))
        # tensors, not numbers: blocks whose tensors alone differ are traced once (``units``)
        self.register_buffer("shift", torch.tensor(offset, dtype=dtype) if offset else None)
        clips = (lowest, highest) != (-128, 127)  # int8 itself
        self.register_buffer("low", torch.tensor(lowest * step, dtype=dtype) if clips else None)
        self.register_buffer("high", torch.tensor(highest * step, dtype=dtype) if clips else None)

    @property
    def offset(self) -> float:
        """The offset that is added, in units of the activation."""
        return 0.0 if self.shift is None else self.shift.item()

    def forward(self, x: Tensor) -> Tensor:
        x = cast(x, self.step.dtype)
        if self.shift is not None:
            x = x + self.shift
        if self.low is not None:
            x = onnx_node("Clip", (x, self.low, self.high), x.dtype, x.shape)
        codes = quantize(x, self.step, self.zero_point)
        return dequantize(codes, self.step, self.zero_point)


class DynamicGrid(nn.Module):
    """DLS with statistics computed in the graph, in floating point."""

    offset, shift = 0.0, None

    def __init__(self, quantizer: DLS):
        super().__init__()
        if quantizer.mode != "stable":
            raise ExportError(f"{quantizer.site.label}: DLS in official mode needs --dls frozen")
        self.per_sample, self.cap_share = quantizer.stats == "sample", quantizer.cap_share
        self.qmin, self.qmax = quantizer.qmin, quantizer.qmax
        self.register_buffer("w", quantizer.w.detach())
        self.register_buffer("v", quantizer.v.detach())

    def forward(self, x: Tensor) -> Tensor:
        rows = cast(x, self.w.dtype).reshape(x.shape[0] if self.per_sample else 1, -1)
        low, high = rows.amin(1), rows.amax(1)
        mean = rows.mean(1)
        count = rows.shape[1]
        deviation = ((rows - mean[:, None]).square().sum(1) / (count - 1)).sqrt()
        stats = torch.stack((mean, torch.minimum(deviation, high - low), low, high), dim=1)
        step, offset, lowest, highest = dls_grid(stats, self.w, self.v, self.qmin, self.qmax, self.cap_share).split(
            1, 1
        )
        scaled = torch.minimum(torch.maximum((rows + offset) / step, lowest), highest)
        return ((scaled.round() - offset / step) * step).view(x.shape)


class Unquantized(nn.Module):
    """A site kept in full precision."""

    offset, shift = 0.0, None

    def forward(self, x: Tensor) -> Tensor:
        return x


class WithoutOffset(nn.Module):
    """The value itself, for operands of other operators than convolutions and linears."""

    def __init__(self, grid: nn.Module):
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return self.grid(x) if self.grid.shift is None else self.grid(x) - self.grid.shift


class Constant(nn.Module):
    """A quantized parameter that takes part in floating-point arithmetic (A, D and dt_bias of the scan)."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, x: Tensor) -> Tensor:
        return self.value.view(x.shape)


def activation(quantizer: Quantizer) -> nn.Module:
    """The exportable counterpart of an activation quantizer.

    Raises:
        ExportError: a quantizer whose codes are no affine grid, or with one grid per channel.
    """
    if isinstance(quantizer, Identity):
        return Unquantized()
    if isinstance(quantizer, FixedGrid):
        return StaticGrid(*quantizer.grid.tolist(), quantizer.grid.dtype)
    if isinstance(quantizer, DLS):
        return DynamicGrid(quantizer)
    if isinstance(quantizer, AffineQuantizer) and quantizer.groups == 1 and not quantizer.dynamic:
        with torch.no_grad():
            step, offset = quantizer.step_and_offset(torch.zeros(1))
        shift = 0.0 if offset is None else offset.item()
        return StaticGrid(step.item(), shift, quantizer.qmin, quantizer.qmax, step.dtype)
    raise ExportError(
        f"{quantizer.site.label}: {type(quantizer).__name__} activations have no symmetric Q/DQ form. "
        "Exportable: DLS, LSQ, LSQOffset and other per-tensor affine quantizers"
    )


class IntegerWeight(nn.Module):
    """int8 codes (G, O, ...) of a weight with G groups of O output channels, and the extra channel of ones.

    Args:
        frozen: codes of the weight, with one scale for all or one per output channel (leading dimension).
        groups: G.
    """

    def __init__(self, frozen: FrozenCodes, groups: int):
        super().__init__()
        codes = frozen.codes.unflatten(0, (groups, -1))  # (G, O, ...)
        shape = (groups, codes.shape[1], *[1] * (codes.ndim - 2))
        per_channel = frozen.scale.numel() > 1
        scale = frozen.scale.reshape(-1).expand(groups * codes.shape[1]).view(shape)
        zero = frozen.zero.reshape(-1).expand(groups * codes.shape[1]).view(shape)
        self.shifted = bool(zero.any())
        if self.shifted:
            codes = torch.cat((codes, torch.ones_like(codes[:, :1])), 1)
            ones = scale.mean(1, keepdim=True) if per_channel else scale[:, :1]
            self.register_buffer("factor", (zero * scale / ones).flatten(0, 1).flatten())  # (G * O,)
            scale = torch.cat((scale, ones), 1)
        self.axis = 0 if per_channel else None
        self.register_buffer("codes", codes.flatten(0, 1).contiguous())
        self.register_buffer("scale", scale.flatten().contiguous() if per_channel else scale.flatten()[0].clone())
        zero_points = torch.zeros_like(self.scale, dtype=torch.int8)
        self.register_buffer("zero_point", zero_points)

    def forward(self) -> Tensor:
        return dequantize(self.codes, self.scale, self.zero_point, self.axis)


def _exact(frozen: FrozenCodes, groups: int) -> Tensor:
    """A weight (G, O, ...) as its codes stand for."""
    return frozen.dequantize(frozen.codes, frozen.scale, frozen.zero).unflatten(0, (groups, -1))


class IntegerLinear(nn.Module):
    """A linear layer; ``frozen`` codes are (out, in)."""

    def __init__(self, frozen: FrozenCodes, act: nn.Module, bias: Tensor | None):
        super().__init__()
        self.act, self.weight = act, IntegerWeight(frozen, 1)
        value = _exact(frozen, 1)[0]
        total = torch.zeros(value.shape[0]) if bias is None else bias.detach().clone()
        self.has_bias = bias is not None or bool(act.offset)
        self.register_buffer("bias", total - act.offset * value.sum(1))

    def forward(self, x: Tensor) -> Tensor:
        return cast(self.multiply(self.act(x)), x.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """The layer without the quantizer of its input."""
        if isinstance(self.act, StaticGrid):
            y = F.linear(x, self.weight())
        else:
            # onnxruntime >= 1.25 turns a 2-D DequantizeLinear before MatMul into MatMulNBits, which rounds x to 8 bits
            y = x @ self.weight().t().unsqueeze(0)
        if self.weight.shifted:
            y = y[..., :-1] - y[..., -1:] * self.weight.factor
        return y + self.bias if self.has_bias else y


class BorderSums(nn.Module):
    """Sums of a kernel over the pixels of a map, (1, C_out, H, W): fewer at the border, where padding is.

    Args:
        sums: kernel summed over its input channels, (C_out, 1, kH, kW).
        geometry: stride, padding and dilation of the convolution.
    """

    def __init__(self, sums: Tensor, geometry: tuple):
        super().__init__()
        self.geometry = geometry
        self.register_buffer("sums", sums.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        # ones from the input, so that no runtime keeps the result, as large as a feature map, as a constant
        first = x[:1, :1]
        return F.conv2d(torch.eq(first, first).to(self.sums.dtype), self.sums, None, *self.geometry)


class IntegerConv2d(nn.Module):
    """A convolution with zero padding."""

    def __init__(self, layer: QuantConv2d, act: nn.Module):
        super().__init__()
        if layer.padding_mode != "zeros":
            raise ExportError(f"padding_mode {layer.padding_mode!r} of a quantized convolution cannot be exported")
        self.geometry = (layer.stride, layer.padding, layer.dilation)
        self.groups = layer.groups
        self.act, self.weight = act, IntegerWeight(layer.weight_quantizer, layer.groups)
        value = _exact(layer.weight_quantizer, layer.groups)
        sums = value.sum(2).flatten(0, 1).unsqueeze(1) * act.offset  # (C_out, 1, kH, kW)
        bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach().clone()
        self.border = BorderSums(sums, self.geometry) if act.offset and any(layer.padding) else None
        if self.border is None:
            bias = bias - sums.flatten(1).sum(1)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(
            self.act(x), self.weight(), None if self.weight.shifted else self.bias, *self.geometry, self.groups
        )
        if self.weight.shifted:
            y = y.unflatten(1, (self.groups, -1))  # (B, G, O + 1, H, W)
            factor = self.weight.factor.view(1, self.groups, -1, 1, 1)
            y = (y[:, :, :-1] - y[:, :, -1:] * factor).flatten(1, 2) + self.bias.view(1, -1, 1, 1)
        if self.border is not None:
            y = y - self.border(x)
        return cast(y, x.dtype)


class IntegerProjections(nn.Module):
    """``ScanParameters.project`` with integer products."""

    def __init__(self, scan: ScanParameters):
        super().__init__()
        q = scan.quantizers
        self.sizes = len(scan.directions), scan.dt_rank, scan.d_state
        k = self.sizes[0]
        joined = q["x_proj_weight"]
        self.x_proj = IntegerLinear(_flattened(joined, slice(None)), activation(q["x_proj_input"]), None)
        act = activation(q["dt_projs_input"])
        self.dt_projs = nn.ModuleList(IntegerLinear(_flattened(q["dt_projs_weight"], i), act, None) for i in range(k))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, r, n = self.sizes
        dt, b, c = self.x_proj(x).unflatten(-1, (k, r + 2 * n)).split((r, n, n), dim=-1)
        # DLS takes its statistics over all directions together, so the input is quantized before it is cut apart
        act = self.dt_projs[0].act
        if isinstance(act, DynamicGrid):
            dt = act(dt)
            parts = [p.multiply(dt[..., i, :]) for i, p in enumerate(self.dt_projs)]
        else:
            parts = [p(dt[..., i, :]) for i, p in enumerate(self.dt_projs)]
        return torch.stack(parts, dim=-2), b, c


def _flattened(frozen: FrozenCodes, part: int | slice) -> FrozenCodes:
    """Codes (K, rows, columns) of a raw projection as a matrix: all directions, or one."""

    def cut(t: Tensor) -> Tensor:
        if t.ndim == 0:
            return t
        t = t.expand(*frozen.codes.shape[:2], 1)[part]
        return t.flatten(0, -2) if isinstance(part, slice) else t

    codes = frozen.codes[part]
    codes = codes.flatten(0, 1) if isinstance(part, slice) else codes
    matrix = FrozenCodes(frozen.bits, codes, cut(frozen.scale), cut(frozen.zero), None, frozen.site)
    return matrix.to(frozen.scale.dtype)


class ScanSites(nn.Module):
    """Stands in for ``SiteQuantizers``: same call, exportable content."""

    def __init__(self, scan: ScanParameters):
        super().__init__()
        q = scan.quantizers
        sites = {}
        for site in scan.quantization_sites():
            if site.operation == "scan" and site.parameter is None:
                sites[site.part] = WithoutOffset(activation(q[site.part]))
            elif site.operation == "scan":
                parameter = getattr(scan, site.parameter)
                whole = q[site.part].bits == 32
                sites[site.part] = Unquantized() if whole else Constant(q[site.part].quantize(parameter))
        self.sites = nn.ModuleDict(sites)

    def forward(self, name: str, tensor: Tensor, source: Tensor | None = None) -> Tensor:
        del source
        return self.sites[name](tensor)


@torch.no_grad()
def make_exportable(net: nn.Module) -> nn.Module:
    """Replace the quantized layers of a network whose parameters are frozen, in place.

    Raises:
        ExportError: a quantizer has no counterpart in ONNX.
    """
    for name, module in list(net.named_modules()):
        if isinstance(module, QuantLinear | QuantConv2d | QuantEmbedding | QuantMatMul):
            parent, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(parent), leaf, _layer(module))
        elif isinstance(module, ScanParameters) and module.quantizers is not None:
            if isinstance(module.quantizers["x_proj_weight"], FrozenCodes) and isinstance(
                module.quantizers["dt_projs_weight"], FrozenCodes
            ):
                module.add_module("projections", IntegerProjections(module))
                # an instance attribute hides the method of the class
                object.__setattr__(module, "project", module.projections)
            else:
                raise ExportError(f"{name}: projections in full precision beside quantized layers cannot be exported")
            module.register_module("quantizers", ScanSites(module))
    return net


def _layer(layer: nn.Module) -> nn.Module:
    if isinstance(layer, QuantMatMul):
        return Product(activation(layer.left_quantizer), activation(layer.right_quantizer))
    if isinstance(layer, QuantEmbedding):
        return nn.Embedding.from_pretrained(layer.quantized_weight().detach())
    if not isinstance(layer.weight_quantizer, FrozenCodes):  # full-precision weight: what is left is the activation
        return FloatWeight(layer)
    act = activation(layer.act_quantizer)
    if isinstance(layer, QuantLinear):
        return IntegerLinear(layer.weight_quantizer, act, layer.bias)
    return IntegerConv2d(layer, act)


class FloatWeight(nn.Module):
    """A layer whose weight keeps full precision."""

    def __init__(self, layer: QuantLinear | QuantConv2d):
        super().__init__()
        self.layer = layer
        layer.act_quantizer = WithoutOffset(activation(layer.act_quantizer))

    def forward(self, x: Tensor) -> Tensor:
        return cast(self.layer(x), x.dtype)


class Product(QuantMatMul):
    """Product of two activations on their grids, with the offsets o_a, o_b moved out of it.

    (a - o_a)(b - o_b) = a b - o_b (sums of the rows of a) - o_a (sums of the columns of b) + K o_a o_b, K terms each.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        kind, left, right = a.dtype, self.left_quantizer.shift, self.right_quantizer.shift
        a, b = self.left_quantizer(a), self.right_quantizer(b)
        y = a @ b
        if right is not None:
            y = y - right * a.sum(-1, keepdim=True)
        if left is not None:
            sums = b.sum(-2, keepdim=True)
            y = y - left * (sums if right is None else sums - right * b.shape[-2])
        return cast(y, kind)
