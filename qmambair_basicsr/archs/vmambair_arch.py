"""VmambaIR: four U-Nets under the name of one paper, for super-resolution, real super-resolution and restoration.

Source: "VmambaIR: Visual State Space Model for Image Restoration" (arXiv:2403.11423). Class names, parameter names and
shapes are those of the authors' code, whose checkpoints load with ``strict=True``; outputs and input gradients are
tested against vectors of three of them. The four differ in how they scan the channels of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from ..layers.info import NetworkInfo, network_info
from ..strict import strict_options
from .mambairunet_arch import StateSpaceUNet
from .option_rules import VMAMBAIR
from .vmambair_blocks import ChannelScan, OmniScanBlock

_SCALE = 4


class VmambaIRUNet(StateSpaceUNet):
    """U-Net of OSS blocks. Input (B, C, H, W) with H and W multiples of 8.

    Args:
        inp_channels (int): Channels of the input image.
        out_channels (int): Channels of the output image.
        dim (int): Channels of the first level; level n has dim * 2^(n-1).
        num_blocks (Sequence[int]): Blocks on the four levels (the decoder mirrors the encoder).
        num_refinement_blocks (int): Blocks after the decoder, at full resolution with 2 * dim channels.
        ffn_expansion_factor (float): Expansion of the feed-forward networks.
        bias (bool): Bias of the feed-forward networks, reduce_chan_level*, skip_conv and output.
        norm (str): 'WithBias' or 'BiasFree'.
        dual_pixel_task (bool): No image residual, a skip from the embedding to the output instead.

    Raises:
        ValueError: An unknown option or an impossible combination.
    """

    option_rules = VMAMBAIR
    channel_scan: ClassVar[ChannelScan]

    def __init__(
        self,
        inp_channels: int,
        out_channels: int,
        dim: int,
        num_blocks: Sequence[int],
        num_refinement_blocks: int,
        ffn_expansion_factor: float,
        bias: bool,
        norm: str,
        dual_pixel_task: bool = False,
    ):
        if norm not in ("WithBias", "BiasFree"):
            raise ValueError(f"{type(self).__name__}: LayerNorm_type must be 'WithBias' or 'BiasFree', got {norm!r}.")
        settings = self.channel_scan, ffn_expansion_factor, bias, norm == "WithBias"
        super().__init__(
            lambda level, channels, number: OmniScanBlock(channels, *settings),
            inp_channels=inp_channels,
            out_channels=out_channels,
            dim=dim,
            num_blocks=num_blocks,
            num_refinement_blocks=num_refinement_blocks,
            bias=bias,
            dual_pixel_task=dual_pixel_task,
            use_checkpoint=False,
        )


class SuperResolutionUNet(VmambaIRUNet):
    """The U-Net with a tail that enlarges four times. Output (B, C, 4 H, 4 W).

    Args:
        heads (Sequence[int]): Without effect; official option files have it.
        LayerNorm_type (str): 'WithBias' or 'BiasFree'.
        scale (int): 4. (The authors' code takes others, but its tail is made for 4.)
        others: See :class:`VmambaIRUNet`.
    """

    @strict_options
    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (15, 1, 1, 1),
        num_refinement_blocks: int = 15,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
        scale: int = _SCALE,
    ):
        del heads  # documented as without effect
        if scale != _SCALE:
            raise ValueError(f"{type(self).__name__}: scale must be {_SCALE}, got {scale}.")
        sizes = inp_channels, out_channels, dim, num_blocks, num_refinement_blocks
        super().__init__(*sizes, ffn_expansion_factor, bias, LayerNorm_type)

    def add_output(self, channels: int, out_channels: int, bias: bool) -> None:
        """The tail: two enlargements by 2 and a convolution."""
        enlarge = [
            layer for _ in range(2) for layer in (nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2))
        ]
        self.tail = nn.Sequential(nn.Sequential(*enlarge), nn.Conv2d(channels, out_channels, 3, padding=1))

    def finish(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The enlarged residual on the input image, each of whose pixels is repeated."""
        return self.tail(x) + F.interpolate(image, scale_factor=_SCALE, mode="nearest")


class RestorationUNet(VmambaIRUNet):
    """The U-Net that restores an image of the same size.

    Args:
        heads (Sequence[int]): Without effect; official option files have it.
        LayerNorm_type (str): 'WithBias' or 'BiasFree'.
        others: See :class:`VmambaIRUNet`.
    """

    @strict_options
    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (3, 5, 7, 9),
        num_refinement_blocks: int = 2,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
        dual_pixel_task: bool = False,
    ):
        del heads  # documented as without effect
        sizes = inp_channels, out_channels, dim, num_blocks, num_refinement_blocks
        super().__init__(*sizes, ffn_expansion_factor, bias, LayerNorm_type, dual_pixel_task)


@ARCH_REGISTRY.register()
class MambaSISR6(SuperResolutionUNet):
    """Super-resolution x4; see :class:`SuperResolutionUNet`. The means of the channels are widened to 4 values."""

    channel_scan = ChannelScan(width=4)


@ARCH_REGISTRY.register()
class MambaRealSR11(SuperResolutionUNet):
    """Real super-resolution x4; see :class:`SuperResolutionUNet`. The means of the channels are scanned as they are."""

    channel_scan = ChannelScan(width=None)


@ARCH_REGISTRY.register()
class Mamber32(RestorationUNet):
    """Deraining; see :class:`RestorationUNet`. The gate of the channels is added."""

    channel_scan = ChannelScan(width=4, additive=True)


@ARCH_REGISTRY.register()
class Mamber33(RestorationUNet):
    """Restoration; see :class:`RestorationUNet`. The means of the channels are widened to 2 values."""

    channel_scan = ChannelScan(width=2)


@network_info.register(VmambaIRUNet)
def _(net: VmambaIRUNet) -> NetworkInfo:
    return NetworkInfo(
        channels=net.inp_channels,
        scale=_SCALE if isinstance(net, SuperResolutionUNet) else 1,
        size_multiple=net.patch_multiple,
        full_precision=("patch_embed.proj", "*.attn.conv_cin", "*.attn.conv_cout", "skip_conv", "output", "tail.*"),
        behind_scan=("*.attn.out_conv",),
        blocks=("encoder_level?.*", "latent.*", "decoder_level?.*", "refinement.*"),
    )
