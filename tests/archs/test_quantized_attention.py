"""Quantized window attention: the kernels round the probabilities, unless somebody has to see them."""

from __future__ import annotations

import pytest
import torch

from qmambair_basicsr.archs import mambairv2_blocks
from qmambair_basicsr.archs.mambairv2_blocks import WindowAttention
from qmambair_basicsr.archs.windows import relative_position_index, window_plan
from qmambair_basicsr.layers.matmul import QuantMatMul
from qmambair_basicsr.ops.backend import exporting
from qmambair_basicsr.ops.window_attention.rounded import rounds
from qmambair_basicsr.quantizers import DLS, LSQ, Identity, MinMax

BOUNDS = {"q": (-1.5, 1.2), "k": (-2.0, 2.5), "map": (0.0, 0.6), "v": (-2.0, 2.0)}


def attention(bits, kind=MinMax):
    """A module whose four operands are quantized, and what it is given."""
    torch.manual_seed(0)
    module, plan = WindowAttention(24, 4, 2), window_plan(8, 16, 4, 2, torch.device("cpu"))

    def quantizer(name):
        if kind is not MinMax:
            made = kind(bits)
            if kind is not Identity:
                made.init_from(torch.randn(64))
            return made
        made = MinMax(bits, learnable=True)
        made.set_bounds(*(torch.tensor([bound]) for bound in BOUNDS[name]))
        return made

    module.qk_matmul = QuantMatMul(quantizer("q"), quantizer("k"), module.qk_matmul)
    module.av_matmul = QuantMatMul(quantizer("map"), quantizer("v"), module.av_matmul)
    return module.eval(), (torch.randn(1, 128, 72), plan, relative_position_index(4))


def results(module, qkv, *others):
    leaves = {"qkv": qkv.requires_grad_(), **dict(module.named_parameters())}
    out = module(qkv, *others)
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    grads = torch.autograd.grad((out * weight).sum(), list(leaves.values()))
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


@pytest.mark.skipif(not rounds(torch.zeros(1, 128, 72), 16, 2), reason="no native kernels")
def test_the_kernels_give_what_the_composed_way_gives(monkeypatch):
    module, given = attention(8)
    handle = module.av_matmul.left_quantizer.register_forward_hook(lambda *_: None)
    want = results(module, *given)
    handle.remove()
    with monkeypatch.context() as patch:
        patch.setattr(mambairv2_blocks, "windowed", None)
        got = results(module, *given)
    for name, value in want.items():
        # at most a few probabilities of the 4096 are rounded to the other side
        assert (got[name] - value).abs().max() < 2e-3 * value.abs().max(), name


def test_operands_of_32_bits_are_full_precision(monkeypatch):
    """As in the full-precision copies that post-training methods compare with."""
    module, given = attention(32, Identity)
    assert module.full_precision()
    with monkeypatch.context() as patch:
        patch.setattr(mambairv2_blocks, "windowed", None)
        got = module(*given)
    module.qk_matmul.left_quantizer.register_forward_hook(lambda *_: None)
    assert not module.full_precision()
    torch.testing.assert_close(got, module(*given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("who", ["hook", "product", "calibrating", "LSQ", "DLS", "exporting"])
def test_who_has_to_see_the_probabilities_does(who):
    kind = {"LSQ": LSQ, "DLS": DLS}.get(who, MinMax)
    module, (qkv, *_) = attention(4, kind)
    quantizer = module.av_matmul.left_quantizer
    if kind is MinMax and rounds(qkv, 16, 2):
        assert module.map_rounding(qkv, 16) is not None
    if who == "hook":
        module.qk_matmul.right_quantizer.register_forward_pre_hook(lambda *_: None)
    elif who == "product":
        module.av_matmul.register_forward_hook(lambda *_: None)
    elif who == "calibrating":
        quantizer.calibrating = True
    with exporting() if who == "exporting" else torch.no_grad():
        assert module.map_rounding(qkv, 16) is None
