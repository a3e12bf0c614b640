"""any_equal: what comparing gives."""

from __future__ import annotations

import pytest
import torch

from qmambair_basicsr.ops.backend import ENV
from qmambair_basicsr.ops.equality import any_equal


@pytest.mark.parametrize("backend", ["", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 1024, 5000])
def test_finds_the_one_value(size, dtype, backend, monkeypatch):
    monkeypatch.setenv(ENV, backend)
    x = torch.linspace(1, 2, size, dtype=dtype)
    one = torch.ones(1, dtype=dtype)
    assert not any_equal(x, 3 * one, -one)
    for place in {0, size // 2, size - 1}:
        changed = x.clone()
        changed[place] = 3
        assert any_equal(changed, 3 * one, -one) and any_equal(changed, -one, 3 * one)
        changed[place] = float("nan")
        assert not any_equal(changed, 3 * one, float("nan") * one)


def test_any_layout():
    x, one = torch.rand(2, 3, 5, 7), torch.ones(1)
    x[1, 2, 3, 4] = 2
    for given in (x, x.to(memory_format=torch.channels_last), x[:, :, 1:], x.transpose(1, 3)):
        assert any_equal(given, 2 * one, 5 * one)
        assert not any_equal(given, 3 * one, 5 * one)
    assert not any_equal(x[:, :, :2], 2 * one, 5 * one)
