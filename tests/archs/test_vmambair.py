"""VmambaIR's four networks: sizes, the scan of the channels, options. Their numbers: test_published_networks.py."""

from __future__ import annotations

import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr.archs.vmambair_blocks import ChannelScan, OmniScan
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.sites import network_sites
from qmambair_basicsr.ops.ss2d_scan.naive import recurrence

SCALE = {"MambaSISR6": 4, "MambaRealSR11": 4, "Mamber32": 1, "Mamber33": 1}
SMALL = {"dim": 4, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}


@pytest.mark.parametrize("name", SCALE)
def test_sizes_residual_and_parameters(name):
    net = build_network({"type": name, **SMALL})
    x = torch.rand(2, 3, 8, 16)
    out = net(x)
    assert out.shape == (2, 3, 8 * SCALE[name], 16 * SCALE[name])
    out.square().mean().backward()
    unused = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [key for key in unused if "conv_cout.bias" not in key] == []  # the norm behind it takes a constant away
    last = net.tail[1] if SCALE[name] > 1 else net.output
    for parameter in last.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(net(x), x.repeat_interleave(SCALE[name], 2).repeat_interleave(SCALE[name], 3))


@pytest.mark.parametrize("name", SCALE)
def test_variant_is_the_network_of_that_name(name):
    named, chosen = (
        build_network({"type": name, **SMALL}),
        build_network({"type": "VmambaIR", "variant": name, **SMALL}),
    )
    chosen.load_state_dict(named.state_dict())
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(chosen(x), named(x))
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in build_network(o).parameters())
            for o in ({"type": name}, {"type": "VmambaIR", "variant": name})
        ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", SCALE)
def test_every_variant_is_quantized(name):
    kinds = {kind: {"type": "LSQ", "bits": 4} for kind in ("weight", "act", "scan")}
    net = build_network({"type": "QVmambaIR", "variant": name, **SMALL, "quant": kinds})
    x = torch.rand(1, 3, 8, 8)
    calibrate(net, [x])
    assert net(x).shape[-1] == 8 * SCALE[name]
    names = {p.site.name.removeprefix("latent.0.attn.") for p in network_sites(net) if p.site.owner == "latent.0.attn"}
    assert {
        "x_proj",
        "dt_projs",
        "u",
        "A",
        "xc_proj",
        "dtc_projs",
        "channel_u",
        "channel_A",
        "channel_dt_bias",
    } <= names


@pytest.mark.parametrize("shape", [(1, 3, 12, 8), (1, 1, 8, 8), (3, 8, 8)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"multiples of 8.*got \("):
        build_network({"type": "Mamber33", **SMALL})(torch.rand(shape))


@pytest.mark.parametrize("width", [None, 3])
def test_channels_are_scanned_both_ways(width):
    """The gate once more, from the plain recurrence over the sequence of channel means."""
    block = OmniScan(6, ChannelScan(width), bias_norm=True).double()
    y = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    means = y.mean((1, 2))  # (B, C)
    u = means[:, None] if width is None else block.conv_cin(means[:, None, None]).squeeze(2)  # (B, d, C)
    total = 0
    for k in range(2):
        given = u.flip(2) if k else u
        projected = torch.einsum("bdl,rd->brl", given, block.xc_proj_weight[k])
        dt, b, c = projected.split((block.channel_rank, 16, 16), 1)
        delta = torch.einsum("brl,dr->bdl", dt, block.dtc_projs_weight[k])
        decay = -block.Ac_logs.view(2, -1, 16)[k].exp()
        skip, bias = block.Dsc.view(2, -1)[k], block.dtc_projs_bias[k]
        one = [t[:, None] for t in (given, delta, b, c)]
        scanned, _ = recurrence(one[0], one[1], decay[None], one[2], one[3], skip[None], bias[None])
        total = total + (scanned[:, 0].flip(2) if k else scanned[:, 0])
    summed = total[:, 0] if width is None else block.conv_cout(total[:, :, None])[:, 0, 0]
    torch.testing.assert_close(block.scan_channels(y).flatten(1), block.channel_norm(summed))


def test_gates_multiply_or_add():
    x = torch.rand(1, 4, 5, 6)
    for additive in (False, True):
        block = OmniScan(6, ChannelScan(2, additive), bias_norm=True)
        block.out_conv = torch.nn.Identity()
        gated = block(x)
        block.scan_channels = lambda y: torch.zeros(1, 1, 1, 6)
        plain = block(x)
        block.scan_channels = lambda y: torch.ones(1, 1, 1, 6)
        torch.testing.assert_close(block(x), plain + 1 if additive else 2 * plain)
        assert not torch.allclose(gated, plain)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("MambaSISR6", {"scale": 2}, "MambaSISR6: scale must be 4, got 2"),
        ("Mamber32", {"LayerNorm_type": "none"}, "LayerNorm_type must be 'WithBias' or 'BiasFree', got 'none'"),
        ("VmambaIR", {"variant": "Mamber3"}, "unknown variant 'Mamber3' .did you mean 'Mamber33'"),
        (
            "VmambaIR",
            {"variant": "MambaSISR6", "dual_pixel_task": True},
            "dual_pixel_task is for restoration at the same",
        ),
        ("Mamber33", {"layernorm_type": "WithBias"}, "unknown option 'layernorm_type'.*did you mean 'LayerNorm_type'"),
    ],
)
def test_wrong_options_are_named(name, option, message):
    with pytest.raises(ValueError, match=message):
        build_network({"type": name, **SMALL, **option})
