"""Passes between integer operators: every step against plain PyTorch, codes equal for the same grid, for every instruction set."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from instruction_sets import in_use, libraries
from torch import nn

from qmambair_basicsr.ops.dls.reference import grid as dls_grid
from qmambair_basicsr.ops.dls.reference import statistics as dls_statistics
from qmambair_basicsr.ops.glue.native import Codes8, DeltaWeights, Rule, delta, is_available, rows

pytestmark = pytest.mark.skipif(not is_available()[0], reason=is_available()[1])
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "sigmoid": torch.sigmoid, None: lambda x: x}
SHAPES = [(1, 1), (3, 7), (17, 16), (37, 60), (64, 72), (5, 97), (3, 720), (200, 40)]


@pytest.fixture(params=list(libraries()) or ["none"], autouse=True)
def instructions(request):
    with in_use(request.param):
        yield request.param


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3


def coded(x, grid):
    """Codes as the reference of ``ops/integer`` computes them."""
    step, shift, low, high = grid
    return ((x + shift) / step).clamp(low, high).round()


def bytes_for(count, columns, grid, zero=8, width=None):
    data = torch.full((count, columns if width is None else width), 255, dtype=torch.uint8)[:, :columns]
    return Codes8(data, grid, zero)


GRID = torch.tensor([0.31, 0.2, -8.0, 7.0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", [None, "silu", "gelu", "sigmoid"])
def test_activations_codes_and_statistics(shape, activation):
    x = values(*shape)
    out, statistics = torch.full(shape, torch.nan), torch.full((4,), torch.nan)
    codes, second = bytes_for(*shape, GRID), bytes_for(*shape, GRID * 0.7, 128)
    rows(x, activation=activation, out=out, codes=codes, codes2=second, statistics=statistics)()
    error = (out - ACTIVATIONS[activation](x)).abs()  # that of 1 + erf is absolute, and GELU multiplies it by x
    assert bool((error <= 3e-7 * x.abs() + 2e-6 * out.abs() + 1e-7).all())
    assert torch.equal(codes.data, (coded(out, GRID) + 8).to(torch.uint8))
    assert torch.equal(second.data, (coded(out, GRID * 0.7) + 128).to(torch.uint8))
    exact = out.double().flatten()
    std = exact.std() if exact.numel() > 1 else exact[0] * 0
    wanted = torch.stack((exact.mean(), std, exact.min(), exact.max())).float()
    assert torch.equal(statistics, wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_residual_sum_norm_and_gate(shape):
    x, added, gate = (values(*shape, seed=i) for i in range(3))
    scale, other_scale = values(shape[1], seed=4), values(shape[1], seed=5)
    norm = nn.LayerNorm(shape[1])
    with torch.no_grad():
        norm.weight.copy_(values(shape[1], seed=6))
        norm.bias.copy_(values(shape[1], seed=7))
        wanted = x * scale + added * other_scale
        normed = norm(wanted) if shape[1] > 1 else norm.bias.expand(shape)
    total, out = x.clone(), torch.full(shape, torch.nan)
    rows(total, scale=scale, added=added, added_scale=other_scale, total=total, norm=norm, out=out)()
    torch.testing.assert_close(total, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out, normed.detach(), rtol=2e-5, atol=2e-5)
    for combine, function in (
        ("multiply", torch.mul),
        ("add", torch.add),
        ("multiply_silu", lambda a, b: a * F.silu(b)),
    ):
        rows(x, other=gate, combine=combine, out=out)()
        torch.testing.assert_close(out, function(x, gate), rtol=2e-6, atol=1e-6)


def test_slices_of_wider_rows():
    wide, target = values(50, 96), torch.full((50, 96), torch.nan)
    codes = bytes_for(50, 40, GRID, width=96)
    rows(wide[:, 16:56], added=wide[:, 56:96], out=target[:, 8:48], codes=codes)()
    assert torch.equal(target[:, 8:48], wide[:, 16:56] + wide[:, 56:96])
    assert target[:, :8].isnan().all() and target[:, 48:].isnan().all()
    assert torch.equal(codes.data, (coded(target[:, 8:48], GRID) + 8).to(torch.uint8))


def test_the_grid_of_dls_and_threads(monkeypatch):
    x = values(3000, 24)
    w, v = torch.tensor([0.1, 0.5, -0.02, 0.03]), torch.tensor([-1.0, 0.1, 0.0, 0.05])
    rule, statistics, grid = Rule(w, v, -8, 7, 1 / 16), torch.zeros(4), torch.zeros(4)
    rows(x, statistics=statistics, rule=rule, new_grid=grid)()
    torch.testing.assert_close(statistics[None], dls_statistics(x.view(1, -1)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grid[None], dls_grid(statistics[None], w, v, -8, 7, 1 / 16), rtol=1e-5, atol=1e-6)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    again = torch.zeros(4)
    rows(x, statistics=statistics, rule=rule, new_grid=again)()
    torch.set_num_threads(before)
    assert torch.equal(again, grid)


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (40, 4, 72, 4), (33, 1, 58, 3), (9, 2, 130, 12)])
@pytest.mark.parametrize("shifted", [False, True])
def test_delta(size, shifted):
    count, directions, channels, rank = size
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-8, 8, (directions, channels, rank), generator=generator, dtype=torch.int8)
    dt = torch.randint(-8, 8, (count, directions, rank), generator=generator)
    grid = torch.tensor([0.13, 0.04, -8.0, 7.0])
    scale, bias = values(directions, channels).abs(), values(directions, channels, seed=1)
    weights = DeltaWeights(codes, scale, None, None, None, bias)
    wanted = torch.einsum("mkr,kdr->mkd", dt.double(), codes.double()) * scale * grid[0].double() + bias
    if shifted:
        factor, sums, ones = (
            values(directions, channels, seed=2),
            values(directions, channels, seed=3),
            values(directions, seed=4),
        )
        weights = weights._replace(factor=factor, sums=sums, ones=ones)
        wanted = wanted - dt.double().sum(-1, keepdim=True) * ones[:, None] * grid[0].double() * factor - grid[1] * sums
    given = Codes8((dt.flatten(1) + 8).to(torch.uint8), grid, 8)
    out = torch.full((count, directions * channels), torch.nan)
    statistics, written = torch.zeros(4), bytes_for(count, directions * channels, GRID)
    delta(given, weights, out=out, codes=written, statistics=statistics)()
    torch.testing.assert_close(out, wanted.flatten(1).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(written.data, (coded(out, GRID) + 8).to(torch.uint8))
    exact = out.double()
    std = exact.std() if exact.numel() > 1 else exact[0, 0] * 0
    torch.testing.assert_close(statistics[:2], torch.stack((exact.mean(), std)).float(), rtol=1e-6, atol=1e-7)
    assert torch.equal(statistics[2:], torch.stack((out.min(), out.max())))


def test_what_does_not_fit_is_refused():
    x = values(4, 8)
    with pytest.raises(ValueError, match="expected dense rows"):
        rows(x, out=torch.zeros(4, 9))
    with pytest.raises(ValueError, match="refuse"):
        rows(values(2, 5000))()
    with pytest.raises(ValueError, match="refuse"):
        rows(x, codes=Codes8(torch.zeros(4, 8, dtype=torch.uint8), GRID, 200))()
