"""ss2d_scan_rounded: every backend against the scan with its states in the open, in float64."""

from __future__ import annotations

import pytest
import torch
from devices import device_for
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import with_instruction_sets
from scan_cases import DIRECTIONS, make, relative_error

from qmambair_basicsr.archs.scan_states import scan_states, scan_with_states
from qmambair_basicsr.ops.backend import backends
from qmambair_basicsr.ops.lsq import lsq
from qmambair_basicsr.ops.ss2d_scan import Rounding, named_order, ss2d_scan_rounded
from qmambair_basicsr.quantizers.ste import on_bounds

BACKENDS = with_instruction_sets([b.name for b in backends("ss2d_scan") if b.name != "mamba_ssm"])
FAST = [
    name for name in BACKENDS if name != "triton" or torch.cuda.is_available()
]  # its interpreter needs half a minute
GRID = ("scale", "offset", "lower", "upper")

# (batch, H, W, K, D, N): one token, a partial chunk, several, partial and whole vectors, sizes fixed at compile time or not
SHAPES = {
    "one_token": (1, 1, 1, 4, 7, 16),
    "63_tokens": (2, 7, 9, 2, 5, 3),
    "two_chunks": (1, 9, 14, 2, 18, 1),
    "one_row": (1, 1, 70, 1, 9, 8),
    "sixteen": (1, 5, 3, 3, 17, 16),
    "ten": (2, 3, 5, 4, 3, 10),
}


def states_of(inputs, **path):
    given_ = [inputs[name].double() for name in ("x", "delta", "A", "B", "delta_bias")]
    return scan_states(*given_, **path)


def grid_for(states, bits, symmetric=False, bounds=False):
    """A grid in float32 that clips a tenth of the states at each end, and on which float32 rounds each of them as float64 does.

    Of many such grids the one whose borders between codes are farthest from any state.
    """
    qmax = 2 ** (bits - 1) - 1
    qmin = -qmax if symmetric else -qmax - 1
    low, high = states.flatten().quantile(torch.tensor([0.1, 0.9], dtype=torch.float64))
    best = None
    for stretch in torch.linspace(0.9, 1.1, 101, dtype=torch.float64):
        upper = high * stretch + 1e-3
        lower = -upper if symmetric else low * stretch - 1e-3
        scale = ((upper - lower) / (qmax - qmin)).float()
        offset = None if symmetric else (qmin * scale - lower.float())
        v = (states + (0 if offset is None else offset.double())) / scale.double()
        ties = ((v - v.floor() - 0.5).abs() + ((v < qmin - 0.6) | (v > qmax + 0.6))).min()
        gap = torch.minimum(ties, torch.minimum((v - qmin).abs().min(), (v - qmax).abs().min()))
        if best is None or gap > best[0]:
            best = gap, scale, offset, lower.float(), upper.float()
    gap, scale, offset, lower, upper = best
    assert gap > 1e-6 * (qmax - qmin + 4), gap
    scale, offset, lower, upper = (None if t is None else t.reshape(1) for t in (scale, offset, lower, upper))
    edges = (lower, upper) if bounds else (None, None)
    return Rounding(scale, offset, qmin, qmax, *edges)


class Wanted(dict):
    """Results by name.

    Attributes:
        totals: of the grid's gradients, sums of both signs over all states, what the magnitudes sum up to.
    """

    def __init__(self, found, through, rounding):
        super().__init__(found)
        total = through.abs().sum().item()
        self.totals = dict.fromkeys(GRID, total) | {"scale": total * max(-rounding.qmin, rounding.qmax)}


def error(name, got, want):
    """Deviation over the largest value, or over the sum of magnitudes."""
    total = want.totals.get(name)
    if total:
        return (got[name].cpu().double() - want[name]).abs().item() / total
    return relative_error(got[name].cpu(), want[name])


def evaluate(inputs, rounding, weight=None, dtype=None, device="cpu", opened=False, **options):
    """y and every gradient for the loss sum(y * weight); ``opened`` with the states of all pixels in one tensor."""
    named = dict(inputs) | {n: t for n, t in zip(GRID, rounding.tensors, strict=True) if t is not None}
    leaves = {k: t.detach().to(device=device, dtype=dtype).requires_grad_() for k, t in named.items()}
    grid = Rounding(leaves["scale"], leaves.get("offset"), *rounding[2:4], leaves.get("lower"), leaves.get("upper"))
    scanned, seen = {k: t for k, t in leaves.items() if k not in GRID}, []
    if opened:
        scanned["skip"] = scanned.pop("D")
        scanned = {k.lower(): t for k, t in scanned.items()}

        def change(states):
            y = lsq(states, grid.scale, grid.offset, qmin=grid.qmin, qmax=grid.qmax)
            y = y if grid.lower is None else on_bounds(y, states, grid.lower, grid.upper)
            seen.append(y)
            return y

        y = scan_with_states(**scanned, change=change, **options)
    else:
        y = ss2d_scan_rounded(**scanned, rounding=grid, **options)
    weight = torch.randn(y.shape, dtype=torch.float64).to(y) if weight is None else weight
    given_ = list(leaves.values())
    grads = torch.autograd.grad(
        (y * weight.to(y)).sum(), [*given_, *seen], allow_unused=opened, materialize_grads=opened
    )
    found = dict(zip(("y", *leaves), (y.detach(), *grads), strict=False))
    return (Wanted(found, grads[-1], rounding) if opened else found), weight


def compare(inputs, rounding, device="cpu", dtype=None, bound=1e-5, **options):
    want, weight = evaluate(inputs, rounding, dtype=torch.float64, opened=True, **options)
    got, _ = evaluate(inputs, rounding, weight, dtype=dtype, device=device, **options)
    for name in want:
        assert got[name].shape == want[name].shape, name
        assert error(name, got, want) < bound, name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", FAST)
def test_parity(backend, shape, use_backend, nan_memory):
    use_backend("ss2d_scan", backend)
    torch.manual_seed(0)
    inputs, path = make(*SHAPES[shape]), {"directions": DIRECTIONS[: SHAPES[shape][3]]}
    rounding = grid_for(states_of(inputs, **path), 4, bounds=True)
    compare(inputs, rounding, device_for(backend), **path)


@pytest.mark.parametrize("apart", [False, True], ids=["shared", "apart"])
@pytest.mark.parametrize("merge", [False, True], ids=["kept", "merged"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_maps_orders_and_grids(backend, merge, apart, use_backend, nan_memory):
    """A map for each direction, outputs kept apart, an explicit order, no bounds, an offset of 0."""
    use_backend("ss2d_scan", backend)
    torch.manual_seed(0)
    inputs = make(1, 3, 4, 2, 3, 2)
    if apart:
        inputs["x"] = torch.stack([inputs["x"], inputs["x"].flip(1)], 3)
    order = torch.stack([torch.randperm(12) for _ in range(2)]).int()
    rounding = grid_for(states_of(inputs, order=order), 2, symmetric=True)
    device = device_for(backend)
    want, weight = evaluate(inputs, rounding, dtype=torch.float64, opened=True, order=order, merge=merge)
    got, _ = evaluate(inputs, rounding, weight, device=device, order=order.to(device), merge=merge)
    for name in want:
        assert error(name, got, want) < 1e-5, name


# the same examples and weights everywhere: gradients that are sums of both signs can cancel to any small value
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (2, 5, 5, 4, 20, 16))),
    bits=st.sampled_from((1, 2, 4, 8)),
    seed=st.integers(0, 10**6),
)
def test_any_shape_and_width(sizes, bits, seed):
    """The default backend; in float64 the open way to the last digits, in float32 to its own."""
    torch.manual_seed(seed)
    inputs, path = make(*sizes, seed=seed), {"directions": DIRECTIONS[: sizes[3]]}
    states = states_of(inputs, **path)
    low, high = states.min().float() * 0.7 - 1e-3, states.max().float() * 0.7 + 1e-3
    levels = 2**bits - 1
    scale = ((high - low) / levels).reshape(1)
    qmin = -(2 ** (bits - 1))
    rounding = Rounding(scale, qmin * scale - low, qmin, qmin + levels, low.reshape(1), high.reshape(1))
    compare(inputs, rounding, dtype=torch.float64, bound=1e-9, **path)
    v = (states + rounding.offset.double()) / scale.double()
    near = torch.stack([(v - v.floor() - 0.5).abs(), (v - qmin).abs(), (v - qmin - levels).abs()]).min()
    if near > 1e-6 * (levels + 4):
        compare(inputs, rounding, **path)


@pytest.mark.parametrize("backend", FAST)
def test_ties_and_states_on_a_bound(backend, use_backend, nan_memory):
    """States that are exactly 0: half-way between two codes, or on the lower bound."""
    use_backend("ss2d_scan", backend)
    inputs = make(1, 2, 3, 2, 3, 2)
    inputs["x"].zero_()
    one = torch.ones(1)
    for rounding in (
        Rounding(one, 0.5 * one, -2, 1),  # v = 0.5: to 0
        Rounding(one, -0.5 * one, -2, 1),  # v = -0.5: to 0
        Rounding(one, 1.5 * one, -2, 1),  # clipped
        Rounding(0.1 * one, -0.2 * one, -2, 1, 0 * one, 0.3 * one),  # on the lower bound
        Rounding(0.1 * one, 0.1 * one, -2, 1, -0.3 * one, 0 * one),  # on the upper bound
        Rounding(0.1 * one, 0.1 * one, -2, 1, 0 * one, 0 * one),  # on both
    ):
        compare(inputs, rounding, device_for(backend), directions=DIRECTIONS[:2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_maps(backend, use_backend):
    use_backend("ss2d_scan", backend)
    torch.manual_seed(0)
    inputs = {k: t.to(torch.bfloat16) if t.dim() > 3 else t for k, t in make(1, 3, 4, 4, 3, 2).items()}
    rounding = grid_for(states_of(inputs, directions=DIRECTIONS), 4, bounds=True)
    want, weight = evaluate(inputs, rounding, dtype=torch.float64, opened=True)
    got, _ = evaluate(inputs, rounding, weight, device=device_for(backend))
    for name in want:
        kind = inputs["x" if name == "y" else name].dtype if name not in GRID else torch.float32
        assert got[name].dtype == kind, name
        assert error(name, got, want) < 4 * torch.finfo(torch.bfloat16).eps, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ("x", "C", "scale", "offset"))
def test_nan_reaches_the_output(backend, name, use_backend):
    use_backend("ss2d_scan", backend)
    inputs, one = make(1, 2, 3, 2, 3, 1), torch.ones(1)
    grid = {"scale": 0.3 * one, "offset": 0.1 * one}
    {**inputs, **grid}[name].view(-1)[0] = float("nan")
    rounding = Rounding(grid["scale"], grid["offset"], -8, 7)
    got, _ = evaluate(inputs, rounding, device=device_for(backend), directions=DIRECTIONS[:2])
    want, _ = evaluate(inputs, rounding, dtype=torch.float64, opened=True, directions=DIRECTIONS[:2])
    assert got["y"].isnan().any()
    assert torch.equal(got["y"].isnan().cpu(), want["y"].isnan())


def test_reference_passes_gradcheck_where_nothing_is_rounded_away():
    """Outside of the grid every state is a bound, and the bound follows scale and offset."""
    inputs = [t.double().requires_grad_() for t in make(1, 3, 4, 2, 2, 2).values()]
    scale, offset = torch.tensor([1e3]).double().requires_grad_(), torch.tensor([-9e3]).double().requires_grad_()

    def scanned(*tensors):
        return ss2d_scan_rounded(*tensors[:7], directions=DIRECTIONS[:2], rounding=Rounding(*tensors[7:], -2, 1))

    assert torch.autograd.gradcheck(scanned, (*inputs, scale, offset))


@pytest.mark.parametrize("backend", [b for b in FAST if "-" not in b or b.endswith("portable")])
def test_opcheck(backend, use_backend):
    use_backend("ss2d_scan", backend)
    device = device_for(backend)
    tensors = [t.to(device).requires_grad_() for t in make(1, 2, 2, 4, 2, 1).values()]
    grid = [torch.tensor([v], device=device, requires_grad=True) for v in (0.31, 0.1, -2.0, 2.0)]
    settings_ = (None, -8, 7, True, [0, 1, 2, 3], True, True)
    torch.library.opcheck(torch.ops.qmambair.ss2d_scan_rounded.default, (*tensors, *grid, *settings_))
    without = (*tensors[:5], None, None, grid[0], None, None, None, *settings_)
    torch.library.opcheck(torch.ops.qmambair.ss2d_scan_rounded.default, without)


@pytest.mark.parametrize(
    ("rounding", "words"),
    [
        (Rounding(torch.ones(2), None, -2, 1), r"scale of the rounding must be one value, got shape \(2,\)"),
        (Rounding(torch.ones(1), None, 1, -2), "codes must run from"),
        (Rounding(torch.ones(1), None, -2, 1, torch.ones(1)), "both bounds or neither"),
        (Rounding(torch.ones(1, device="meta"), None, -2, 1), "scale of the rounding is on meta, not on cpu"),
    ],
    ids=["many", "crossed", "half", "elsewhere"],
)
def test_wrong_roundings_are_named(rounding, words):
    with pytest.raises(ValueError, match=words):
        ss2d_scan_rounded(**make(1, 3, 4, 4, 5, 3), rounding=rounding)


def test_wrong_inputs_are_named():
    rounding = Rounding(torch.ones(1), None, -2, 1)
    inputs = make(1, 3, 4, 4, 5, 3)
    with pytest.raises(ValueError, match=r"A must have shape"):
        ss2d_scan_rounded(**{**inputs, "A": inputs["A"][:2]}, rounding=rounding)
    with pytest.raises(ValueError, match="not both"):
        ss2d_scan_rounded(**inputs, rounding=rounding, directions=("row",), order=named_order(("row",), 3, 4))
