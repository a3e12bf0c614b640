"""Very small quantized networks as packed files."""

from __future__ import annotations

from pathlib import Path

import torch
from basicsr.archs import build_network

from qmambair_basicsr.artifacts.packed import save_packed
from qmambair_basicsr.calibration import calibrate

NETWORK = {
    "type": "QMambaIR",
    "embed_dim": 30,
    "depths": [1],
    "d_state": 2,
    "mlp_ratio": 1.2,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
    "quant": {
        "weight": {"type": "RFA", "bits": 4},
        "act": {"type": "LSQOffset", "bits": 4},
        "scan": {"type": "DLS", "bits": 4},
    },
}


def write_packed(path: Path, echo: bool = False) -> Path:
    """A calibrated network of random weights; ``echo``: one whose output is its input with every pixel doubled."""
    torch.manual_seed(0)
    net = build_network(dict(NETWORK)).eval()
    if echo:
        with torch.no_grad():
            for layer in (net.conv_first, net.conv_after_body, net.upsample[0]):
                layer.weight.zero_()
                layer.bias.zero_()
            for colour in range(3):
                net.conv_first.weight[colour, colour, 1, 1] = 1
                net.upsample[0].weight[4 * colour : 4 * colour + 4, colour, 1, 1] = 1
    calibrate(net, [torch.rand(1, 3, 24, 24)])
    save_packed(net, NETWORK, path)
    return path
