"""Networks of BasicSR where BasicSR cannot build them by itself."""

from __future__ import annotations

import inspect

import pytest
import torch
from basicsr.archs.swinir_arch import SwinIR

from qmambair_basicsr import compat_networks

SMALL = {"embed_dim": 12, "depths": [2, 1], "num_heads": [2, 2], "window_size": 8, "upscale": 2}


def test_swinir_has_shapes_without_values(monkeypatch):
    ours = SwinIR.__init__
    assert compat_networks.swinir_without_values() is False and SwinIR.__init__ is ours
    with torch.device("meta"):
        net = SwinIR(**SMALL, upsampler="pixelshuffledirect")
        assert {p.device.type for p in net.parameters()} == {"meta"}
        assert net(torch.empty(1, 3, 16, 24)).shape == (1, 3, 32, 48)
    plain = dict(ours.__globals__, torch=torch)  # the constructor as BasicSR has it
    monkeypatch.setattr(
        SwinIR, "__init__", type(ours)(ours.__code__, plain, "__init__", ours.__defaults__, ours.__closure__)
    )
    with pytest.raises(RuntimeError, match="meta"), torch.device("meta"):
        SwinIR(**SMALL)
    assert inspect.signature(SwinIR.__init__) == inspect.signature(ours)


def test_its_rates_are_basicsrs():
    rates = [
        getattr(block.drop_path, "drop_prob", 0)
        for layer in SwinIR(**SMALL).layers
        for block in layer.residual_group.blocks
    ]
    assert rates == pytest.approx([0, 0.05, 0.1])
