"""Whole numbers that become addresses, with values no honest caller has: every operator refuses them in words.

``QMAMBAIR_MUTATIONS`` sets how many mutated tensors each operator is given.
"""

from __future__ import annotations

import os

import pytest
import torch
from devices import device_for
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import with_instruction_sets
from scan_cases import make as scan_inputs
from torch._subclasses.fake_tensor import FakeTensorMode

from qmambair_basicsr.archs.windows import relative_position_index
from qmambair_basicsr.ops import checks
from qmambair_basicsr.ops.backend import backends
from qmambair_basicsr.ops.dls import dls
from qmambair_basicsr.ops.lsq import lsq
from qmambair_basicsr.ops.rfa import rfa
from qmambair_basicsr.ops.ss2d_scan import ss2d_scan
from qmambair_basicsr.ops.window_attention import window_attention

MUTATIONS = int(os.environ.get("QMAMBAIR_MUTATIONS", "2000"))
WILD = [-1, -3, 5000, 10**12, -(2**63), 2**63 - 1, 2**31, -(2**31)]
ROWS = 49  # of the table of windows of 4 x 4 tokens


def attention():
    generator = torch.Generator().manual_seed(0)
    return {
        "qkv": torch.randn(1, 32, 36, generator=generator),
        "table": torch.randn(ROWS, 2, generator=generator),
        "index": relative_position_index(4),
        "order": torch.randperm(32, generator=generator).view(2, 16),
        "regions": torch.randint(0, 4, (2, 16), generator=generator, dtype=torch.int32),
    }


def mutated(t: torch.Tensor, outside: int, generator: torch.Generator) -> torch.Tensor:
    """A copy with one to three wrong values: out of range by little or by much, or (orders) a value twice."""
    t = t.clone()
    flat = t.view(-1)
    limit = torch.iinfo(t.dtype)
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        kind = int(torch.randint(0, len(WILD) + 2, (), generator=generator))
        value = [*WILD, outside, outside + 1][kind]
        flat[int(torch.randint(flat.numel(), (), generator=generator))] = min(max(value, limit.min), limit.max)
    return t


def doubled(t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A copy of a permutation with one value twice."""
    t = t.clone()
    first, second = torch.randperm(t.numel(), generator=generator)[:2].tolist()
    t.view(-1)[first] = t.view(-1)[second]
    return t


@pytest.mark.parametrize("backend", with_instruction_sets([b.name for b in backends("window_attention")]))
def test_mutated_indices_and_orders_of_window_attention(backend, use_backend):
    use_backend("window_attention", backend)
    good, generator = attention(), torch.Generator().manual_seed(1)
    device = device_for(backend)
    out, norms = torch.full((1, 32, 12), 7.0, device=device), torch.full((1, 2, 2, 2, 16), 7.0, device=device)
    for i in range(MUTATIONS):
        name = ("index", "order")[i % 2]
        wrong = mutated(good[name], ROWS if name == "index" else 32, generator)
        if i % 4 == 3:
            wrong = doubled(good["order"], generator)
        inputs = {k: t if t is None else t.to(device) for k, t in {**good, name: wrong}.items()}
        with pytest.raises(ValueError, match=rf"^window_attention: {name}"):
            window_attention(**inputs, scale=0.3)
        if backend == "reference":
            continue
        with pytest.raises(ValueError, match=rf"^window_attention: {name}"):
            torch.ops.qmambair.window_attention(*inputs.values(), 0.3)
        with pytest.raises(ValueError, match=rf"^window_attention: {name}"):
            torch.ops.qmambair.window_attention_backward(out, *inputs.values(), out, norms, 0.3)


def test_no_backward_writes_beside_its_buffer(use_backend):
    """Buffers of the size of the table's gradient around it keep their values."""
    use_backend("window_attention", "native")
    inputs = attention()
    canaries = [torch.full((1, 2, ROWS), 7.0) for _ in range(200)]
    canaries[::2] = [None] * 100  # holes, for the gradient to land in
    out, norms = torch.ones(1, 32, 12), torch.ones(1, 2, 2, 2, 16)
    for value in (ROWS, ROWS + 40, -1, -40):
        inputs["index"] = torch.full((16, 16), value)
        with pytest.raises(ValueError, match="window_attention: index"):
            torch.ops.qmambair.window_attention_backward(out, *inputs.values(), out, norms, 0.3)
    assert all(bool((canary == 7).all()) for canary in canaries[1::2])


def test_regions_may_hold_any_numbers():
    """They are compared with each other only."""
    inputs = attention()
    wild = {**inputs, "regions": inputs["regions"] * -(2**30) + 5}
    assert torch.equal(window_attention(**wild, scale=0.3), window_attention(**inputs, scale=0.3))


def _call(change):
    inputs = attention() | {"dout": torch.ones(1, 32, 12), "out": torch.ones(1, 32, 12)}
    inputs |= {"norms": torch.ones(1, 2, 2, 2, 16)} | change
    dout, out, norms = (inputs.pop(name) for name in ("dout", "out", "norms"))
    return inputs, (dout, *inputs.values(), out, norms, 0.3)


@pytest.mark.parametrize(
    "change",
    [
        {"qkv": torch.ones(1, 31, 36)},
        {"qkv": torch.ones(32, 36)},
        {"qkv": torch.ones(1, 32, 36, dtype=torch.bfloat16)},
        {"qkv": torch.ones(1, 32, 36, dtype=torch.float64)},
        {"qkv": torch.ones(0, 32, 36)},
        {"table": torch.ones(ROWS, 0)},
        {"table": torch.ones(ROWS)},
        {"table": torch.ones(ROWS, 5)},
        {"table": torch.ones(ROWS, 2, device="meta")},
        {"index": torch.zeros(15, 16).long()},
        {"index": torch.zeros(16, 16)},
        {"index": torch.zeros(16, 16, dtype=torch.bool)},
        {"index": torch.zeros(16, 16, dtype=torch.long, device="meta")},
        {"order": torch.arange(32)},
        {"order": torch.arange(32).view(4, 8)},
        {"order": torch.arange(32.0).view(2, 16)},
        {"regions": torch.zeros(2, 15).int()},
        {"regions": torch.zeros(2, 16)},
        {"dout": torch.ones(1, 31, 12)},
        {"dout": torch.ones(1, 32, 12, dtype=torch.float64)},
        {"dout": torch.ones(1, 32, 12, device="meta")},
        {"out": torch.ones(1, 32, 11)},
        {"norms": torch.ones(1, 2, 2, 2, 15)},
        {"norms": torch.ones(1, 2, 2, 2, 16, dtype=torch.float16)},
    ],
    ids=lambda change: "-".join(f"{k}{tuple(v.shape)}{v.dtype}{v.device}" for k, v in change.items()),
)
def test_torch_ops_check_shapes_dtypes_and_devices(change, use_backend):
    use_backend("window_attention", "native")
    inputs, everything = _call(change)
    if not change.keys() & {"dout", "out", "norms"}:
        with pytest.raises(ValueError, match="window_attention: "):
            torch.ops.qmambair.window_attention(*inputs.values(), 0.3)
    with pytest.raises(ValueError, match="window_attention: "):
        torch.ops.qmambair.window_attention_backward(*everything)


def test_values_are_looked_at_once(monkeypatch):
    """A plan that is used again costs a look-up: no reading, which would wait for a GPU."""
    inputs = attention() | {"qkv": attention()["qkv"].double()}  # float64: the reference
    want = window_attention(**inputs, scale=0.3)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda _: pytest.fail("a value was read"))
    assert (window_attention(**inputs, scale=0.3) - want).abs().max().item() == 0
    monkeypatch.undo()
    for name in ("index", "order"):
        inputs[name][0, 0] = -1
        with pytest.raises(ValueError, match=f"window_attention: {name}"):
            window_attention(**inputs, scale=0.3)
        inputs = attention() | {"qkv": inputs["qkv"]}


def test_traced_tensors_have_no_values_to_look_at():
    inputs = {name: t.to("meta") for name, t in attention().items()}
    checks.rows_of("op", "index", inputs["index"], ROWS, "table")
    checks.permutation("op", "order", inputs["order"])
    with FakeTensorMode() as mode:
        given = {name: mode.from_tensor(t) for name, t in attention().items()}
        given["qkv"] = given["qkv"].double()  # the reference
        assert window_attention(**given, scale=0.3).shape == (1, 32, 12)


@pytest.mark.parametrize(
    "backend", with_instruction_sets([b.name for b in backends("ss2d_scan") if b.name != "triton"])
)
def test_mutated_orders_of_the_scan(backend, use_backend):
    use_backend("ss2d_scan", backend)
    device = device_for(backend)
    inputs, generator = scan_inputs(1, 3, 4, 2, 2, 1), torch.Generator().manual_seed(2)
    tensors = [t.to(device) for t in inputs.values()]
    good = torch.stack([torch.randperm(12, generator=generator) for _ in range(2)])
    for i in range(MUTATIONS):
        wrong = mutated(good, 12, generator) if i % 2 else good.clone()
        if i % 2 == 0:
            wrong[i % 4 // 2] = doubled(good[0], generator)
        if i % 3 == 0 and wrong.min() >= -(2**31) and wrong.max() < 2**31:
            wrong = wrong.int()
        with pytest.raises(ValueError, match="every row of order must be a permutation"):
            torch.ops.qmambair.ss2d_scan(*tensors, wrong.to(device), True, [], True, False)


@settings(max_examples=200, deadline=None)
@given(codes=st.lists(st.one_of(st.integers(-5, 9), st.sampled_from(WILD)), min_size=2, max_size=2))
def test_direction_codes(codes):
    inputs = scan_inputs(1, 3, 4, 2, 2, 1)
    if all(0 <= code < 4 for code in codes):
        assert torch.ops.qmambair.ss2d_scan(*inputs.values(), None, True, codes, True, False)[0].isfinite().all()
        return
    with pytest.raises(ValueError, match="direction codes are 0 to 3"):
        torch.ops.qmambair.ss2d_scan(*inputs.values(), None, True, codes, True, False)


def test_unknown_directions():
    with pytest.raises(ValueError, match="direction"):
        ss2d_scan(**scan_inputs(1, 3, 4, 2, 2, 1), directions=("row", 1))


NUMBERS = st.one_of(
    st.integers(-130, 130),
    st.sampled_from([*WILD, 2**24 + 1, -(2**24) - 1]),
    st.sampled_from([True, 1.0, 0.5, float("nan"), float("inf"), "7", None]),
)
SIZES = st.sampled_from([0, 1, 2, 5, 7])


def whole(*numbers):
    return all(type(n) is int and abs(n) <= 2**24 for n in numbers)


@settings(max_examples=500, deadline=None)
@given(
    qmin=NUMBERS, qmax=NUMBERS, dim=st.sampled_from([None, 0, 1, 2, -1, -3, 9, 2**40]), sizes=st.tuples(SIZES, SIZES)
)
def test_codes_dimensions_and_sizes_of_lsq(qmin, qmax, dim, sizes):
    x = torch.linspace(-3, 3, 5 * 20).view(5, 20).requires_grad_()
    scale, offset = (torch.full((size,), 0.3, requires_grad=True) for size in sizes)
    inside = dim is None or -2 <= dim < 2
    per_row = dim is not None and inside and x.shape[dim] == 5
    fits = whole(qmin, qmax) and qmin <= qmax and inside and all(s == 1 or (s == 5 and per_row) for s in sizes)
    if not fits:
        with pytest.raises(ValueError, match=r"^lsq: "):
            lsq(x, scale, offset, qmin=qmin, qmax=qmax, dim=dim)
        return
    y = lsq(x, scale, offset, qmin=qmin, qmax=qmax, dim=dim)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


@settings(max_examples=300, deadline=None)
@given(qmin=NUMBERS, levels=st.sampled_from([0, 1, 2, 5, 16, 256, 257, 1000]), values=SIZES)
def test_levels_and_lowest_code_of_rfa(qmin, levels, values):
    w = torch.linspace(-3, 3, values).requires_grad_()
    scale, offset, thresholds = torch.tensor([0.3]), torch.tensor([0.1]), torch.arange(float(levels))
    if levels < 2 or not whole(qmin) or not whole(qmin + levels - 1):
        with pytest.raises(ValueError, match=r"^rfa: "):
            rfa(w, scale, offset, thresholds, qmin=qmin)
        return
    rfa(w, scale, offset, thresholds, qmin=qmin).sum().backward()
    assert w.grad.isfinite().all()


@settings(max_examples=300, deadline=None)
@given(qmin=NUMBERS, qmax=NUMBERS, shape=st.tuples(SIZES, SIZES), weights=st.sampled_from([3, 4, 5]))
def test_codes_and_sizes_of_dls(qmin, qmax, shape, weights):
    x = torch.linspace(-3, 3, shape[0] * shape[1]).view(shape).requires_grad_()
    w, v = torch.linspace(0.1, 0.4, weights), torch.zeros(weights)
    if weights != 4 or shape[1] == 0 or not whole(qmin, qmax) or qmin > qmax:
        with pytest.raises(ValueError, match=r"^dls: "):
            dls(x, w, v, qmin=qmin, qmax=qmax, cap_share=0.1)
        return
    y, grid = dls(x, w, v, qmin=qmin, qmax=qmax, cap_share=0.1)
    y.sum().backward()
    assert y.shape == x.shape and grid.shape == (shape[0], 4) and x.grad.isfinite().all()


@pytest.mark.parametrize(
    "run",
    [
        lambda here, there: lsq(here, there, qmin=-8, qmax=7),
        lambda here, there: lsq(here, here[:1], there, qmin=-8, qmax=7),
        lambda here, there: dls(here.view(1, -1), there.expand(4), here[:4], qmin=-8, qmax=7, cap_share=0.1),
        lambda here, there: rfa(here, there, here[:1], here, qmin=-8),
        lambda here, there: rfa(here, here[:1], here[:1], there.expand(4), qmin=-8),
    ],
    ids=["lsq scale", "lsq offset", "dls w", "rfa scale", "rfa thresholds"],
)
def test_tensors_elsewhere_are_refused(run):
    """An address on another device is no address here."""
    with pytest.raises(ValueError, match="all tensors must be on one device"):
        run(torch.ones(16), torch.ones(1, device="meta"))
