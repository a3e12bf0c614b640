"""MambaIRUNet: key names, sizes, residual structure, quantized form."""

from __future__ import annotations

import re

import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.checkpoints import load_fp_state
from qmambair_basicsr.layers import QuantConv2d, QuantLinear
from qmambair_basicsr.layers.info import network_info

SMALL = {"dim": 32, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "d_state": 2, "mlp_ratio": 1.0}
LEVELS = {  # level -> (channels / dim, index in num_blocks)
    "encoder_level1": (1, 0),
    "encoder_level2": (2, 1),
    "encoder_level3": (4, 2),
    "latent": (8, 3),
    "decoder_level3": (4, 2),
    "decoder_level2": (2, 1),
    "decoder_level1": (2, 0),
    "refinement": (2, None),
}
OUTSIDE = {  # shapes in units of dim = 48 written out
    "patch_embed.proj.weight": (48, 3, 3, 3),
    "down1_2.body.0.weight": (24, 48, 3, 3),
    "down2_3.body.0.weight": (48, 96, 3, 3),
    "down3_4.body.0.weight": (96, 192, 3, 3),
    "up4_3.body.0.weight": (768, 384, 3, 3),
    "reduce_chan_level3.weight": (192, 384, 1, 1),
    "up3_2.body.0.weight": (384, 192, 3, 3),
    "reduce_chan_level2.weight": (96, 192, 1, 1),
    "up2_1.body.0.weight": (192, 96, 3, 3),
    "output.weight": (3, 96, 3, 3),
}


def test_default_network_has_the_published_names():
    with torch.device("meta"):
        net = build_network({"type": "MambaIRUNet"})
    state = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    levels = "|".join(LEVELS)
    outside = {key: shape for key, shape in state.items() if not re.match(rf"({levels})\.\d+\.", key)}
    assert outside == OUTSIDE
    for name, (factor, index) in LEVELS.items():
        depth = 4 if index is None else (4, 6, 6, 8)[index]
        assert len({key.split(".")[1] for key in state if key.startswith(f"{name}.")}) == depth
        channels = 48 * factor
        inner = int(1.5 * channels)
        assert state[f"{name}.0.self_attention.A_logs"] == (4 * inner, 16)
        assert state[f"{name}.0.self_attention.in_proj.weight"] == (2 * inner, channels)
        assert state[f"{name}.0.conv_blk.cab.0.weight"] == (channels // 3, channels, 3, 3)
        assert state[f"{name}.0.conv_blk.cab.3.attention.1.weight"] == (channels // 30, channels, 1, 1)
        assert state[f"{name}.0.skip_scale2"] == (channels,)


def test_output_is_a_residual_on_the_input():
    net = build_network({"type": "MambaIRUNet", **SMALL}).eval()
    x = torch.rand(2, 3, 8, 16)
    assert net(x).shape == x.shape
    assert not torch.equal(net(x), x)
    torch.nn.init.zeros_(net.output.weight)
    assert torch.equal(net(x), x)


def test_every_parameter_takes_part():
    net = build_network({"type": "MambaIRUNet", **SMALL})
    net(torch.rand(1, 3, 16, 16)).square().mean().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # the ReLU of a channel attention with one hidden channel may be off at random weights
    assert [name for name in unused if ".attention." not in name] == []


def test_dual_pixel_task_skips_from_the_embedding():
    net = build_network({"type": "MambaIRUNet", **SMALL, "inp_channels": 6, "dual_pixel_task": True})
    assert net(torch.rand(1, 6, 8, 8)).shape == (1, 3, 8, 8)
    assert net.skip_conv.weight.shape == (64, 32, 1, 1)


def test_checkpointing_changes_nothing():
    plain = build_network({"type": "MambaIRUNet", **SMALL})
    saving = build_network({"type": "MambaIRUNet", **SMALL, "use_checkpoint": True})
    saving.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 8, 8)
    for net in (plain, saving):
        net(x).square().mean().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("shape", [(1, 3, 12, 8), (1, 3, 8, 0), (1, 1, 8, 8), (3, 8, 8)])
def test_other_inputs_are_refused(shape):
    net = build_network({"type": "MambaIRUNet", **SMALL})
    with pytest.raises(ValueError, match=r"multiples of 8.*got \("):
        net(torch.rand(shape))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_blocks": [1, 1]}, r"num_blocks must have 4 entries, got \[1, 1\]"),
        ({"out_channels": 1}, r"out_channels \(1\) must equal inp_channels \(3\)"),
        ({"embed_dim": 48}, "unknown option 'embed_dim'"),
    ],
)
def test_wrong_options_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        build_network({"type": "MambaIRUNet", **SMALL, **option})


def test_quantized_form():
    quant = {
        "weight": {"type": "RFA", "bits": 4},
        "act": {"type": "LSQOffset", "bits": 4},
        "scan": {"type": "DLS", "bits": 4},
    }
    full = build_network({"type": "MambaIRUNet", **SMALL})
    net = build_network({"type": "QMambaIRUNet", **SMALL, "quant": quant})
    assert network_info(net).size_multiple == 8
    load_fp_state(net, full.state_dict())
    quantized = {name for name, m in net.named_modules() if isinstance(m, QuantLinear | QuantConv2d)}
    plain = {name for name, m in net.named_modules() if type(m) in (torch.nn.Linear, torch.nn.Conv2d)}
    assert all(name in ("patch_embed.proj", "output") or ".attention." in name for name in plain)
    assert {"down1_2.body.0", "up4_3.body.0", "reduce_chan_level2", "latent.0.self_attention.out_proj"} <= quantized
    x = torch.rand(1, 3, 8, 8)
    calibrate(net, [x])
    out = net(x)
    out.square().mean().backward()
    assert out.isfinite().all()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
