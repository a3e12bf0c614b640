"""EAMamba and EAMambaSR: sizes, heads, options. Their numbers: test_published_networks.py."""

from __future__ import annotations

import pytest
import torch
from basicsr.archs import build_network
from torch import nn

from qmambair_basicsr.archs.eamamba_blocks import AllAroundScan, ChannelNorm, MambaConfig

HEADS = {"scan_type": "diagonal", "scan_count": 4, "d_state": 2}
SMALL = {"type": "EAMambaSR", "dim": 8, "num_blocks": [1, 2], "mamba_cfg": HEADS}
UNET = {"type": "EAMamba", "dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "mamba_cfg": HEADS}


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 3)])
@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_any_size(size, upscale):
    out = build_network({**SMALL, "upscale": upscale}).eval()(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, size[0] * upscale, size[1] * upscale)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"scan_merge_method": "add"},
        {"scan_type": None, "scan_count": 1},
        {"scan_type": "zigzag", "scan_count": 8, "disable_z_branch": True},
        {"conv_2d": False, "d_conv": 4},
    ],
)
def test_every_parameter_takes_part(change):
    net = build_network({**SMALL, "mamba_cfg": {**HEADS, **change}})
    net(torch.rand(1, 3, 7, 6)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("apart", [True, False])
def test_heads_are_the_scans_of_their_orders(apart):
    """Each head alone, written with named directions: rows, rows backwards, columns, columns backwards."""
    config = MambaConfig(
        scan_count=4, d_state=2, scan_merge_method="concate" if apart else "add", disable_z_branch=True
    )
    block = AllAroundScan(8, config).double()
    block.conv, block.out_norm, block.out_proj = nn.Identity(), nn.Identity(), nn.Identity()
    x = torch.rand(1, 5, 6, 8, dtype=torch.float64)
    got, inner = block(x), nn.functional.silu(block.in_proj(x))
    block.apart = False
    heads = []
    for k, name in enumerate(("row", "row_rev", "col", "col_rev")):
        single = AllAroundScan(8, MambaConfig(scan_type=None, scan_count=1, d_state=2, expand=(2 if apart else 8) / 8))
        single = single.double()
        single.apart, single.directions = False, (name,)
        for parameter in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias"):
            getattr(single, parameter).data = getattr(block, parameter).data[k : k + 1]
        for parameter in ("A_logs", "Ds"):
            getattr(single, parameter).data = getattr(block, parameter).data.unflatten(0, (4, -1))[k]
        u = inner.unflatten(-1, (4, 2))[..., k, :] if apart else inner
        heads.append(single.scan(u, *single.project(u)))
    torch.testing.assert_close(got, torch.cat(heads, -1) if apart else sum(heads))


def test_a_causal_convolution_does_not_look_ahead():
    block = AllAroundScan(8, MambaConfig(conv_2d=False, d_conv=4))
    x = torch.rand(1, 4, 5, 8, requires_grad=True)
    block.convolve(x)[0, 2, 1].sum().backward()
    seen = x.grad[0].abs().sum(-1).flatten().nonzero().flatten().tolist()
    assert seen == [8, 9, 10, 11]


def test_norm_without_bias_keeps_the_mean():
    x = torch.randn(3, 8, dtype=torch.float64) + 5
    norm = ChannelNorm(8, bias=False).double()
    torch.testing.assert_close(norm(x), x / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt())
    assert [*norm.state_dict()] == ["body.weight"]


def test_the_released_default_carries_a_convolution_without_use():
    plain, released = build_network({**UNET, "upscale": 1}).eval(), build_network(UNET).eval()
    assert {*released.state_dict()} - {*plain.state_dict()} == {"upsample.0.weight", "upsample.0.bias"}
    plain.load_state_dict(released.state_dict(), strict=False)
    x = torch.rand(1, 3, 8, 16)
    assert torch.equal(plain(x), released(x))
    torch.nn.init.zeros_(plain.output.weight)
    assert torch.equal(plain(x), x)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"ffn_expansion": 1.0}, "unknown option 'ffn_expansion'.*did you mean 'ffn_expansion_factor'"),
        ({"mamba_cfg": {"scan_typ": None}}, "mamba_cfg: unknown key 'scan_typ'.*did you mean 'scan_type'"),
        ({"mamba_cfg": {"scan_type": None, "scan_count": 8}}, "scan_type must be one of .* got None and 8"),
        ({"mamba_cfg": {"scan_merge_method": "sum"}}, "must be 'concate' or 'add', got 'sum'"),
        ({"mamba_cfg": {**HEADS, "scan_count": 8, "expand": 1.5}}, "scan_count 8 must divide the 12 inner channels"),
        ({"mamba_cfg": {"d_conv": 4}}, "d_conv must be odd"),
        ({"channel_mixer_type": "CCA"}, "channel_mixer_type must be one of 'Simple', 'GDFN', got 'CCA'"),
        ({"layernorm_type": "none"}, "layernorm_type must be"),
    ],
)
def test_wrong_options_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        build_network({**SMALL, **option})
