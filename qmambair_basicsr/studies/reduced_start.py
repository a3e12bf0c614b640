"""Weights that make a MambaIR super-resolution network interpolate bilinearly: where the reduced runs start.

A network with random weights needs thousands of iterations before it passes bicubic enlargement, because MambaIR has
no skip from the small image to the large one. From these weights a few hundred show whether training works.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["interpolate_at_start"]

_SHIFT = 2.0  # keeps the values positive that pass through the LeakyReLU of the classic tail


def _bilinear(scale: int) -> torch.Tensor:
    """(scale * scale, 3, 3): the kernel of every sub-pixel phase over the 3 x 3 neighbourhood."""
    centre = (torch.arange(scale) + 0.5) / scale - 0.5  # position of a phase relative to its pixel, in (-0.5, 0.5)
    row = torch.stack([(-centre).clamp(min=0), 1 - centre.abs(), centre.clamp(min=0)], dim=1)  # (scale, 3)
    return torch.einsum("ia,jb->ijab", row, row).reshape(scale * scale, 3, 3)


def _pass_through(conv: nn.Conv2d, channels: int) -> None:
    """The first ``channels`` outputs copy the first inputs; the others keep their random weights."""
    conv.weight[:channels] = 0
    conv.weight[range(channels), range(channels), 1, 1] = 1
    conv.bias[:channels] = 0


@torch.no_grad()
def interpolate_at_start(net: nn.Module) -> nn.Module:
    """Set a MambaIR network's head and tail so that it interpolates; its body contributes nothing yet.

    Args:
        net: ``MambaIR`` with ``upsampler`` ``pixelshuffledirect`` (any scale) or ``pixelshuffle`` (scale 2 or 3).

    Returns:
        ``net``.

    Raises:
        ValueError: another upsampler, or ``pixelshuffle`` at scale 4 (two steps).
    """
    classic = net.upsampler == "pixelshuffle"
    if net.upsampler not in ("pixelshuffle", "pixelshuffledirect") or (classic and net.upscale == 4):
        raise ValueError(f"cannot interpolate with upsampler {net.upsampler!r} at scale {net.upscale}")
    channels, phases = net.in_chans, net.upscale**2
    _pass_through(net.conv_first, channels)
    for parameter in net.conv_after_body.parameters():
        parameter.zero_()
    enlarge = net.upsample[0]
    enlarge.weight[: channels * phases] = 0
    enlarge.bias[: channels * phases] = 0
    for channel in range(channels):
        enlarge.weight[channel * phases : (channel + 1) * phases, channel] = _bilinear(net.upscale)
    if classic:
        before = net.conv_before_upsample[0]
        _pass_through(before, channels)
        before.bias[:channels] = _SHIFT
        net.conv_last.weight.zero_()
        net.conv_last.weight[range(channels), range(channels), 1, 1] = 1
        net.conv_last.bias.fill_(-_SHIFT)
    return net
