"""MaIR and MaIRUNet: sizes, scan orders of the blocks, options. Their numbers: test_published_networks.py."""

from __future__ import annotations

import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr.archs.mair_blocks import SequenceShuffleAttention, VisualMambaModule

SMALL = {"type": "MaIR", "embed_dim": 8, "depths": [2, 3], "d_state": 2, "ssm_ratio": 1.0, "mlp_ratio": 1.0}
UNET = {"type": "MaIRUNet", "dim": 4, "num_blocks": [1, 1, 1, 2], "num_refinement_blocks": 1, "ssm_ratio": 1.0}


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 3)])
@pytest.mark.parametrize(
    "tail",
    [{"upsampler": "pixelshuffledirect", "upscale": 3}, {"upsampler": "pixelshuffle", "upscale": 4}, {"in_chans": 1}],
)
def test_any_size(size, tail):
    net = build_network({**SMALL, **tail}).eval()
    scale, channels = tail.get("upscale", 1), tail.get("in_chans", 3)
    out = net(torch.rand(2, channels, *size))
    assert out.shape == (2, channels, size[0] * scale, size[1] * scale)
    assert out.isfinite().all()


@pytest.mark.parametrize(("config", "shifts"), [({**SMALL, "scan_len": 6}, [0, 3, 0, 3, 0]), (UNET, [0] * 9)])
def test_every_second_block_of_a_group_shifts_its_stripes(config, shifts):
    scans = [module for module in build_network(config).modules() if isinstance(module, VisualMambaModule)]
    assert [scan.shift for scan in scans] == shifts


def test_every_parameter_takes_part():
    for config in (SMALL, UNET):
        net = build_network(config)
        net(torch.rand(1, 3, 16, 8)).square().mean().backward()
        assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_output_of_the_unet_is_a_residual_on_the_input():
    net = build_network(UNET).eval()
    x = torch.rand(2, 3, 8, 16)
    assert net(x).shape == x.shape
    torch.nn.init.zeros_(net.output.weight)
    assert torch.equal(net(x), x)


def test_gate_of_a_channel_sees_that_channel_in_all_directions():
    attention = SequenceShuffleAttention(3, 4)
    y = torch.rand(2, 5, 6, 4, 3, requires_grad=True)
    out = attention(y)
    assert out.shape == (2, 5, 6, 3)
    out[0, 0, 0, 1].backward()
    touched = y.grad[0].abs().sum((0, 1))  # (K, D)
    assert (touched[:, 1] > 0).all() and touched[:, [0, 2]].eq(0).all() and y.grad[1].eq(0).all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"ssm_ration": 1.0}, "unknown option 'ssm_ration'.*did you mean 'ssm_ratio'"),
        ({"upsampler": "nearest"}, "unknown upsampler 'nearest'"),
        ({"resi_connection": "2conv"}, "resi_connection must be '1conv' or '3conv'"),
    ],
)
def test_wrong_options_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        build_network({**SMALL, **option})
