"""The cases of bench_ops.py: inputs, calls, baselines and the bytes an operator has to move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from qmambair_basicsr.archs.scan_states import scan_with_states
from qmambair_basicsr.ops.dls import dls
from qmambair_basicsr.ops.lsq import lsq
from qmambair_basicsr.ops.rfa import rfa
from qmambair_basicsr.ops.ss2d_scan import DIRECTIONS, Rounding, named_order, ss2d_scan, ss2d_scan_rounded
from qmambair_basicsr.ops.ss2d_scan.naive import naive_scan


def _none(device: str) -> dict:
    return {}


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: what the table calls it.
        op: folder under ``qmambair_basicsr/ops``.
        make: ``make(full, device)`` gives the input tensors, small ones unless ``full``.
        run: ``run(inputs)`` gives the output tensors (outputs, or outputs and gradients).
        baselines: other implementations by name, ``baselines(device)``.
        loose: factor on the tolerance (a code that falls on the other side of a border moves by a whole step).
        outputs: bytes written per byte read, for the floor.
    """

    name: str
    op: str
    make: Callable
    run: Callable
    baselines: Callable = field(default=_none)
    loose: float = 1.0
    outputs: Callable = field(default=lambda inputs: 0)

    def inputs(self, device: str) -> list[torch.Tensor]:
        """The tensors of the measurement."""
        torch.manual_seed(0)
        return self.make(True, device)

    def tiny(self, device: str) -> list[torch.Tensor]:
        """Tensors of the same kind, to warm up with."""
        return self.make(False, device)

    def tolerance(self, base: float) -> float:
        """Relative deviation allowed."""
        return base * self.loose

    def bytes_moved(self, inputs: list[torch.Tensor]) -> int:
        """Bytes of inputs read once and outputs written once."""
        return sum(t.numel() * t.element_size() for t in inputs) + self.outputs(inputs)


def _bytes(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# ---- scan ----------------------------------------------------------------------------------------------

STATES = {"qmin": -8, "qmax": 7}
"""Codes of quantized states, 4 bits."""


def _scan_inputs(batch, height, width, directions, channels, state, gradient, order=None):
    def make(full: bool, device: str) -> list[torch.Tensor]:
        h, w = (height, width) if full else (4, 4)
        pixels = (batch, h, w, directions)
        tensors = [
            torch.randn(batch, h, w, channels),
            torch.randn(*pixels, channels) - 3,
            -torch.arange(1.0, state + 1).repeat(directions, channels, 1),
            torch.randn(*pixels, state),
            torch.randn(*pixels, state),
            torch.ones(directions, channels),
            torch.randn(directions, channels) * 0.5,
        ]
        tensors = [t.to(device).requires_grad_(gradient) for t in tensors]
        return tensors if order is None else [*tensors, order(h, w, directions).to(device)]

    return make


def _way(inputs: list[torch.Tensor]) -> dict:
    """Directions of a scan's inputs: an explicit order where they end with one, else the first K names."""
    return {"order": inputs[7]} if len(inputs) > 7 else {"directions": DIRECTIONS[: inputs[2].shape[0]]}


def _scan(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [ss2d_scan(*inputs[:7], **_way(inputs))]


def _scan_gradients(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    y = ss2d_scan(*inputs[:7], **_way(inputs))
    return [y, *torch.autograd.grad(y, inputs[:7], torch.ones_like(y))]


def _rounded_inputs(batch, height, width, directions, channels, state, gradient):
    """Inputs of a scan, and step and offset of the grid of its states."""
    make = _scan_inputs(batch, height, width, directions, channels, state, gradient)

    def with_grid(full: bool, device: str) -> list[torch.Tensor]:
        grid = (torch.tensor([value], device=device).requires_grad_(gradient) for value in (0.06, 0.01))
        return [*make(full, device), *grid]

    return with_grid


def _fused(inputs: list[torch.Tensor]) -> torch.Tensor:
    rounding = Rounding(*inputs[7:], **STATES)
    return ss2d_scan_rounded(*inputs[:7], rounding=rounding, directions=DIRECTIONS[: inputs[2].shape[0]])


def _opened(inputs: list[torch.Tensor]) -> torch.Tensor:
    """The states of all pixels in one tensor, quantized by themselves."""
    directions = DIRECTIONS[: inputs[2].shape[0]]
    return scan_with_states(*inputs[:7], lambda h: lsq(h, *inputs[7:], **STATES), directions=directions)


def _result(scan: Callable) -> Callable:
    def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            return [scan(inputs)]

    return run


def _with_gradients(scan: Callable) -> Callable:
    def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        y = scan(inputs)
        grads = torch.autograd.grad(y, inputs, torch.ones_like(y))
        return [y, *grads[:7]]  # those of the grid, sums of both signs over all states, have a test of their own

    return run


def _rounded_case(name: str, shape: tuple[int, ...], gradient: bool) -> Case:
    wrap = _with_gradients if gradient else _result
    make = _rounded_inputs(*shape, gradient)
    # a state that float32 rounds to the next code moves by a whole step; next to the end of the grid it has a gradient or none
    return Case(name, "ss2d_scan", make, wrap(_fused), lambda device: {"in the open": wrap(_opened)}, loose=5e3)


def _listed(height: int, width: int, count: int) -> torch.Tensor:
    """The named directions as an explicit order: the same walk, read from memory."""
    return named_order(DIRECTIONS[:count], height, width)


def _shuffled(height: int, width: int, count: int) -> torch.Tensor:
    """Pixels in random order: no line of memory is where the last one suggests."""
    return torch.stack([torch.randperm(height * width) for _ in range(count)])


def _sequences(t: torch.Tensor) -> torch.Tensor:
    """(B, H, W, K, C) -> (B, K C, L), each direction in its order: the copies that SS2D is published with."""
    parts = []
    for k in range(t.shape[3]):
        part = (t[..., k, :].transpose(1, 2) if k % 2 else t[..., k, :]).flatten(1, 2).transpose(1, 2)
        parts.append(part.flip(-1) if k >= 2 else part)
    return torch.stack(parts, 1)


def plain_recurrence(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The pure PyTorch scan as published: exp(delta A) and delta B x in full, then a loop over L."""
    with torch.no_grad():
        return [naive_scan(*inputs, directions=DIRECTIONS[: inputs[2].shape[0]])]


def mamba_scan(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """mamba_ssm's kernel on the four permuted copies; gradients when the inputs want them."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    x, delta, A, B, C, D, bias = inputs
    height, width = x.shape[1:3]
    count = A.shape[0]

    def merged(t):
        return _sequences(t).flatten(1, 2).contiguous()

    u = merged(x.unsqueeze(3).expand(-1, -1, -1, count, -1))
    b, c = _sequences(B).contiguous(), _sequences(C).contiguous()
    y = selective_scan_fn(u, merged(delta), A.flatten(0, 1), b, c, D.flatten(), None, bias.flatten(), True)
    y, total = y.unflatten(1, (count, -1)), 0
    for k in range(count):
        part = (y[:, k].flip(-1) if k >= 2 else y[:, k]).transpose(1, 2)
        part = part.unflatten(1, (width, height)).transpose(1, 2) if k % 2 else part.unflatten(1, (height, width))
        total = total + part
    if not x.requires_grad:
        return [total]
    return [total, *torch.autograd.grad(total, inputs, torch.ones_like(total))]


def _mamba(device: str) -> dict:
    try:
        import mamba_ssm  # noqa: F401
    except ImportError:
        return {}
    return {"mamba_ssm": mamba_scan} if device == "cuda" else {}


def _loop(device: str) -> dict:
    return {"recurrence": plain_recurrence, **_mamba(device)}


def _scan_case(name, shape, gradient, baselines=_mamba, order=None):
    run = _scan_gradients if gradient else _scan
    make = _scan_inputs(*shape, gradient, order)
    outputs = (lambda i: 2 * _bytes(i[0]) + _bytes(*i)) if gradient else (lambda i: _bytes(i[0]))
    return Case(name, "ss2d_scan", make, run, baselines, outputs=outputs)


# ---- quantizers ----------------------------------------------------------------------------------------


def _with_gradient(function):
    def run(inputs):
        x, *rest = inputs
        y = function(x, *rest)
        return [y, *torch.autograd.grad(y, inputs, torch.ones_like(y))]

    return run


def _settled(x: torch.Tensor, step: float, offset: float) -> torch.Tensor:
    """Values moved to a quarter of a step from their level: none is so near a border that rounding decides its code."""
    return (torch.round((x + offset) / step) + 0.5 * (torch.rand_like(x) - 0.5)) * step - offset


def _lsq_inputs(full, device):
    x = _settled(torch.randn(2, 60, 64, 128 if full else 2), 0.25, 0.125)
    return [t.to(device).requires_grad_() for t in (x, torch.tensor([0.25]), torch.tensor([0.125]))]


def _dls_inputs(full, device):
    x = torch.randn(2, 491520 if full else 64)
    w, v = torch.tensor([0.1, 0.4, 0.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0, 0.0])
    for _ in range(8):  # settle on the grid that the values themselves define
        step, offset = dls(x.double(), w.double(), v.double(), qmin=-8, qmax=7, cap_share=1 / 16)[1][:, :2].unbind(1)
        x = torch.stack([_settled(row, s, o) for row, s, o in zip(x.double(), step, offset, strict=True)]).float()
    return [t.to(device).requires_grad_() for t in (x, w, v)]


def light_weights() -> list[torch.Size]:
    """Shapes of the weights that RFA quantizes in the light x2 network (the placement of the official code)."""
    from qmambair_basicsr.archs.mambair_arch import MambaIR

    net = MambaIR(
        upscale=2, embed_dim=60, d_state=10, depths=(6, 6, 6, 6), mlp_ratio=1.2, upsampler="pixelshuffledirect"
    )
    kept = ("attention.1.weight", "attention.3.weight")
    return [
        p.shape
        for name, p in net.layers.named_parameters()
        if p.dim() > 1 and not name.endswith(("A_logs", "dt_projs_bias")) and not name.endswith(kept)
    ]


def _rfa_inputs(full, device):
    thresholds = torch.arange(-8.0, 8.0) + 0.2 * torch.rand(16)
    tensors = [torch.tensor([0.1]), torch.tensor([0.01]), thresholds]
    for shape in light_weights() if full else [(8, 8)]:
        tensors.append(torch.randn(shape) * 0.3)
    return [t.to(device).requires_grad_() for t in tensors]


def _rfa_all(inputs, function=None):
    scale, offset, thresholds, *weights = inputs
    outputs = [(function or rfa)(w, scale, offset, thresholds, qmin=-8) for w in weights]
    grads = torch.autograd.grad(outputs, inputs, [torch.ones_like(y) for y in outputs])
    return [torch.cat([y.flatten() for y in outputs]), *grads[:3], torch.cat([g.flatten() for g in grads[3:]])]


def algorithm_1(w, scale, offset, thresholds, *, qmin):
    """RFA as the paper's Algorithm 1 writes it: one ``torch.where`` over the tensor per level."""
    count = thresholds.numel()
    v = torch.clamp((w + offset) / scale, qmin, qmin + count - 1)
    level, curve = torch.full_like(v, qmin), 0.1 * (v - thresholds[0]) + qmin
    for i in range(count):
        if i:
            level = torch.where(v > (thresholds[i - 1] + thresholds[i]) / 2, qmin + i, level)
        if i < count - 1:
            piece = qmin + i + (v - thresholds[i]) / (thresholds[i + 1] - thresholds[i])
        else:
            piece = qmin + i + 0.1 * (v - thresholds[i])
        curve = torch.where(v > thresholds[i], piece, curve)
    return (curve + (level - curve).detach()) * scale - offset


def _algorithm_1(device):
    return {"Algorithm 1": lambda inputs: _rfa_all(inputs, algorithm_1)}


def _twice(inputs):
    return 2 * _bytes(*inputs)  # the output and the gradient


CASES = {
    case.name: case
    for case in (
        _scan_case("scan 1x64x64 K4 D120 N16", (1, 64, 64, 4, 120, 16), False, _loop),
        _scan_case("scan+grad 1x64x64 K4 D120 N16", (1, 64, 64, 4, 120, 16), True),
        _scan_case("scan+grad 2x32x32 K4 D72 N10", (2, 32, 32, 4, 72, 10), True),
        _scan_case("scan+grad 1x256x256 K4 D24 N16", (1, 256, 256, 4, 24, 16), True),
        _scan_case("scan+grad 1x1x4096 K1 D48 N8", (1, 1, 4096, 1, 48, 8), True),
        _rounded_case("rounded scan 1x64x64 K4 D120 N16", (1, 64, 64, 4, 120, 16), False),
        _rounded_case("rounded scan+grad 1x64x64 K4 D120 N16", (1, 64, 64, 4, 120, 16), True),
        _rounded_case("rounded scan+grad 1x1x4096 K1 D96 N8", (1, 1, 4096, 1, 96, 8), True),
        _scan_case("scan listed 1x64x64 K4 D120 N16", (1, 64, 64, 4, 120, 16), False, _none, _listed),
        _scan_case("scan shuffled 1x64x64 K4 D120 N16", (1, 64, 64, 4, 120, 16), False, _none, _shuffled),
        _scan_case("scan+grad shuffled 1x64x64 K4 D120 N16", (1, 64, 64, 4, 120, 16), True, _none, _shuffled),
        Case(
            "lsq+grad 1M",
            "lsq",
            _lsq_inputs,
            _with_gradient(lambda x, s, o: lsq(x, s, o, qmin=-8, qmax=7)),
            outputs=_twice,
        ),
        Case(
            "dls+grad 1M",
            "dls",
            _dls_inputs,
            _with_gradient(lambda x, w, v: dls(x, w, v, qmin=-8, qmax=7, cap_share=1 / 16)[0]),
            outputs=_twice,
        ),
        Case("rfa+grad light weights 4 bit", "rfa", _rfa_inputs, _rfa_all, _algorithm_1, outputs=_twice),
    )
}
