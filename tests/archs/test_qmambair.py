"""QMambaIR with the method's own quantizers: RFA weights, LSQ with offset on inputs, DLS on the scan."""

from __future__ import annotations

import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.checkpoints import load_fp_state

SMALL = {"embed_dim": 32, "d_state": 3, "mlp_ratio": 1.25, "drop_path_rate": 0.0}
NETS = {
    "light": {**SMALL, "depths": [2, 1], "upscale": 2, "upsampler": "pixelshuffledirect"},
    "classic": {**SMALL, "depths": [1], "upscale": 4, "upsampler": "pixelshuffle"},
    "3conv": {**SMALL, "depths": [1], "upscale": 3, "upsampler": "pixelshuffle", "resi_connection": "3conv"},
    "dn": {**SMALL, "depths": [1], "upscale": 1},
    "car": {**SMALL, "depths": [1], "upscale": 1, "in_chans": 1},
}


def quant(bits, **options):
    return {
        "weight": {"type": "RFA", "bits": bits, **options},
        "act": {"type": "LSQOffset", "bits": bits, **options},
        "scan": {"type": "DLS", "bits": bits, **options},
    }


def image(config, height=6, width=5, batch=2):
    return torch.rand(batch, config.get("in_chans", 3), height, width)


@pytest.mark.parametrize("mode", ["stable", "official"])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", NETS)
def test_trains(name, bits, mode):
    net = build_network({"type": "QMambaIR", **NETS[name], "quant": quant(bits, mode=mode)})
    x = image(NETS[name])
    calibrate(net, [x])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        out = net(x)
        out.square().mean().backward()
        assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
        assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
        optimizer.step()
    assert net.eval()(x).isfinite().all()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_saved_network_gives_the_same_images(bits):
    config = {"type": "QMambaIR", **NETS["light"], "quant": quant(bits)}
    net = build_network(config)
    x = image(NETS["light"])
    calibrate(net, [x])
    other = build_network(config)
    other.load_state_dict(net.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), other.eval()(x))


def test_more_bits_are_closer_to_full_precision():
    full = build_network({"type": "MambaIR", **NETS["light"]}).eval()
    x = image(NETS["light"], 12, 12)
    errors = []
    for bits in (2, 4, 8):
        net = build_network({"type": "QMambaIR", **NETS["light"], "quant": quant(bits)})
        load_fp_state(net, full.state_dict())
        calibrate(net, [x])
        with torch.no_grad():
            errors.append((net.eval()(x) - full(x)).abs().mean().item())
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
def test_any_size_after_calibration(size):
    net = build_network({"type": "QMambaIR", **NETS["light"], "quant": quant(4)})
    calibrate(net, [image(NETS["light"])])
    with torch.no_grad():
        assert net.eval()(image(NETS["light"], *size, batch=1)).isfinite().all()
