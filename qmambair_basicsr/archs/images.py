"""What images a network takes and gives, for any of the registered types."""

from __future__ import annotations

from torch import nn


def image_channels(net: nn.Module) -> int:
    """Channels of the images that a network takes: those of its first convolution."""
    return next(m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d))


def output_scale(net: nn.Module) -> int:
    """Output pixels per input pixel along a side; networks without an upsampler ignore their ``upscale``."""
    return getattr(net, "upscale", 1) if getattr(net, "upsampler", None) else 1
