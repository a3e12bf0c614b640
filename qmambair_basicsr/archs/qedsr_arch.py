"""QEDSR: BasicSR's own EDSR with a fake-quantized body.

Source: "Enhanced Deep Residual Networks for Single Image Super-Resolution" (arXiv:1707.02921). The network is BasicSR's
class; what is here is where it may be quantized. Both convolutions of every residual block are, as in QuantSR's
release; the first and the last layers, ``conv_after_body`` and the upsampler keep full precision.
"""

from __future__ import annotations

from basicsr.archs.edsr_arch import EDSR
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from ..layers.detection import Keys, detects
from ..layers.info import NetworkInfo, network_info
from .quantized import quantized_form


@network_info.register(EDSR)
def _(net: EDSR) -> NetworkInfo:
    scale = 1
    for module in net.upsample:
        scale *= module.upscale_factor if isinstance(module, nn.PixelShuffle) else 1
    return NetworkInfo(
        channels=net.conv_first.in_channels,
        scale=scale,
        full_precision=("conv_first", "conv_after_body", "upsample.*", "conv_last"),
        blocks=("body.*",),
    )


@detects("EDSR")
def _(keys: Keys) -> dict:
    """``res_scale`` cannot be seen: 0.1 in the published networks of 256 features, else 1; ``img_range`` is 255."""
    features, channels = keys["conv_first.weight"][:2]
    return {
        "num_in_ch": channels,
        "num_out_ch": keys["conv_last.weight"][0],
        "num_feat": features,
        "num_block": keys.count("body"),
        "upscale": keys.shuffled("upsample"),
        "res_scale": 0.1 if features == 256 else 1,
    }


@ARCH_REGISTRY.register()
@quantized_form(EDSR)
class QEDSR(EDSR):
    """The graph of BasicSR's EDSR, then ``prepare``. Arguments and errors as :class:`~.qmambair_arch.QMambaIR`."""
