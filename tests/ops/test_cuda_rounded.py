"""The CUDA kernels of the scan with rounded states: chunks, widths, the bits of the rounding, and that they compile."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scan_cases import DIRECTIONS, make
from test_scan_rounded import GRID, evaluate, grid_for, states_of

from qmambair_basicsr.ops import cuda_library
from qmambair_basicsr.ops.lsq import reference as lsq
from qmambair_basicsr.ops.ss2d_scan import Rounding, cuda, open_states, ss2d_scan_rounded

DEVICE = "cpu" if cuda_library.SIMULATED else "cuda"
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc (CUDA toolkit)")


@pytest.fixture
def on_cuda(use_backend):
    """The kernels, and no way around them: what float64 takes stays."""
    use_backend("ss2d_scan", "cuda")


def agree(inputs, rounding, path, there, **options):
    """Every result within 2e-5 of the largest of its kind; a sum over all states, within float32's errors of its terms."""
    want, weight = evaluate(inputs, rounding, dtype=torch.float64, opened=True, **path, **options)
    got, _ = evaluate(inputs, rounding, weight, device=DEVICE, **there, **options)
    reach = weight.abs().double() if weight.dim() == 5 else weight.abs().double().unsqueeze(3)
    terms = (inputs["C"].double().abs().sum(-1, keepdim=True) * reach).sum().item()
    summed = (
        2e-7 * (rounding.qmax - rounding.qmin + 3) * terms
    )  # each is (code - place), off by some digits of the place
    for name in want:
        bound = summed if name in GRID else 2e-5 * want[name].abs().max().clamp(min=1e-2)
        assert (got[name].cpu().double() - want[name]).abs().max() <= bound, name


@pytest.mark.parametrize(
    ("chunk", "channels", "state", "bits"), [(16, 132, 3, 2), (16, 1, 17, 8), (64, 9, 5, 1), (128, 9, 11, 4)]
)
def test_any_chunk_gives_the_same(chunk, channels, state, bits, on_cuda, nan_memory, monkeypatch):
    """Several chunks, tiles in a chunk, blocks of channels; the last ones not full; a byte, two and four of bits per token."""
    monkeypatch.setattr(cuda, "chunk_of", lambda x, A: chunk)
    inputs, path = make(1, 11, 13, 2, channels, state), {"directions": ("col", "row_rev")}
    torch.manual_seed(0)
    agree(inputs, grid_for(states_of(inputs, **path), bits, bounds=True), path, path)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (2, 4, 5, 4, 3, 16))),
    bits=st.sampled_from((1, 2, 4, 8)),
    form=st.sampled_from(("offset", "bounds", "symmetric")),
    merge=st.booleans(),
    apart=st.booleans(),
    listed=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_shape_and_width(sizes, bits, form, merge, apart, listed, seed, on_cuda):
    torch.manual_seed(seed)
    batch, height, width, count, channels, _ = sizes
    inputs = make(*sizes, seed=seed)
    if apart:
        inputs["x"] = torch.randn(batch, height, width, count, channels)
    order = torch.stack([torch.randperm(height * width) for _ in range(count)])
    path = {"order": order} if listed else {"directions": DIRECTIONS[-count:]}
    symmetric = form == "symmetric" and bits > 1
    states = states_of(inputs, **path)
    assume(bits < 8 or states.numel() < 4000)  # of more states some lie next to a tie on any grid
    rounding = grid_for(states, bits, symmetric, form == "bounds")
    assume(rounding.scale > 0)
    agree(inputs, rounding, path, {"order": order.to(DEVICE)} if listed else path, merge=merge)


def test_results_repeat_bit_by_bit(on_cuda):
    inputs, path = make(2, 5, 9, 3, 40, 4), {"directions": DIRECTIONS[:3]}
    rounding = grid_for(states_of(inputs, **path), 4, bounds=True)
    first, weight = evaluate(inputs, rounding, device=DEVICE, **path)
    again, _ = evaluate(inputs, rounding, weight, device=DEVICE, **path)
    assert len(first) == 12
    assert all(torch.equal(first[name], again[name]) for name in first)


def one_token(values: torch.Tensor, rounding: Rounding) -> tuple[torch.Tensor, ...]:
    """The values themselves as states of a scan of one token that returns what they are rounded to; and gradients."""
    count = values.numel()
    ones = torch.ones(1, 1, 1, 1, count, device=DEVICE)
    x = values.to(DEVICE).view(1, 1, 1, count).requires_grad_()
    grid = [None if t is None else t.to(DEVICE).requires_grad_() for t in rounding.tensors]
    y = ss2d_scan_rounded(
        x, ones, -ones.view(1, count, 1), ones[..., :1], ones[..., :1], delta_softplus=False, directions=("row",),
        rounding=Rounding(*grid[:2], rounding.qmin, rounding.qmax, *grid[2:]),
    )  # fmt: skip
    leaves = [x, *(t for t in grid if t is not None)]
    grads = torch.autograd.grad(y.sum(), leaves)
    return tuple(t.detach().flatten().cpu() for t in (y, *grads))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("low", [-0.7310586, -1.0, 0.0, -3e-5])
def test_the_rounding_has_the_bits_of_lsq(bits, low, on_cuda):
    """Ties to even, values next to them, exactly on a level or a bound, and far outside."""
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    lower, upper = torch.tensor([low]), torch.tensor([0.7310586])
    scale = (upper - lower) / (qmax - qmin)
    offset = qmin * scale - lower
    halves = torch.arange(2 * qmin - 3, 2 * qmax + 4) / 2 * scale - offset
    near = torch.cat([halves, torch.nextafter(halves, halves + 1), torch.nextafter(halves, halves - 1)])
    far = torch.tensor([0.0, 1e-30, 1e30, -1e30, 3e38, -3e38])
    values = torch.cat([near, far, lower, upper, torch.randn(200, generator=torch.Generator().manual_seed(bits))])
    grid = scale, offset, qmin, qmax, None
    y, dx, dscale, doffset = one_token(values, Rounding(scale, offset, qmin, qmax))
    assert torch.equal(y, lsq.forward(values, *grid))
    want = lsq.backward(torch.ones_like(values), values, *grid)
    assert torch.equal(dx, want[0])
    assert torch.allclose(dscale, want[1], rtol=1e-5, atol=1e-4) and torch.allclose(doffset, want[2], rtol=1e-6)
    _, dx, *got = one_token(values, Rounding(scale, offset, qmin, qmax, lower, upper))
    on_lower, on_upper = values == lower, values == upper
    assert torch.equal(dx, torch.where(on_lower | on_upper, 1.0, want[0]))
    assert got[2].item() == on_lower.sum() and got[3].item() == on_upper.sum()
    rest = (~(on_lower | on_upper)).float()
    want = lsq.backward(rest, values, *grid)
    assert torch.allclose(got[0], want[1], rtol=1e-5, atol=1e-4) and torch.allclose(got[1], want[2], rtol=1e-6)


def test_a_nan_stays_one(on_cuda):
    values = torch.tensor([0.3, float("nan"), -0.2])
    y, dx, dscale, _ = one_token(values, Rounding(torch.tensor([0.1]), torch.tensor([0.05]), -2, 1))
    assert y.isnan().tolist() == [False, True, False] and dscale.isnan().all()
    assert dx[1] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps(dtype, on_cuda):
    inputs, path = make(1, 3, 11, 2, 3, 2), {"directions": DIRECTIONS[:2]}
    half = {k: t.to(dtype) if t.dim() > 3 else t for k, t in inputs.items()}
    single = {k: t.float() for k, t in half.items()}
    rounding = grid_for(states_of(single, **path), 4, bounds=True)
    got, weight = evaluate(half, rounding, device=DEVICE, **path)
    want, _ = evaluate(single, rounding, weight.double(), dtype=torch.float64, opened=True, **path)
    for name in want:
        assert got[name].dtype == (half["x"] if name == "y" else half.get(name, inputs["A"])).dtype
        size = want[name].abs().max()
        assert (got[name].cpu().double() - want[name]).abs().max() <= 4 * torch.finfo(dtype).eps * size, name


def test_states_are_never_in_the_open(on_cuda, monkeypatch):
    monkeypatch.setattr(open_states, "forward", pytest.fail)
    monkeypatch.setattr(open_states, "backward", pytest.fail)
    one_token(torch.tensor([0.3]), Rounding(torch.tensor([0.1]), None, -2, 1))


def test_codes_beyond_what_a_quarter_of_a_level_is_exact_for(on_cuda):
    with pytest.raises(ValueError, match="1048576"):
        one_token(torch.tensor([0.3]), Rounding(torch.tensor([0.1]), None, -2, (1 << 20) + 1))


@needs_nvcc
@pytest.mark.parametrize(("states", "element", "arch"), [(16, 0, "90"), (12, 1, "80")])
def test_kernels_compile_and_keep_states_in_registers(tmp_path, states, element, arch):
    command = ["nvcc", "-O3", "-std=c++17", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas", "-v", "-cubin"]
    macros = [f"-DQM_STATES={states}", f"-DQM_ELEMENT={element}", "-DQM_ROUNDED=1"]
    unit = cuda_library.sources() / "scan.cu"
    done = subprocess.run([*command, *macros, str(unit), "-o", str(tmp_path / "c")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = done.stderr.split("Compiling entry function")[1:]
    assert len(kernels) == 8
    for text in kernels:
        spilled = int(re.search(r"(\d+) bytes spill stores", text).group(1))
        assert spilled <= (320 if "gradient" in text else 16), (
            text
        )  # of the gradient: one in thirty of its instructions
