"""Sums of products of codes are exact, whatever the codes are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qmambair_basicsr.ops import integer
from qmambair_basicsr.ops.integer import Codes


def random_codes(shape, bits, seed):
    """Codes of full range; the first half are all the lowest, which gives the largest sums."""
    generator = torch.Generator().manual_seed(seed)
    bound = 2 ** (bits - 1)
    data = torch.randint(-bound, bound, shape, generator=generator).to(torch.int8)
    data[: shape[0] // 2] = -bound
    return Codes(data, torch.tensor(1.0), None, bound, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("terms", [1, 63, 5000])
def test_products_of_matrices(bits, terms, dtype):
    a, b = random_codes((6, terms), bits, 0), random_codes((4, terms), bits, 1)
    a, b = (t._replace(step=t.step.to(dtype)) for t in (a, b))
    exact = a.data.long() @ b.data.long().t()
    assert torch.equal(integer.linear(a, b), exact.to(dtype))
    assert torch.equal(integer.matmul(a, b._replace(data=b.data.t())), exact.to(dtype))
    assert torch.equal(integer.total(a, -1), a.data.long().sum(-1, keepdim=True).to(dtype))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("channels", "out", "groups", "kernel", "geometry"),
    [
        (24, 8, 1, 3, ((1, 1), (1, 1), (1, 1))),
        (12, 12, 12, 3, ((1, 1), (2, 2), (2, 2))),
        (8, 6, 2, 5, ((2, 1), (2, 0), (1, 1))),
        (40, 5, 1, 1, ((1, 1), (0, 0), (1, 1))),
    ],
)
def test_convolutions(channels, out, groups, kernel, geometry, bits, channels_last):
    x, w = random_codes((2, channels, 9, 11), bits, 0), random_codes((out, channels // groups, kernel, kernel), bits, 1)
    exact = F.conv2d(x.data.double(), w.data.double(), None, *geometry, groups)
    assert exact.abs().amax() < 2**53
    if channels_last:
        x = x._replace(data=x.data.contiguous(memory_format=torch.channels_last))
    got = integer.conv2d(x, w._replace(step=torch.full((out,), 0.5)), torch.ones(out), geometry, groups)
    assert torch.equal(got.double(), (0.5 * exact).float().double() + 1)


def test_grids():
    x = torch.tensor([-9.0, -1.26, -0.24, 0.26, 1.0, 9.0])
    step, zero = torch.tensor(0.5), torch.tensor(0, dtype=torch.int8)
    q = integer.quantize(x, step, torch.tensor(0.25), (torch.tensor(-1.0), torch.tensor(1.5)), zero, 4)
    assert q.data.tolist() == [-2, -2, 0, 1, 2, 3] and q.data.dtype == torch.int8
    assert integer.dequantize(q).tolist() == [-1.25, -1.25, -0.25, 0.25, 0.75, 1.25]
    assert integer.quantize(1000 * x, step, None, None, zero, 128).data.tolist() == [-128, -128, -128, 127, 127, 127]
    assert integer.dequantize(x) is x
    rows = integer.constant(torch.ones(3, 2, 1, dtype=torch.int8), torch.tensor([1.0, 2.0, 3.0]), zero, 0, 2)
    assert integer.dequantize(rows).flatten().tolist() == [1, 1, 2, 2, 3, 3]


def test_grids_of_samples_are_cut_with_their_codes():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64) * torch.tensor([1.0, 30.0]).view(-1, 1, 1, 1)

    def grid(statistics):
        mean, _, low, high = statistics.unbind(1)
        return torch.stack(((high - low) / 15, -mean, torch.full_like(mean, -8), torch.full_like(mean, 7)), 1)

    q = integer.quantize_rows(x, grid, True, 8)
    part = q.select(-2, 1)
    assert part.step.shape == (2, 1, 1) and q.step[1] > 5 * q.step[0]
    torch.testing.assert_close(integer.dequantize(part), integer.dequantize(q)[..., 1, :])
    assert integer.quantize_rows(x, grid, False, 8).step.shape == ()
