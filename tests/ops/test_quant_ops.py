"""lsq, dls and rfa: hand-derived gradients against autograd of the plain formulas, and backends against the reference."""

from __future__ import annotations

import importlib

import pytest
import torch
from devices import device_for
from instruction_sets import with_instruction_sets

from qmambair_basicsr.ops.dls import dls
from qmambair_basicsr.ops.lsq import lsq
from qmambair_basicsr.ops.rfa import rfa
from qmambair_basicsr.quantizers.ste import positive, scale_grad, snap

SIZES = [1, 63, 500, 4097]
CUDA = torch.cuda.is_available()


def _others(op):
    names = importlib.import_module(f"qmambair_basicsr.ops.{op}").BACKENDS
    return with_instruction_sets([name for name in names if name != "reference"])


def _gradients(function, tensors, upstream, device="cpu"):
    leaves = [t.detach().clone().to(device).requires_grad_() for t in tensors]
    y = function(*leaves)
    return y.detach().cpu(), [g.cpu() for g in torch.autograd.grad(y, leaves, upstream.to(device))]


def _agree(got, expected, rtol, atol):
    torch.testing.assert_close(got[0], expected[0], rtol=rtol, atol=atol)
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol * max(1.0, b.abs().max().item()))


# ---- plain formulas ------------------------------------------------------------------------------------


def round_ste(x):
    return snap(x, x.detach().round())  # gradient 1 (Bengio et al., 2013)


def plain_lsq(x, scale, offset, qmin, qmax, dim):
    shape = [1] * x.ndim
    if scale.numel() > 1:
        shape[dim] = -1
    scale, offset = scale.view(shape), offset.view(shape)
    return round_ste(torch.clamp((x + offset) / scale, qmin, qmax)) * scale - offset


def plain_dls(x, w, v, qmin, qmax, cap_share, grad_scale):
    low, high = x.amin(1), x.amax(1)
    mean, std = x.mean(1), x.std(1)
    beta = v[0] * mean + v[1] * std + v[2] * low + v[3] * high
    raw = w[0] * (mean + beta).abs() + w[1] * std + w[2] * (low + beta) + w[3] * (high + beta)
    step = scale_grad(raw.abs(), grad_scale)
    step = (step**-4 + (cap_share * (high - low)).detach() ** -4) ** -0.25
    zero = (beta / step).detach()
    lowest = torch.where(low >= 0, zero.ceil().clamp(qmin, qmax), torch.full_like(zero, qmin))
    highest = torch.where(high <= 0, zero.floor().clamp(qmin, qmax), torch.full_like(zero, qmax))
    scaled = (x + beta[:, None]) / step[:, None]
    return round_ste(torch.clamp(scaled, lowest[:, None], highest[:, None])) * step[:, None] - beta[:, None]


def plain_rfa(w, scale, offset, thresholds, qmin):
    """Algorithm 1 level by level, later intervals overwriting earlier ones."""
    count = thresholds.numel()
    v = torch.clamp((w + offset) / scale, qmin, qmin + count - 1)
    level = torch.full_like(v, qmin)
    curve = 0.1 * (v - thresholds[0]) + qmin
    for i in range(count):
        if i > 0:
            level = torch.where(v > (thresholds[i - 1] + thresholds[i]) / 2, qmin + i, level)
        if i < count - 1:
            piece = qmin + i + (v - thresholds[i]) / (thresholds[i + 1] - thresholds[i])
        else:
            piece = qmin + i + 0.1 * (v - thresholds[i])
        curve = torch.where(v > thresholds[i], piece, curve)
    return snap(curve, level.detach()) * scale - offset


# ---- hand-derived gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [None, 0, 1, -1])
@pytest.mark.parametrize(("qmin", "qmax"), [(-2, 1), (0, 7), (-128, 127), (-1, 0)])
def test_lsq_gradients(qmin, qmax, dim):
    x = torch.randn(3, 4, 5, dtype=torch.float64) * (qmax - qmin) * 0.4
    groups = 1 if dim is None else x.shape[dim]
    scale, offset = torch.rand(groups, dtype=torch.float64) + 0.5, torch.randn(groups, dtype=torch.float64)
    upstream = torch.randn_like(x)
    got = _gradients(lambda *t: lsq(*t, qmin=qmin, qmax=qmax, dim=dim), (x, scale, offset), upstream)
    expected = _gradients(lambda *t: plain_lsq(*t, qmin, qmax, dim), (x, scale, offset), upstream)
    _agree(got, expected, 1e-10, 1e-12)
    without = _gradients(lambda *t: lsq(*t, qmin=qmin, qmax=qmax, dim=dim), (x, scale), upstream)
    zero = _gradients(lambda *t: lsq(*t, torch.zeros_like(offset), qmin=qmin, qmax=qmax, dim=dim), (x, scale), upstream)
    _agree(without, zero, 0, 0)


def _dls_case(bits, kind, dtype=torch.float64, size=50):
    x = torch.randn(3, size, dtype=torch.float64)
    x = {"signed": x, "positive": x.abs() + 0.1, "negative": -x.abs() - 0.1}[kind]
    if size > 8:
        x[0, 3], x[1, 5] = x[0].max(), x[1].min()  # shared extremes
    largest = 2 ** (bits - 1) - 1
    w = torch.tensor([1.1, 3.2, -0.1, 0.05], dtype=torch.float64) / largest
    v = torch.tensor([-1.05, 0.02, 0.03, -0.01], dtype=torch.float64)
    arguments = {"qmin": -largest - 1, "qmax": largest, "cap_share": 1 / 2**bits, "grad_scale": 0.3}
    return [t.to(dtype) for t in (x, w, v)], arguments


@pytest.mark.parametrize("kind", ["signed", "positive", "negative"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dls_gradients(bits, kind):
    tensors, arguments = _dls_case(bits, kind)
    upstream = torch.randn_like(tensors[0])
    got = _gradients(lambda *t: dls(*t, **arguments)[0], tensors, upstream)
    expected = _gradients(lambda *t: plain_dls(*t, **arguments), tensors, upstream)
    _agree(got, expected, 1e-9, 1e-11)


@pytest.mark.parametrize("order", ["start", "moved", "outside", "crossed"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rfa_gradients(bits, order):
    qmin, count = -(2 ** (bits - 1)), 2**bits
    w = torch.randn(700, dtype=torch.float64) * count * 0.3
    thresholds = torch.arange(qmin, qmin + count, dtype=torch.float64)
    if order == "moved":
        thresholds += torch.rand(count, dtype=torch.float64) * 0.6
    elif order == "outside":
        thresholds = thresholds * 0.7 + 0.1
    elif order == "crossed":
        thresholds[[1, 2]] = thresholds[[2, 1]] + 0.25
    scale, offset = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    tensors, upstream = (w, scale, offset, thresholds), torch.randn_like(w)
    got = _gradients(lambda *t: rfa(*t, qmin=qmin), tensors, upstream)
    expected = _gradients(lambda *t: plain_rfa(*t, qmin), tensors, upstream)
    _agree(got, expected, 1e-9, 1e-11)


# ---- step in use ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", _others("lsq"))
@pytest.mark.parametrize("scale", [0.3, 0.05, 0.0, -0.0, -0.3])
def test_floor_and_gradient_scale_of_the_step(scale, backend, use_backend):
    """Inside the operators exactly what ``ste.py`` does around them."""
    use_backend("lsq", backend)
    thresholds = torch.arange(-2.0, 2.0) + 0.1
    tensors = (torch.randn(90), torch.tensor([scale]), torch.tensor([0.05]))
    upstream, device = torch.randn(90), device_for(backend)
    for fused, plain in (
        (
            lambda *t: lsq(*t, qmin=-2, qmax=1, floor=0.1, grad_scale=0.25),
            lambda x, s, o: lsq(x, scale_grad(positive(s, 0.1), 0.25), o, qmin=-2, qmax=1),
        ),
        (
            lambda *t: rfa(*t, thresholds.to(device), qmin=-2, floor=0.1, grad_scale=0.25),
            lambda x, s, o: rfa(x, scale_grad(positive(s, 0.1), 0.25), o, thresholds.to(device), qmin=-2),
        ),
    ):
        _agree(_gradients(fused, tensors, upstream, device), _gradients(plain, tensors, upstream, device), 0, 0)


def test_differentiating_twice_is_an_error():
    x, one, four = torch.randn(2, 40), torch.ones(1), torch.ones(4)
    for function in (
        lambda x: lsq(x, one, one, qmin=-2, qmax=1),
        lambda x: rfa(x, one, one, torch.arange(-2.0, 2.0), qmin=-2),
        lambda x: dls(x, four, -four, qmin=-2, qmax=1, cap_share=0.25)[0],
    ):
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(function(leaf).square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


# ---- arguments -----------------------------------------------------------------------------------------


def test_wrong_shapes_are_named():
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"scale has 5 elements.*\(3, 4\).*dimension 1 has 4"):
        lsq(x, torch.ones(5), qmin=-2, qmax=1, dim=1)
    with pytest.raises(ValueError, match="no dim given"):
        lsq(x, torch.ones(4), qmin=-2, qmax=1)
    with pytest.raises(ValueError, match=r"\(groups, values\).*\(3, 0\)"):
        dls(torch.randn(3, 0), torch.ones(4), torch.ones(4), qmin=-2, qmax=1, cap_share=0.25)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        dls(x, torch.ones(3), torch.ones(4), qmin=-2, qmax=1, cap_share=0.25)
    with pytest.raises(ValueError, match="rfa"):
        rfa(x, torch.ones(3), torch.zeros(1), torch.arange(4.0), qmin=-2)


# ---- backends against the reference --------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dim", [None, 0, 1, 2])
@pytest.mark.parametrize("backend", _others("lsq"))
def test_lsq_backend(backend, dim, size, use_backend, nan_memory):
    use_backend("lsq", backend)
    x = torch.randn(2, size, 3).transpose(0, 2)
    groups = 1 if dim is None else x.shape[dim]
    scale, offset, upstream = torch.rand(groups) * 0.3 + 0.2, torch.randn(groups), torch.randn(x.shape)
    got = _gradients(lambda *t: lsq(*t, qmin=-8, qmax=7, dim=dim), (x, scale, offset), upstream, device_for(backend))
    double = [t.double() for t in (x, scale, offset)]
    exact = _gradients(lambda *t: lsq(*t, qmin=-8, qmax=7, dim=dim), double, upstream.double())
    use_backend("lsq", "reference")
    expected = _gradients(lambda *t: lsq(*t, qmin=-8, qmax=7, dim=dim), (x, scale, offset), upstream)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1][0], expected[1][0])
    same = ((got[0].double() - exact[0]).abs() < 1e-4).all()  # no value so near a border that float32 rounds it away
    for a, b, c in zip(got[1][1:], exact[1][1:], expected[1][1:], strict=True):
        target = b.float() if same else c
        torch.testing.assert_close(a, target, rtol=1e-5, atol=1e-5 * target.abs().max().item())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["signed", "positive", "negative"])
@pytest.mark.parametrize("backend", _others("dls"))
def test_dls_backend(backend, kind, size, use_backend, nan_memory):
    use_backend("dls", backend)
    tensors, arguments = _dls_case(4, kind, torch.float32, size)
    upstream = torch.randn_like(tensors[0])
    got = _gradients(lambda *t: dls(*t, **arguments)[0], tensors, upstream, device_for(backend))
    grid = dls(*(t.to(device_for(backend)) for t in tensors), **arguments)[1].cpu()
    use_backend("dls", "reference")
    expected = _gradients(lambda *t: dls(*t, **arguments)[0], tensors, upstream)
    torch.testing.assert_close(grid, dls(*tensors, **arguments)[1], rtol=1e-5, atol=1e-6)
    step = grid[:, :1]
    moved = (got[0] - expected[0]).abs() > step / 2
    position = (tensors[0] + grid[:, 1:2]) / step
    border = ((position - position.floor()) - 0.5).abs()
    assert (border[moved] < 1e-4).all()
    if not moved.any():
        _agree(got, expected, 2e-5, 2e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("backend", _others("rfa"))
def test_rfa_backend(backend, bits, size, use_backend, nan_memory):
    use_backend("rfa", backend)
    qmin, count = -(2 ** (bits - 1)), 2**bits
    thresholds = torch.arange(qmin, qmin + count, dtype=torch.float32) + torch.rand(count) * 0.6
    w = torch.randn(size, 3).t() * count * 0.1
    tensors, upstream = (w, torch.tensor([0.3]), torch.tensor([0.05]), thresholds), torch.randn(w.shape)
    got = _gradients(lambda *t: rfa(*t, qmin=qmin), tensors, upstream, device_for(backend))
    use_backend("rfa", "reference")
    expected = _gradients(lambda *t: rfa(*t, qmin=qmin), tensors, upstream)
    assert torch.equal(got[0], expected[0])
    _agree(got, expected, 1e-5, 1e-5)


@pytest.mark.parametrize(("op", "backend"), [(op, b) for op in ("lsq", "dls", "rfa") for b in _others(op)])
def test_backend_keeps_nan(op, backend, use_backend):
    use_backend(op, backend)
    device = device_for(backend)
    x = torch.randn(2, 40).to(device)
    x[1, 3] = float("nan")
    zero, four = torch.zeros(1, device=device), torch.ones(4, device=device)
    y = {
        "lsq": lambda: lsq(x, zero + 1, zero, qmin=-2, qmax=1),
        "dls": lambda: dls(x, four, -four, qmin=-2, qmax=1, cap_share=0.25)[0],
        "rfa": lambda: rfa(x, zero + 1, zero, torch.arange(-2.0, 2.0, device=device), qmin=-2),
    }[op]()
    assert y[1, 3].isnan()
    assert not y[0].isnan().any()


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
@pytest.mark.parametrize("op", ["lsq", "dls", "rfa"])
def test_backend_is_finite_at_the_ends_of_float32(op, backend, use_backend):
    """Quotients overflow, sums of squares too: infinity times 0 must not reach a gradient."""
    use_backend(op, backend)
    largest, device = torch.finfo(torch.float32).max, device_for(backend)
    x = torch.randn(2, 700).sign() * largest
    x[0, ::3] = 1e-40
    tiny, zero = torch.tensor([1e-8]), torch.tensor([0.0])
    calls = {
        "lsq": (lambda *t: lsq(*t, qmin=-8, qmax=7), (x, tiny, zero)),
        "dls": (lambda *t: dls(*t, qmin=-8, qmax=7, cap_share=1 / 16)[0], (x, *_dls_case(4, "signed", x.dtype)[0][1:])),
        "rfa": (lambda *t: rfa(*t, qmin=-8), (x, tiny, zero, torch.arange(-8.0, 8.0))),
    }
    function, tensors = calls[op]
    y, gradients = _gradients(function, tensors, torch.randn(2, 700), device)
    for tensor in (y, *gradients):
        assert torch.isfinite(tensor).all()
