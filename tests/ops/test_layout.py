"""Quantizers keep the memory layout of a map."""

from __future__ import annotations

import pytest
import torch

from qmambair_basicsr.ops.layout import stored_channels_last
from qmambair_basicsr.ops.lsq import lsq
from qmambair_basicsr.quantizers import QUANTIZER_REGISTRY, QuantizerSpec, Site, build_quantizer

KEEP_LAYOUT = ("Identity", "MinMax", "LSQ", "LSQOffset", "DLS")


def channels_last(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def test_recognises_channels_last_maps():
    assert stored_channels_last(channels_last(2, 3, 4, 5))
    assert stored_channels_last(channels_last(2, 3, 4, 5)[:, :2])
    assert not stored_channels_last(torch.randn(2, 3, 4, 5))
    assert not stored_channels_last(torch.randn(2, 1, 4, 5))
    assert not stored_channels_last(torch.randn(2, 3, 4, 5)[:, ::2])
    assert not stored_channels_last(torch.randn(2, 3, 4))


@pytest.mark.parametrize("kind", KEEP_LAYOUT)
def test_a_slice_of_the_channels_becomes_a_channels_last_map(kind):
    """The depthwise convolution of SS2D gets one half of a projection's channels."""
    x = channels_last(2, 6, 4, 5)[:, :3]
    quantizer = build_quantizer(QuantizerSpec(kind, 32 if kind == "Identity" else 4), Site())
    quantizer.init_from(x)
    out = quantizer(x)
    assert out.is_contiguous(memory_format=torch.channels_last) or kind == "Identity"
    torch.testing.assert_close(out, quantizer(x.contiguous()))


@pytest.mark.parametrize("kind", [k for k, q in QUANTIZER_REGISTRY.items() if k != "RFA" and "act" in q.roles])
def test_layout_does_not_change_the_result(kind):
    cls = QUANTIZER_REGISTRY[kind]
    modes = cls.options["mode"].choices if "mode" in cls.options else (None,)
    for mode in modes:
        spec = QuantizerSpec(kind, 4 if 4 in cls.bit_widths else 32, {} if mode is None else {"mode": mode})
        results = []
        x = channels_last(2, 3, 4, 5)
        for start in (x, x.contiguous()):
            quantizer = build_quantizer(spec, Site.of_act(3, 1))
            quantizer.init_from(start)
            start = start.clone().requires_grad_()
            out = quantizer(start)
            assert out.stride() == start.stride() or kind not in KEEP_LAYOUT
            out.square().sum().backward()
            results.append([out, start.grad, *(p.grad for p in quantizer.parameters() if p.requires_grad)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -3])
def test_parameters_per_slice_follow_the_dimension(dim):
    x = channels_last(2, 3, 4, 5).double()
    scale = torch.rand(x.shape[dim], dtype=torch.float64) + 0.1
    out = lsq(x, scale, qmin=-4, qmax=3, dim=dim)
    assert out.stride() == x.stride()
    torch.testing.assert_close(out, lsq(x.contiguous(), scale, qmin=-4, qmax=3, dim=dim))
