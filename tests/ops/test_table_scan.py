"""The scan on codes against its float64 definition and against the ordinary scan, on every backend and instruction set."""

from __future__ import annotations

import pytest
import torch
from devices import device_for
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import in_use, libraries, with_instruction_sets

from qmambair_basicsr.ops.backend import ENV, choose
from qmambair_basicsr.ops.integer import reference as integer
from qmambair_basicsr.ops.ss2d_scan import DIRECTIONS, named_order, ss2d_scan
from qmambair_basicsr.ops.table_scan import (
    BACKENDS,
    OnGrid,
    build_tables,
    dequantize,
    empty_tables,
    table_levels,
    table_row,
    table_scan,
    triton,
)
from qmambair_basicsr.ops.table_scan.code_scan import CodeScan, pays
from qmambair_basicsr.ops.triton_support import INTERPRETED

NAMES = with_instruction_sets(list(BACKENDS))
SLOW = "triton" if INTERPRETED else None  # its interpreter takes some 20 ms for a token
KINDS = ("codes", "entering", "values")
TOLERANCE = 2e-6


def operand(shape, kind, bits, generator, images=0, span=3.0, offset=0.0):
    """A random map of values within about ``span``; with ``images`` every image has a grid of its own."""
    values = torch.randn(shape, generator=generator)
    if kind == "values":
        return OnGrid(values)
    zero = 2 ** (bits - 1)
    grid = torch.tensor([span / zero, offset, -zero, zero - 1])
    if images:
        grid = grid.repeat(images, 1)
        grid[:, 0] *= torch.linspace(1, 1.5, images)
    if kind == "entering":
        return OnGrid(values, grid, bits)
    codes = torch.randint(0, 2 * zero, shape, generator=generator)
    return OnGrid(codes.to(torch.uint8), grid, bits)


def make(batch, height, width, count, channels, state, bits=4, kind="codes", apart=False, images=0, seed=0, x_bits=0):
    """Operands and constants of a scan: x, delta, B, C, and A, D, delta_bias."""
    x_bits = x_bits or bits
    g = torch.Generator().manual_seed(seed)
    pixels = (batch, height, width)
    x = operand((*pixels, count, channels) if apart else (*pixels, channels), kind, x_bits, g, images, offset=0.1)
    delta = operand((*pixels, count, channels), "codes" if kind == "values" else kind, bits, g, images, offset=-0.5)
    b, c = (operand((*pixels, count, state), kind, bits, g, images) for _ in range(2))
    rates = -torch.rand(count, channels, state, generator=g) * state - 0.1
    skip, bias = (torch.randn(count, channels, generator=g) for _ in range(2))
    return (x, delta, b, c), (rates, skip, bias - 2)


def moved(value, device):
    """A tensor, a map on a grid, or several of them, on a device."""
    if isinstance(value, OnGrid):
        return OnGrid(moved(value.data, device), moved(value.grid, device), value.bits)
    if isinstance(value, tuple):
        return tuple(moved(each, device) for each in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def scanned(maps, constants, kind=torch.float32, device="cpu", **how):
    x, delta, b, c = moved(maps, device)
    rates, skip, bias = (t.to(device, kind) for t in constants)
    tables = build_tables(delta.grid.to(kind), delta.bits, rates, bias)
    return table_scan(x, delta, tables, b, c, skip, **{key: moved(value, device) for key, value in how.items()})


def error(got, want):
    return ((got.double().cpu() - want).abs().max() / want.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_equals_the_definition_in_float64(use_backend, nan_memory, monkeypatch, name, kind, bits):
    use_backend("table_scan", name)
    sizes = (2, 3, 7, 19)
    if name == SLOW:
        if (kind, bits) not in {("codes", 3), ("codes", 8), ("entering", 4), ("values", 1)}:
            pytest.skip("too long for Triton's interpreter")
        sizes = (2, 2, 3, 5)
        monkeypatch.setattr(triton, "CHUNK", 4)
    batch, height, width, channels = sizes
    for state, count, way in ((bits, 4, "merged"), (9 + bits, 1, "apart"), (16 * (bits % 3 + 1), 3, "order")):
        count = min(count, 2) if name == SLOW else count
        images = 2 * (bits % 2)
        maps, constants = make(batch, height, width, count, channels, state, bits, kind, way == "apart", images)
        how = {"directions": DIRECTIONS[:count], "merge": way != "apart"}
        if way == "order":
            paths = [torch.randperm(height * width) for _ in range(count)]
            how = {"order": torch.stack(paths), "merge": bits % 2 == 0}
        got = scanned(maps, constants, device=device_for(name), **how)
        assert error(got, scanned(maps, constants, torch.float64, **how)) < TOLERANCE


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 9)),
    channels=st.integers(1, 70),
    state=st.integers(1, 64),
    bits=st.integers(1, 8),
    x_bits=st.integers(1, 8),
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 4),
    apart=st.booleans(),
    merge=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(size, channels, state, bits, x_bits, kind, count, apart, merge, seed):
    maps, constants = make(*size, count, channels, state, bits, kind, apart, seed=seed, x_bits=x_bits)
    how = {"directions": DIRECTIONS[:count], "merge": merge}
    want = scanned(maps, constants, torch.float64, **how)
    if not libraries():
        assert error(scanned(maps, constants, **how), want) < TOLERANCE
    for name in libraries():
        with in_use(name):
            assert error(scanned(maps, constants, **how), want) < TOLERANCE, name


@pytest.mark.parametrize("softplus", [True, False])
def test_the_definition_is_the_ordinary_scan_on_the_grid(softplus):
    (x, delta, b, c), (rates, skip, bias) = make(2, 4, 5, 4, 6, 3, bits=5)
    if not softplus:
        bias = torch.full_like(bias, 4.0)  # dt must not be negative
    exact = [t.double() for t in (rates, skip, bias)]
    tables = build_tables(delta.grid.double(), delta.bits, exact[0], exact[2], softplus)
    values = [dequantize(t, torch.float64) for t in (x, delta, b, c)]
    want = ss2d_scan(values[0], values[1], exact[0], *values[2:], exact[1], exact[2], softplus)
    assert error(table_scan(x, delta, tables, b, c, exact[1]), want) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_values_enter_their_grids_as_in_an_integer_network(use_backend, name):
    """With C = 0 and D = 1 the scan gives the values of x."""
    use_backend("table_scan", name)
    grid, bits = torch.tensor([0.3, 0.17, -3.0, 6.0]), 4
    x = torch.randn(1, 16, 16, 20) * 2
    x[..., 0] = (torch.arange(256).view(16, 16) / 2 - 60) * grid[0] - grid[1]  # borders of codes
    x = x[:, 7:8] if name == SLOW else x
    step, shift, low, high = grid[0], grid[1], grid[0] * grid[2], grid[0] * grid[3]
    codes = integer.quantize(x, step, shift, (low, high), torch.zeros((), dtype=torch.int8), 8)
    pixels = x.shape[:3]
    nothing, ones = OnGrid(torch.zeros(*pixels, 1, 1)), torch.ones(1, 20)
    delta = OnGrid(torch.zeros(*pixels, 1, 20, dtype=torch.uint8), torch.tensor([1.0, 0, -1, 0]), 1)
    tables = empty_tables(1, 1, 20, 1, 1)
    tables.decays.zero_(), tables.steps.zero_()
    given = (OnGrid(x, grid, bits), OnGrid((codes.data + 8).to(torch.uint8), grid, bits))
    want = integer.dequantize(codes)
    device = device_for(name)
    tables = tables._replace(decays=tables.decays.to(device), steps=tables.steps.to(device))
    for operand_ in given:
        got = table_scan(*moved((operand_, delta), device), tables, *moved((nothing, nothing, ones), device), ("row",))
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("name", NAMES)
def test_slices_of_wider_rows_and_given_memory(use_backend, nan_memory, name):
    use_backend("table_scan", name)
    (x, delta, b, c), constants = make(2, 4, 3, 2, 9, 5)
    device = device_for(name)
    x, delta, b, c = moved((x, delta, b, c), device)
    want = scanned((x, delta, b, c), constants, device=device, directions=("col", "row_rev"))
    wide = torch.cat((b.data, c.data, b.data), -1)
    sliced = b._replace(data=wide[..., :5]), c._replace(data=wide[..., 5:10])
    rows = x._replace(data=torch.cat((x.data, x.data), -1)[..., 9:])
    out = torch.empty_like(want)
    got = scanned((rows, delta, *sliced), constants, device=device, directions=("col", "row_rev"), out=out)
    assert got is out
    assert torch.equal(out, want)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("native")])
def test_bits_do_not_depend_on_threads(use_backend, name):
    use_backend("table_scan", name)
    maps, constants = make(2, 6, 5, 4, 70, 10)
    before = torch.get_num_threads()
    try:
        for merge in (True, False):
            torch.set_num_threads(1)
            one = scanned(maps, constants, merge=merge)
            torch.set_num_threads(3)
            assert torch.equal(scanned(maps, constants, merge=merge), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_slow_decays_keep_their_digits(use_backend, name):
    """dt A of 1e-6: exp of it, rounded to a number next to 1, would be wrong in the second digit."""
    use_backend("table_scan", name)
    (x, delta, b, c), (rates, skip, bias) = make(1, 1, 70 if name == SLOW else 1500, 1, 3, 2)
    b, c = (OnGrid(dequantize(t).abs()) for t in (b, c))
    maps, constants = (OnGrid(dequantize(x).abs()), delta, b, c), (rates.sign(), skip, bias * 0 - 14)
    how = {"directions": ("row",)}
    got = scanned(maps, constants, device=device_for(name), **how)
    assert error(got, scanned(maps, constants, torch.float64, **how)) < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_scan_of_a_layer(bits, frozen):
    (x, delta, b, c), (rates, skip, bias) = make(1, 5, 6, 4, 11, 10, bits)
    scan = CodeScan(rates, bias, skip, bits, frozen=frozen)
    other = x._replace(data=x.data.flip(1)), delta._replace(data=delta.data.flip(2)), b, c
    if not frozen:
        other = other[0], other[1]._replace(grid=delta.grid * torch.tensor([1.3, 1, 1, 1])), *other[2:]
    order = named_order(DIRECTIONS, 5, 6)
    for maps in ((x, delta, b, c), other, (x, delta, b, c)):
        want = scanned(maps, (rates, skip, bias), torch.float64)
        out = torch.empty(1, 5, 6, 11)
        assert scan(*maps, out=out) is out
        assert error(out, want) < TOLERANCE
        assert error(scan(*maps, order=order), want) < TOLERANCE
        assert error(scan(*maps, merge=False).sum(3), want) < TOLERANCE


@pytest.mark.skipif(not libraries(), reason="the CPU kernels are not built")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("frozen", [True, False])
def test_prepared_for_tensors_that_are_written_anew(frozen, bits, threads, monkeypatch):
    """Each call scans what the tensors hold then, whatever the number of maps is that the directions are shared by."""
    monkeypatch.delenv(ENV, raising=False)
    shape = (1, 5, 6, 4, 11, 10, bits)
    maps, constants = make(*shape)
    (rates, skip, bias), order = constants, named_order(DIRECTIONS, 5, 6).int().contiguous()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        scan, calls = CodeScan(rates, bias, skip, bits, frozen=frozen), []
        for parts, by_order in ((1, False), (2, False), (3, True), (4, False)):
            out = torch.full((parts, 1, 5, 6, 11), torch.nan)
            calls.append((scan.prepared(*maps, order=order if by_order else None, out=out), out))
        for seed in (1, 2):
            (other, _) = make(*shape, seed=seed)
            for held, values in zip(maps, other, strict=True):
                held.data.copy_(values.data)
            if not frozen:
                maps[1].grid.mul_(torch.tensor([1.1, 1, 1, 1]))
            want = scanned(maps, constants, torch.float64)
            for steps, out in calls:
                for step in steps:
                    step()
                assert error(out.sum(0), want) < TOLERANCE
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not libraries(), reason="the CPU kernels are not built")
def test_prepared_refuses_what_does_not_fit(monkeypatch):
    monkeypatch.delenv(ENV, raising=False)
    maps, (rates, skip, bias) = make(1, 2, 8, 4, 5, 6)
    scan, order = CodeScan(rates, bias, skip, 4, frozen=True), named_order(DIRECTIONS, 2, 8).int().contiguous()
    for parts, wrong in ((5, None), (0, None), (1, order.long()), (1, order[:3]), (1, order.t().contiguous().t())):
        with pytest.raises(ValueError, match=r"out must be|order must be|must have shape"):
            scan.prepared(*maps, order=wrong, out=torch.empty(parts, 1, 2, 8, 5))
    steps = scan.prepared(*maps, order=order, out=torch.empty(1, 1, 2, 8, 5))
    order[0, 0] = order[0, 1]  # written to after it was looked at
    with pytest.raises(ValueError, match="refuse"):
        for step in steps:
            step()


@pytest.mark.skipif(not libraries(), reason="the CPU kernels are not built")
def test_prepared_where_tables_do_not_pay(monkeypatch):
    monkeypatch.delenv(ENV, raising=False)
    maps, constants = make(1, 2, 3, 4, 5, 6, 8)
    (rates, skip, bias), out = constants, torch.full((2, 1, 2, 3, 5), torch.nan)
    (scan,) = CodeScan(rates, bias, skip, 8).prepared(*maps, out=out)
    scan()
    assert error(out.sum(0), scanned(maps, constants, torch.float64)) < TOLERANCE


def test_what_does_not_fit_is_named():
    (x, delta, b, c), (rates, skip, bias) = make(1, 2, 3, 4, 5, 6)
    tables = build_tables(delta.grid, 4, rates, bias)
    for changed, message in (
        ((x, delta._replace(data=delta.data[..., :4]), tables, b, c, skip), r"delta must have shape .*5\).*4\)"),
        ((x, delta, tables, b, c._replace(data=c.data[..., :3]), skip), "C must have shape"),
        ((x, delta, tables, b, c, skip[:2]), "D must have shape"),
        ((x, delta._replace(bits=5), tables, b, c, skip), "tables.steps must have shape"),
        ((x, delta, tables._replace(bits=3), b, c, skip), "do not fit"),
        ((x._replace(grid=x.grid.repeat(3)), delta, tables, b, c, skip), "grid of shape"),
        ((x._replace(bits=9), delta, tables, b, c, skip), "9 bits"),
    ):
        with pytest.raises(ValueError, match=message):
            table_scan(*changed)
    for wrong in (delta._replace(grid=None), delta._replace(data=delta.data.to(torch.int16))):
        with pytest.raises(TypeError, match="delta"):
            table_scan(x, wrong, tables, b, c, skip)
    for order, message in ((torch.zeros(4, 6, dtype=torch.int64), "permutation"), (torch.zeros(3, 6), "order must be")):
        with pytest.raises(ValueError, match=message):
            table_scan(x, delta, tables, b, c, skip, order=order)
    with pytest.raises(ValueError, match="not both"):
        table_scan(x, delta, tables, b, c, skip, DIRECTIONS, order=named_order(DIRECTIONS, 2, 3))
    with pytest.raises(ValueError, match="out must be contiguous"):
        table_scan(x, delta, tables, b, c, skip, out=torch.empty(1, 2, 3, 4))
    with pytest.raises(ValueError, match="1 to 8 bits"):
        build_tables(delta.grid, 9, rates, bias)
    with pytest.raises(ValueError, match="delta_bias must have shape"):
        build_tables(delta.grid, 4, rates, bias[:2])


@pytest.mark.skipif(not libraries(), reason="the CPU kernels are not built")
def test_tables_are_made_where_they_pay(monkeypatch):
    monkeypatch.delenv(ENV, raising=False)
    like = torch.empty(1)
    assert pays(8, 64, True, like) and pays(4, 64, False, like) and pays(8, 1024, False, like)
    assert not pays(8, 256, False, like)
    monkeypatch.setenv(ENV, "reference")
    assert not pays(4, 4096, True, like)


def test_shapes_of_tables():
    assert [table_levels(b) for b in (1, 4, 5, 8)] == [16, 16, 32, 256]
    assert [table_row(n) for n in (1, 4, 5, 8, 9, 16, 17, 64, 256)] == [4, 4, 8, 8, 16, 16, 32, 64, 256]


def test_float64_tables_run_the_definition(monkeypatch):
    monkeypatch.delenv(ENV, raising=False)
    assert choose("table_scan", BACKENDS, torch.empty(1, dtype=torch.float64)).__name__.endswith("reference")
