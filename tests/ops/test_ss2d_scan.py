"""ss2d_scan: every backend against the float64 reference, the reference against the written-out recurrence."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from devices import device_for
from instruction_sets import with_instruction_sets
from scan_cases import DIRECTIONS, NAMES, make, relative_error

from qmambair_basicsr.ops import ss2d_scan as package
from qmambair_basicsr.ops.backend import backends
from qmambair_basicsr.ops.ss2d_scan import ss2d_scan
from qmambair_basicsr.ops.ss2d_scan.naive import naive_scan

BACKENDS = with_instruction_sets([b.name for b in backends("ss2d_scan")])
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# (batch, H, W, K, D, N): lengths 1, 63, 500, 4097, odd channel counts, one to four directions
SHAPES = {
    "one_token": (1, 1, 1, 4, 7, 16),
    "63_tokens": (2, 7, 9, 4, 24, 10),
    "500_tokens": (3, 20, 25, 2, 13, 8),
    "4097_tokens": (1, 17, 241, 4, 33, 5),
    "one_row": (2, 1, 130, 1, 65, 16),
    "three_directions": (2, 5, 3, 3, 3, 1),
    "one_channel": (2, 5, 3, 3, 1, 1),
}
STEPS = {"usual": ((1e-3, 0.1), 16.0), "extreme": ((1e-6, 50.0), 1e4), "slowest": ((1e-6, 1e-6), 1.0)}


# Triton's interpreter needs about 20 ms per token and direction: smaller maps, one case of step sizes each or all
INTERPRETED = {
    "one_token": ((1, 1, 1, 4, 3, 2), None),
    "63_tokens": ((1, 7, 9, 2, 1, 2), {("usual", True), ("extreme", True), ("slowest", False)}),
    "500_tokens": ((1, 20, 25, 1, 1, 1), {("usual", True)}),
    "three_directions": ((3, 2, 5, 3, 3, 1), {("usual", False)}),
}

# the CUDA kernels on the CPU, every thread a fiber: smaller maps
SIMULATED = {"500_tokens": (2, 9, 11, 2, 13, 8), "4097_tokens": (1, 3, 51, 4, 33, 5)}


def case(backend, shape, steps):
    """Shape and settings of delta_softplus to run, or a skip."""
    if backend == "mamba_ssm" and steps != "usual":
        pytest.skip("mamba_ssm rounds decays next to 1, see ops/ss2d_scan/mamba_ssm.py")
    if shape == "one_channel" and steps == "extreme" and not backend.startswith("native"):
        pytest.skip(
            "exp(dt A) - 1 loses the digits of a factor near 0; nothing larger hides it here, see scan_backward.h"
        )
    if backend != "triton" or DEVICE == "cuda":
        simulated = SIMULATED if backend == "cuda" and DEVICE == "cpu" else {}
        return simulated.get(shape, SHAPES[shape]), (True, False)
    small, chosen = INTERPRETED.get(shape, (None, set()))
    settings = tuple(s for s in (True, False) if chosen is None or (steps, s) in chosen)
    if not settings:
        pytest.skip("too long for Triton's interpreter")
    return small, settings


def evaluate(inputs, weight=None, dtype=None, device="cpu", **options):
    """Output and gradients of every input for the loss sum(y * weight)."""
    leaves = {k: t.detach().to(device=device, dtype=dtype).requires_grad_() for k, t in inputs.items()}
    y = ss2d_scan(**leaves, **options)
    weight = torch.randn(y.shape, dtype=torch.float64).to(y) if weight is None else weight
    loss = (y * weight.to(y)).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(("y", *leaves), (y.detach(), *grads), strict=True)), weight


def test_reference_is_the_recurrence():
    inputs = {k: t.double().requires_grad_() for k, t in make(2, 5, 7, 4, 3, 2).items()}
    got, want = ss2d_scan(**inputs), naive_scan(**inputs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(want)
    grads = [torch.autograd.grad((y * weight).sum(), list(inputs.values())) for y in (got, want)]
    for name, a, b in zip(inputs, *grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=name)


def test_reference_passes_gradcheck():
    inputs = [t.double().requires_grad_() for t in make(1, 3, 4, 2, 2, 2).values()]
    assert torch.autograd.gradcheck(lambda *t: ss2d_scan(*t, directions=("col_rev", "row")), inputs)


def test_reference_backward_in_several_groups(monkeypatch):
    from qmambair_basicsr.ops.ss2d_scan import reference

    inputs = make(1, 5, 60, 2, 3, 2)
    options = {"directions": DIRECTIONS[:2], "dtype": torch.float64}
    whole, weight = evaluate(inputs, **options)
    monkeypatch.setattr(reference, "_BACKWARD_ELEMENTS", 1)
    parts, _ = evaluate(inputs, weight, **options)
    for name in whole:
        assert relative_error(parts[name], whole[name]) < 1e-13, name


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend, shape, steps, use_backend, nan_memory):
    use_backend("ss2d_scan", backend)
    sizes, settings = case(backend, shape, steps)
    (interval, rate), count = STEPS[steps], sizes[3]
    for softplus in settings:
        inputs = make(*sizes, steps=interval, rate=rate, softplus=softplus)
        options = {"directions": DIRECTIONS[:count], "delta_softplus": softplus}
        got, weight = evaluate(inputs, device=device_for(backend), **options)
        want, _ = evaluate(inputs, weight, dtype=torch.float64, **options)
        for name in got:
            assert got[name].shape == want[name].shape
            assert relative_error(got[name].cpu(), want[name].cpu()) < 1e-5, (name, softplus)


def test_strong_decay_costs_the_gradient_of_a_no_digits(use_backend):
    """A sum of (exp(dt A) - 1) and 1 would keep few digits of a decay near 0: 1.3e-5 on this case."""
    use_backend("ss2d_scan", "triton")
    inputs = make(2, 5, 3, 3, 3, 1, steps=(1e-6, 50.0), rate=1e4, softplus=False, seed=3)
    options = {"directions": DIRECTIONS[:3], "delta_softplus": False}
    torch.manual_seed(3)
    got, weight = evaluate(inputs, device=DEVICE, **options)
    want, _ = evaluate(inputs, weight, dtype=torch.float64, **options)
    assert relative_error(got["A"].cpu(), want["A"].cpu()) < 2e-6
    assert relative_error(got["delta"].cpu(), want["delta"].cpu()) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs_and_no_skip_or_bias(backend, use_backend, nan_memory):
    use_backend("ss2d_scan", backend)
    device = device_for(backend)
    dense = {k: t.to(device) for k, t in make(2, 2, 3, 4, 3, 2).items() if k not in ("D", "delta_bias")}
    strided = {
        "x": dense["x"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "delta": dense["delta"].transpose(1, 3).contiguous().transpose(1, 3),
        "A": dense["A"].transpose(1, 2).contiguous().transpose(1, 2),
        "B": torch.cat([dense["B"], dense["C"]], -1)[..., :2],
        "C": torch.cat([dense["B"], dense["C"]], -1)[..., 2:],
    }
    weight = torch.randn_like(dense["x"]).transpose(1, 2).contiguous().transpose(1, 2)
    got = ss2d_scan(**{k: t.requires_grad_() for k, t in strided.items()})
    grads = torch.autograd.grad((got * weight).sum(), list(strided.values()))
    want, _ = evaluate(dense, weight, dtype=torch.float64)
    for name, value in zip(("y", *strided), (got, *grads), strict=True):
        assert relative_error(value.cpu(), want[name].cpu()) < 1e-5, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps(backend, dtype, use_backend):
    use_backend("ss2d_scan", backend)
    inputs = make(1, 3, 4, 4, 3, 2)
    half = {k: t.to(device_for(backend), dtype if t.dim() > 3 else None) for k, t in inputs.items()}
    got, weight = evaluate(half, device=device_for(backend))
    want, _ = evaluate({k: t.float() for k, t in half.items()}, weight.double(), dtype=torch.float64)
    for name in got:
        assert got[name].dtype == (half["x"] if name == "y" else half[name]).dtype
        assert relative_error(got[name].cpu(), want[name].cpu()) < 4 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_nan_reaches_the_output(backend, name, use_backend):
    use_backend("ss2d_scan", backend)
    inputs = make(1, 2, 3, 4, 3, 1)
    inputs[name].view(-1)[0] = float("nan")
    got, _ = evaluate(inputs, device=device_for(backend))
    assert got["y"].isnan().any()
    want, _ = evaluate(inputs, dtype=torch.float64)
    assert torch.equal(got["y"].isnan().cpu(), want["y"].isnan())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 3e38, -3e38])
@pytest.mark.parametrize("name", NAMES)
def test_huge_values_do_not_crash(name, value, use_backend, instruction_set):
    use_backend("ss2d_scan", "native")
    inputs = make(1, 3, 4, 4, 5, 3)
    inputs[name].view(-1)[0] = value
    got, _ = evaluate(inputs)
    assert got["y"].shape == inputs["x"].shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_huge_step_forgets_what_was_before(backend, use_backend):
    """dt A beyond float32: exp(dt A) is 0, not NaN."""
    use_backend("ss2d_scan", backend)
    inputs = make(1, 1, 3, 4, 17, 2)
    inputs["A"].fill_(-1e8)
    inputs["delta"][:, :, 1] = 1e32
    inputs["x"][:, :, 1] = 1e-32
    got, _ = evaluate(inputs, device=device_for(backend))
    want, _ = evaluate(inputs, dtype=torch.float64)
    assert relative_error(got["y"].cpu(), want["y"]) < 1e-5


def test_native_bits_do_not_depend_on_threads(use_backend, instruction_set):
    use_backend("ss2d_scan", "native")
    inputs = make(2, 9, 15, 4, 200, 4)  # merges directions for few threads, not for many
    results, before, weight = [], torch.get_num_threads(), None
    try:
        for threads in (1, 2, 9, 40):
            torch.set_num_threads(threads)
            result, weight = evaluate(inputs, weight)
            results.append(result)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


def _scan_in_child(queue, inputs):
    with torch.no_grad():
        queue.put(ss2d_scan(**inputs).sum().item())


def test_native_after_fork(use_backend):
    """A DataLoader worker is a fork of a process whose thread pool has already run."""
    use_backend("ss2d_scan", "native")
    inputs = make(1, 4, 5, 4, 40, 4)
    want = ss2d_scan(**inputs).sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_scan_in_child, args=(queue, inputs), daemon=True)
    process.start()
    try:
        assert queue.get(timeout=60) == pytest.approx(want, rel=1e-5)
    finally:
        process.kill()


@pytest.mark.parametrize("backend", [b.name for b in backends("ss2d_scan")])
def test_opcheck(backend, use_backend):
    use_backend("ss2d_scan", backend)
    tensors = [t.to(device_for(backend)).requires_grad_() for t in make(1, 2, 2, 4, 2, 1).values()]
    torch.library.opcheck(torch.ops.qmambair.ss2d_scan.default, (*tensors, None, True, [0, 1, 2, 3], True, True))
    without = (*tensors[:5], None, None, None, True, [0, 1, 2, 3], True, True)
    torch.library.opcheck(torch.ops.qmambair.ss2d_scan.default, without)


class _Scan(torch.nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.A, self.D = (torch.nn.Parameter(inputs[k]) for k in ("A", "D"))

    def forward(self, x, delta, B, C):
        return ss2d_scan(x, delta, self.A, B, C, self.D) * 2


def test_compile_and_export_see_one_operator():
    inputs = make(1, 3, 4, 4, 5, 3)
    module, args = _Scan(inputs), [inputs[k] for k in ("x", "delta", "B", "C")]
    want = module(*args)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    got = compiled(*args)
    torch.testing.assert_close(got, want)
    expected = torch.autograd.grad(want.square().sum(), list(module.parameters()))
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), list(module.parameters())), expected)
    program = torch.export.export(module.eval(), tuple(args))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("qmambair.ss2d_scan.default") == 1
    torch.testing.assert_close(program.module()(*args), want)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"directions": ("row", "diagonal")}, "'diagonal'"),
        ({"A": torch.ones(4, 5, 3)[:2]}, r"A must have shape \(4, 5, 3\).*got \(2, 5, 3\)"),
        ({"delta": torch.ones(1, 3, 4, 4, 6)}, r"delta must have shape \(1, 3, 4, 4, 5\)"),
        ({"x": torch.ones(3, 4, 5)}, "x must be"),
    ],
)
def test_wrong_inputs_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        ss2d_scan(**{**make(1, 3, 4, 4, 5, 3), **change})


def test_states_are_kept_for_gradients_only():
    inputs = make(1, 10, 20, 4, 5, 3)
    arguments = (*inputs.values(), True, [0, 1, 2, 3])
    with torch.no_grad():
        assert package.scan(*arguments)[1].shape[2] == 1
    inputs["x"].requires_grad_()
    assert package.scan(*arguments)[1].shape[2] > 1
