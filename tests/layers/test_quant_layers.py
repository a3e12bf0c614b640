"""Quantized layers and networks: arithmetic, gradients, cached weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from basicsr.archs import build_network
from torch import nn

from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers import QuantConv2d, QuantLinear, QuantMatMul
from qmambair_basicsr.quantizers import QUANTIZER_REGISTRY, QuantizerSpec, Site, UncalibratedError, build_quantizer

LIGHT = {
    "type": "QMambaIR",
    "embed_dim": 30,
    "depths": [1, 1],
    "d_state": 3,
    "mlp_ratio": 1.2,
    "drop_path_rate": 0.0,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}


def quantizer(kind="LSQ", bits=4, role="act", channels=None, channel_dim=None):
    return build_quantizer(QuantizerSpec(kind, bits), Site.of_role(role, channels, channel_dim))


def pair(channels_out, channels_in, channel_dim):
    return quantizer(role="weight", channels=channels_out, channel_dim=0), quantizer(
        "LSQOffset", 4, "act", channels_in, channel_dim
    )


def network(kind, bits):
    site = {"type": kind, "bits": bits}
    return build_network({**LIGHT, "quant": {"weight": site, "act": site, "scan": site}})


def test_linear_multiplies_quantized_operands():
    plain = nn.Linear(5, 7)
    layer = QuantLinear.from_float(plain, *pair(7, 5, -1)).train()
    x = torch.randn(3, 2, 5)
    y = layer(x)
    expected = F.linear(layer.act_quantizer(x), layer.weight_quantizer(plain.weight), plain.bias)
    assert torch.equal(y, expected)
    assert layer.weight is plain.weight and layer.bias is plain.bias
    assert not torch.equal(y, plain(x))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"padding": 2, "dilation": 2, "groups": 4},
        {"padding": 1, "padding_mode": "reflect", "bias": False},
    ],
)
def test_conv_keeps_its_geometry(options):
    plain = nn.Conv2d(4, 8, 3, **options)
    layer = QuantConv2d.from_float(plain, *pair(8, 4, 1)).train()
    x = torch.randn(2, 4, 6, 7)
    y = layer(x)
    reference = copy.deepcopy(plain)
    reference.weight.data = layer.weight_quantizer(plain.weight).detach()
    assert torch.equal(y, reference(layer.act_quantizer(x)))
    assert layer.weight is plain.weight and layer.bias is plain.bias


@pytest.mark.parametrize("kind", [k for k, q in QUANTIZER_REGISTRY.items() if k != "Identity" and "act" in q.roles])
def test_conv_keeps_the_memory_format(kind):
    bits = max(b for b in QUANTIZER_REGISTRY[kind].bit_widths if b <= 4)
    layer = QuantConv2d.from_float(
        nn.Conv2d(4, 8, 3, padding=1), quantizer("LSQ", 4, "weight"), quantizer(kind, bits, "act", 4, 1)
    ).train()
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_matmul_quantizes_both_operands():
    layer = QuantMatMul(quantizer(), quantizer()).train()
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    assert torch.equal(layer(a, b), layer.left_quantizer(a) @ layer.right_quantizer(b))


@pytest.mark.parametrize("kind", [k for k, q in QUANTIZER_REGISTRY.items() if k != "Identity" and "act" in q.roles])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_network_trains_with_every_quantizer(kind, bits):
    if bits not in QUANTIZER_REGISTRY[kind].bit_widths:
        pytest.skip(f"{kind} is not defined for {bits} bits")
    net = network(kind, bits)
    x = torch.rand(2, 3, 6, 5)
    calibrate(net, [x])
    assert net.training
    out = net(x)
    out.square().mean().backward()
    assert out.isfinite().all()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
    missing = [name for name, grad in gradients.items() if grad is None]
    assert not missing
    assert all(grad.isfinite().all() for grad in gradients.values())
    weights = [grad for name, grad in gradients.items() if name.endswith(("in_proj.weight", "x_proj_weight", "A_logs"))]
    assert all(grad.abs().sum() > 0 for grad in weights)


def test_checkpointing_changes_nothing():
    quant = {"weight": {"type": "LSQ", "bits": 4}, "act": {"type": "LSQOffset", "bits": 4}}
    plain = build_network({**LIGHT, "quant": quant})
    x = torch.rand(1, 3, 5, 4)
    calibrate(plain, [x])
    saving = build_network({**LIGHT, "quant": quant, "use_checkpoint": True})
    saving.load_state_dict(plain.state_dict())
    for net in (plain, saving):
        net(x).square().mean().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_uncalibrated_network_refuses_to_evaluate():
    net = network("LSQ", 4).eval()
    with pytest.raises(UncalibratedError, match=r"layers\.0\.residual_group\.blocks\.0\.self_attention\.in_proj"):
        net(torch.rand(1, 3, 4, 4))


class TestWeightCache:
    """The quantized weight is computed once per state of the weights."""

    @pytest.fixture
    def layer(self, monkeypatch):
        layer = QuantLinear.from_float(nn.Linear(4, 4), *pair(4, 4, -1))
        layer.weight_quantizer.init_from(layer.weight)
        layer.act_quantizer.init_from(torch.randn(8, 4))
        self.calls = 0
        quantize = type(layer.weight_quantizer).forward

        def counted(this, x):
            self.calls += this.role == "weight"
            return quantize(this, x)

        monkeypatch.setattr(type(layer.weight_quantizer), "forward", counted)
        return layer.eval()

    def run(self, layer):
        with torch.no_grad():
            return layer(torch.ones(1, 4))

    def test_reused_while_nothing_changes(self, layer):
        assert torch.equal(self.run(layer), self.run(layer))
        assert self.calls == 1

    @pytest.mark.parametrize("what", ["weight", "quantizer", "load", "optimizer", "data", "cast"])
    def test_sees_every_change(self, layer, what):
        before = self.run(layer)
        if what == "weight":
            with torch.no_grad():
                layer.weight.mul_(2)
        elif what == "quantizer":
            with torch.no_grad():
                next(layer.weight_quantizer.parameters()).mul_(2)
        elif what == "load":
            layer.load_state_dict({key: value * 2 for key, value in layer.state_dict().items()})
        elif what == "optimizer":
            layer(torch.ones(1, 4)).sum().backward()
            torch.optim.SGD([layer.weight], lr=1.0).step()
        elif what == "data":  # how BasicSR's EMA writes; it calls eval() before testing
            layer.weight.data.mul_(2)
            layer.eval()
        elif what == "cast":
            layer.double()
            with torch.no_grad():
                assert layer(torch.ones(1, 4, dtype=torch.float64)).dtype == torch.float64
            return
        assert not torch.equal(before, self.run(layer))

    def test_not_used_with_gradients(self, layer):
        layer(torch.ones(1, 4)).sum().backward()
        layer(torch.ones(1, 4)).sum().backward()
        assert self.calls == 2
        assert layer.weight.grad.abs().sum() > 0

    def test_copies_do_not_share_it(self, layer):
        before = self.run(layer)
        twin = copy.deepcopy(layer)
        with torch.no_grad():
            twin.weight.mul_(2)
        assert not torch.equal(self.run(twin), before)
        assert torch.equal(self.run(layer), before)

    def test_survives_inference_mode(self, layer):
        with torch.inference_mode():
            first = layer(torch.ones(1, 4))
        assert torch.equal(first, self.run(layer))
        layer(torch.ones(1, 4)).sum().backward()
