"""ss2d_scan along explicit orders, with a map per direction and with outputs kept apart; orders that are refused."""

from __future__ import annotations

import json

import pytest
import torch
from devices import device_for
from instruction_sets import with_instruction_sets
from scan_cases import DIRECTIONS, NAMES, make, relative_error

from qmambair_basicsr.ops.backend import backends
from qmambair_basicsr.ops.ss2d_scan import named_order, native, orders, ss2d_scan
from qmambair_basicsr.ops.ss2d_scan.naive import naive_scan

BACKENDS = [b.name for b in backends("ss2d_scan")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# (batch, H, W, K, D, N), of a map per direction too, merged: lengths 1, 63 and 500, one row, one column
CASES = {
    "one_pixel": ((2, 1, 1, 3, 5, 4), False, True),
    "63_pixels": ((2, 7, 9, 4, 24, 8), False, False),
    "500_pixels": ((1, 20, 25, 2, 33, 16), True, False),
    "one_row": ((1, 1, 130, 3, 17, 10), True, True),
    "one_column": ((2, 70, 1, 2, 9, 3), False, True),
}
INTERPRETED = {  # Triton's interpreter needs about 20 ms per pixel and direction
    "one_pixel": (2, 1, 1, 3, 5, 4),
    "63_pixels": (1, 7, 9, 2, 3, 2),
    "500_pixels": (1, 3, 5, 2, 3, 2),
    "one_row": (1, 1, 70, 2, 2, 2),
    "one_column": (2, 5, 1, 2, 3, 1),
}


def random_order(count, length, seed=3):
    g = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=g) for _ in range(count)])


def make_case(sizes, apart):
    inputs = make(*sizes)
    if apart:
        inputs["x"] = torch.randn(*sizes[:5], generator=torch.Generator().manual_seed(2))
    return inputs


def evaluate(scan, inputs, weight=None, **options):
    """Output and gradients of every input for the loss sum(y * weight)."""
    leaves = {k: t.detach().requires_grad_() for k, t in inputs.items()}
    y = scan(**leaves, **options)
    weight = torch.randn(y.shape, dtype=torch.float64).to(y) if weight is None else weight.to(y)
    grads = torch.autograd.grad((y * weight).sum(), list(leaves.values()))
    return dict(zip(("y", *leaves), (y.detach(), *grads), strict=True)), weight


def agree(got, want, tolerance=1e-5):
    for name in got:
        assert got[name].shape == want[name].shape, name
        assert relative_error(got[name].cpu(), want[name].cpu()) < tolerance, name


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", with_instruction_sets(BACKENDS))
def test_parity(backend, case, dtype, use_backend, nan_memory):
    use_backend("ss2d_scan", backend)
    sizes, apart, merge = CASES[case]
    slow = backend == "triton" and DEVICE == "cpu"
    if slow and dtype == torch.int32:
        pytest.skip("kernels get int32 in either case, and the interpreter is slow")
    sizes = INTERPRETED[case] if slow else sizes
    device = device_for(backend)
    inputs = {k: t.to(device) for k, t in make_case(sizes, apart).items()}
    order = random_order(sizes[3], sizes[1] * sizes[2]).to(device, dtype)
    got, weight = evaluate(ss2d_scan, inputs, order=order, merge=merge)
    exact = {k: t.double().cpu() for k, t in inputs.items()}
    want, _ = evaluate(naive_scan, exact, weight, order=order.cpu(), merge=merge)
    agree(got, want)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("listed", [True, False])
def test_reference_is_the_recurrence(listed, apart, merge):
    inputs = {k: t.double() for k, t in make_case((2, 5, 7, 4, 3, 2), apart).items()}
    options = {"order": random_order(4, 35)} if listed else {"directions": ("col_rev", "row", "row", "col")}
    got, weight = evaluate(ss2d_scan, inputs, merge=merge, **options)
    want, _ = evaluate(naive_scan, inputs, weight, merge=merge, **options)
    agree(got, want, 1e-12)


def test_reference_passes_gradcheck():
    inputs = [t.double().requires_grad_() for t in make_case((1, 3, 3, 2, 2, 2), True).values()]
    order = random_order(2, 9)
    assert torch.autograd.gradcheck(lambda *t: ss2d_scan(*t, order=order, merge=False), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("merge", [True, False])
def test_rows_of_named_directions_give_the_same_bits(backend, merge, use_backend):
    use_backend("ss2d_scan", backend)
    sizes = (1, 2, 3, 4, 3, 2) if backend == "triton" and DEVICE == "cpu" else (2, 9, 15, 4, 40, 4)
    device = device_for(backend)
    inputs = {k: t.to(device) for k, t in make(*sizes).items()}
    order = named_order(DIRECTIONS, *sizes[1:3], device=device)
    got, weight = evaluate(ss2d_scan, inputs, order=order, merge=merge)
    want, _ = evaluate(ss2d_scan, inputs, weight, merge=merge)
    for name in got:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_merging_is_the_sum_of_what_is_kept_apart(backend, use_backend):
    use_backend("ss2d_scan", backend)
    inputs = make(1, 2, 3, 4, 3, 2)
    inputs = {k: t.to(device_for(backend), torch.bfloat16) for k, t in inputs.items()}
    inputs |= {k: inputs[k].float() for k in ("A", "D", "delta_bias")}
    apart, merged = ss2d_scan(**inputs, merge=False), ss2d_scan(**inputs)
    assert apart.dtype == merged.dtype == torch.bfloat16
    assert relative_error(apart.float().sum(3), merged) < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_views(backend, use_backend):
    """A crop, whose rows do not follow each other; maps in another layout; an order every second column of a table."""
    use_backend("ss2d_scan", backend)
    device = device_for(backend)
    inputs = {k: t.to(device) for k, t in make(2, 3, 4, 2, 3, 2).items()}
    wide = torch.full((2, 5, 6, 3), float("nan"), device=device)
    wide[:, 1:4, 1:5] = inputs["x"]
    table = torch.full((12, 4), -1, device=device)
    table[:, ::2] = random_order(2, 12).t().to(device)
    order = table[:, ::2].t()
    strided = {
        **inputs,
        "x": wide[:, 1:4, 1:5],
        "delta": inputs["delta"].transpose(1, 3).contiguous().transpose(1, 3),
        "B": torch.cat([inputs["B"], inputs["C"]], -1)[..., :2],
        "C": torch.cat([inputs["B"], inputs["C"]], -1)[..., 2:],
    }
    weight = torch.randn(2, 2, 4, 3, 3, device=device).transpose(1, 3)  # (B, H, W, K, D)
    got, _ = evaluate(ss2d_scan, strided, weight, order=order, merge=False)
    exact = {k: t.double() for k, t in inputs.items()}
    agree(got, evaluate(naive_scan, exact, weight, order=order, merge=False)[0])


GOOD = torch.stack([torch.arange(12), torch.arange(12).flip(0)])


def spoiled(position, value):
    order = GOOD.clone()
    order[position] = value
    return order


HOSTILE = {
    "twice": (spoiled((1, 4), 3), r"range\(12\); row 1 visits a pixel twice and never visits pixel 7"),
    "beyond": (spoiled((0, 5), 12), "row 0 names pixel 12 at step 5"),
    "negative": (spoiled((1, 2), -1), "row 1 names pixel -1 at step 2"),
    "huge": (spoiled((0, 0), 2**32 + 1), f"row 0 names pixel {2**32 + 1} at step 0"),
    "short": (GOOD[:, :11], r"shape \(2, 12\).*got torch.int64 of shape \(2, 11\)"),
    "rows": (GOOD[:1], r"shape \(2, 12\).*got torch.int64 of shape \(1, 12\)"),
    "flat": (GOOD[0], r"got torch.int64 of shape \(12,\)"),
    "float": (GOOD.float(), "int32 or int64.*got torch.float32"),
    "bool": (GOOD > 0, "int32 or int64.*got torch.bool"),
    "uint8": (GOOD.to(torch.uint8), "int32 or int64.*got torch.uint8"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_orders_are_refused(kind, use_backend):
    use_backend("ss2d_scan", "native")
    order, words = HOSTILE[kind]
    inputs = make(1, 3, 4, 2, 5, 3)
    tensors = [inputs[k] for k in NAMES]
    torch.compiler.reset()  # or shapes that differ from case to case become symbols in the message
    compiled = torch.compile(lambda o: ss2d_scan(*tensors, order=o), backend="eager")
    for _ in range(2):  # what was refused once is not remembered as good
        with pytest.raises(ValueError, match=words):
            ss2d_scan(*tensors, order=order)
        with pytest.raises(ValueError, match=words):
            torch.ops.qmambair.ss2d_scan(*tensors, order, True, [], True, False)
        dy, states = torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 1, 3, 5)
        with pytest.raises(ValueError, match=words):
            torch.ops.qmambair.ss2d_scan_backward(dy, *tensors, order, states, True, [], True)
    with pytest.raises(Exception, match=words):  # dynamo has an exception of its own for what it finds while it traces
        compiled(order)


def test_wrong_calls_are_refused():
    inputs = make(1, 3, 4, 2, 5, 3)
    with pytest.raises(ValueError, match="directions or order, not both"):
        ss2d_scan(**inputs, directions=DIRECTIONS[:2], order=GOOD)
    with pytest.raises(ValueError, match=r"must be a tensor .*got list"):
        ss2d_scan(**inputs, order=GOOD.tolist())
    with pytest.raises(ValueError, match="order is on meta"):
        ss2d_scan(**inputs, order=GOOD.to("meta"))
    tensors = [inputs[k] for k in NAMES]
    with pytest.raises(ValueError, match="directions or order, not both"):
        torch.ops.qmambair.ss2d_scan(*tensors, GOOD, True, [0, 1], True, False)
    with pytest.raises(ValueError, match=r"codes are 0 to 3, got \[0, 4\]"):
        torch.ops.qmambair.ss2d_scan(*tensors, None, True, [0, 4], True, False)
    with pytest.raises(ValueError, match="delta must have shape"):
        torch.ops.qmambair.ss2d_scan(tensors[0], tensors[1][:, :2], *tensors[2:], None, True, [0, 1], True, False)
    with pytest.raises(ValueError, match="dy and states must have shapes"):
        torch.ops.qmambair.ss2d_scan_backward(
            torch.zeros(1, 3, 4, 5), *tensors, GOOD, torch.zeros(1, 2, 1, 3, 4), True, [], True
        )


@pytest.mark.parametrize("kind", ["twice", "beyond", "negative", None])
def test_c_interface_checks_orders_itself(kind, use_backend):
    use_backend("ss2d_scan", "native")
    inputs = make(1, 3, 4, 2, 5, 3)
    order = (GOOD if kind is None else HOSTILE[kind][0]).to(torch.int32)
    call = native._Call(*(inputs[k] for k in NAMES), True, order)
    y, states = call.output_map(inputs["x"], True, 1), torch.empty(1, 2, 1, 3, 5)
    call.args.trusted, call.args.save_states = 0, 1
    call.args.y, call.args.states = y.data_ptr(), states.data_ptr()
    if kind is None:
        call.run("qm_scan_forward")
        return
    for name in ("qm_scan_forward", "qm_scan_backward"):
        with pytest.raises(ValueError, match="no permutation"):
            call.run(name)


@pytest.fixture
def checks(monkeypatch):
    """Counts how often the values of an order are looked at."""
    seen, fault = [], orders._fault
    monkeypatch.setattr(orders, "_fault", lambda *given: seen.append(1) or fault(*given))
    return seen


def test_values_are_checked_once(checks):
    inputs = {k: t.requires_grad_() for k, t in make(1, 3, 4, 2, 5, 3).items()}
    order = GOOD.clone()
    for _ in range(3):
        ss2d_scan(**inputs, order=order).sum().backward()
    assert len(checks) == 1
    order[0, 0], order[0, 1] = 1, 0
    changed = ss2d_scan(**inputs, order=order)
    assert len(checks) == 2
    torch.testing.assert_close(changed, naive_scan(**inputs, order=order), rtol=1e-4, atol=1e-5)
    order[0, 0] = 5
    with pytest.raises(ValueError, match="never visits pixel 1"):
        ss2d_scan(**inputs, order=order)
    known = len(orders._verified)
    del order, changed  # the graph of the latter holds it as well
    assert len(orders._verified) == known - 1


def test_changes_behind_torch_cannot_lead_a_kernel_astray(use_backend):
    use_backend("ss2d_scan", "native")
    inputs, order = make(1, 3, 4, 2, 5, 3), GOOD.clone()
    want = ss2d_scan(**inputs, order=order)
    order.numpy()[:] = 2**30
    assert torch.equal(ss2d_scan(**inputs, order=order), want)


def test_inference_mode():
    inputs = make(1, 3, 4, 2, 5, 3)
    with torch.inference_mode():
        order = GOOD.clone()
        torch.testing.assert_close(ss2d_scan(**inputs, order=order), ss2d_scan(**inputs, order=GOOD))
        order[0, 0] = 7
        with pytest.raises(ValueError, match="never visits pixel 0"):
            ss2d_scan(**inputs, order=order)


class _Scan(torch.nn.Module):
    def __init__(self, inputs, order):
        super().__init__()
        self.A, self.D = (torch.nn.Parameter(inputs[k]) for k in ("A", "D"))
        self.register_buffer("order", order)

    def forward(self, x, delta, B, C):
        return ss2d_scan(x, delta, self.A, B, C, self.D, order=self.order, merge=False) * 2


def test_compile_and_export_see_one_operator(checks):
    inputs = make(1, 3, 4, 2, 5, 3)
    module, args = _Scan(inputs, GOOD.clone()), [inputs[k] for k in ("x", "delta", "B", "C")]
    want = module(*args)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    got = compiled(*args)
    torch.testing.assert_close(got, want)
    expected = torch.autograd.grad(want.square().sum(), list(module.parameters()))
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), list(module.parameters())), expected)
    assert len(checks) == 1
    program = torch.export.export(module.eval(), tuple(args))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("qmambair.ss2d_scan.default") == 1
    torch.testing.assert_close(program.module()(*args), want)
    module.order[0, 0] = 1
    with pytest.raises(ValueError, match="never visits pixel 0"):
        compiled(*args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend, use_backend):
    use_backend("ss2d_scan", backend)
    device = device_for(backend)
    for apart, merge in ((True, True), (False, False)):
        tensors = [t.to(device).requires_grad_() for t in make_case((1, 2, 2, 2, 2, 1), apart).values()]
        order = random_order(2, 4).to(device)
        torch.library.opcheck(torch.ops.qmambair.ss2d_scan.default, (*tensors, order, True, [], merge, True))


def golden_orders(shared_dir):
    for file in ("mair_scan_orders.json", "eamamba_scan_orders.json"):
        path = shared_dir / "golden" / "backbones" / file
        for name, case in json.loads(path.read_text()).items():
            if "ids" in case:
                yield f"{file} {name}", case


def test_orders_of_the_published_networks(shared_dir, use_backend):
    """Lists that the authors' code made: MaIR's stripes, EAMamba's diagonals, z-orders and zigzags."""
    use_backend("ss2d_scan", "native")
    count = 0
    for name, case in golden_orders(shared_dir):
        height, width, order = case["H"], case["W"], torch.tensor(case["ids"])
        inputs = make(1, height, width, len(order), 3, 2)
        got = ss2d_scan(**inputs, order=order, merge=False)
        want = naive_scan(**{k: t.double() for k, t in inputs.items()}, order=order, merge=False)
        assert relative_error(got, want) < 1e-5, name
        if "inverse" in case:  # outputs lie where the inverse of the authors puts them
            steps = naive_scan(**inputs, order=order, merge=False).flatten(1, 2)
            for k, inverse in enumerate(case["inverse"]):
                walked = steps[:, order[k], k]
                assert torch.equal(walked[:, inverse], steps[:, :, k]), name
        count += 1
    assert count > 40
