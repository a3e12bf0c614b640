"""VmambaIR: four U-Nets under the name of one paper, for super-resolution, real super-resolution and restoration.

``VmambaIR`` chooses among them by an option, and ``QVmambaIR`` is its quantized form.

Source: "VmambaIR: Visual State Space Model for Image Restoration" (arXiv:2403.11423). Class names, parameter names and
shapes are those of the authors' code, whose checkpoints load with ``strict=True``; outputs and input gradients are
tested against vectors of three of them. The four differ in how they scan the channels of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from ..layers.detection import Keys, detects, ratio
from ..layers.info import NetworkInfo, network_info
from ..schema.rules import Choice
from ..strict import strict_options, unknown
from .eamamba_blocks import MIXER_SOURCES
from .mambairunet_arch import StateSpaceUNet
from .option_rules import VMAMBAIR
from .quantized import quantized_form
from .vmambair_blocks import ChannelScan, OmniScanBlock

_SCALE = 4


@dataclass(frozen=True)
class Variant:
    """What one of the four networks has of its own.

    Attributes:
        channel_scan: how the channels of a map are scanned.
        num_blocks: blocks on the four levels, by default.
        num_refinement_blocks: blocks after the decoder, by default.
        enlarges: super-resolution by 4 instead of restoration at the same size.
    """

    channel_scan: ChannelScan
    num_blocks: tuple[int, ...]
    num_refinement_blocks: int
    enlarges: bool


VARIANTS = {
    "MambaSISR6": Variant(ChannelScan(width=4), (15, 1, 1, 1), 15, enlarges=True),
    "MambaRealSR11": Variant(ChannelScan(width=None), (15, 1, 1, 1), 15, enlarges=True),
    "Mamber32": Variant(ChannelScan(width=4, additive=True), (3, 5, 7, 9), 2, enlarges=False),
    "Mamber33": Variant(ChannelScan(width=2), (3, 5, 7, 9), 2, enlarges=False),
}
"""Class of the authors' code -> what is its own."""


class VmambaIRUNet(StateSpaceUNet):
    """U-Net of OSS blocks. Input (B, C, H, W) with H and W multiples of 8.

    A super-resolution network has a tail that enlarges four times: output (B, C, 4 H, 4 W).

    Args:
        variant (Variant): Which of the four networks it is.
        inp_channels (int): Channels of the input image.
        out_channels (int): Channels of the output image; equal to inp_channels unless dual_pixel_task.
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

    def __init__(
        self,
        variant: Variant,
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
        if variant.enlarges and dual_pixel_task:
            raise ValueError(f"{type(self).__name__}: dual_pixel_task is for restoration at the same size.")
        self.scale = _SCALE if variant.enlarges else 1  # before the base calls add_output, which reads it
        settings = variant.channel_scan, ffn_expansion_factor, bias, norm == "WithBias"
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

    def add_output(self, channels: int, out_channels: int, bias: bool) -> None:
        """The tail of super-resolution: two enlargements by 2 and a convolution."""
        if self.scale == 1:
            super().add_output(channels, out_channels, bias)
            return
        enlarge = [
            layer for _ in range(2) for layer in (nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2))
        ]
        self.tail = nn.Sequential(nn.Sequential(*enlarge), nn.Conv2d(channels, out_channels, 3, padding=1))

    def finish(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The residual on the input image, each of whose pixels is repeated in super-resolution."""
        if self.scale == 1:
            return super().finish(x, image)
        return self.tail(x) + F.interpolate(image, scale_factor=self.scale, mode="nearest")


class SuperResolutionUNet(VmambaIRUNet):
    """One of the two networks for super-resolution by 4.

    Args:
        heads (Sequence[int]): Without effect; official option files have it.
        LayerNorm_type (str): 'WithBias' or 'BiasFree'.
        scale (int): 4. (The authors' code takes others, but its tail is made for 4.)
        others: See :class:`VmambaIRUNet`.
    """

    variant: ClassVar[Variant]

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
        super().__init__(self.variant, *sizes, ffn_expansion_factor, bias, LayerNorm_type)


class RestorationUNet(VmambaIRUNet):
    """One of the two networks that restore an image of the same size.

    Args:
        heads (Sequence[int]): Without effect; official option files have it.
        LayerNorm_type (str): 'WithBias' or 'BiasFree'.
        others: See :class:`VmambaIRUNet`.
    """

    variant: ClassVar[Variant]

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
        others = ffn_expansion_factor, bias, LayerNorm_type, dual_pixel_task
        super().__init__(self.variant, *sizes, *others)


@ARCH_REGISTRY.register()
class MambaSISR6(SuperResolutionUNet):
    """Super-resolution x4; see :class:`SuperResolutionUNet`. The means of the channels are widened to 4 values."""

    variant = VARIANTS["MambaSISR6"]


@ARCH_REGISTRY.register()
class MambaRealSR11(SuperResolutionUNet):
    """Real super-resolution x4; see :class:`SuperResolutionUNet`. The means of the channels are scanned as they are."""

    variant = VARIANTS["MambaRealSR11"]


@ARCH_REGISTRY.register()
class Mamber32(RestorationUNet):
    """Deraining; see :class:`RestorationUNet`. The gate of the channels is added."""

    variant = VARIANTS["Mamber32"]


@ARCH_REGISTRY.register()
class Mamber33(RestorationUNet):
    """Restoration; see :class:`RestorationUNet`. The means of the channels are widened to 2 values."""

    variant = VARIANTS["Mamber33"]


@ARCH_REGISTRY.register()
class VmambaIR(VmambaIRUNet):
    """Any of the four networks, chosen by an option.

    Args:
        variant (str): 'MambaSISR6', 'MambaRealSR11', 'Mamber32' or 'Mamber33'.
        num_blocks (Sequence[int] | None): Blocks on the four levels; None: as that network has by default.
        num_refinement_blocks (int | None): Blocks after the decoder; None: as that network has by default.
        heads (Sequence[int]): Without effect; official option files have it.
        LayerNorm_type (str): 'WithBias' or 'BiasFree'.
        others: See :class:`VmambaIRUNet`.
    """

    option_rules = VMAMBAIR | {"variant": Choice(tuple(VARIANTS))}

    @staticmethod
    def output_factor(options: Mapping) -> tuple[int, str] | None:
        """Output over input and the option that says so, for the check of option files."""
        chosen = VARIANTS.get(options.get("variant", "Mamber33"))
        return chosen and (_SCALE if chosen.enlarges else 1, "variant")

    @strict_options
    def __init__(
        self,
        variant: str = "Mamber33",
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] | None = None,
        num_refinement_blocks: int | None = None,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
        dual_pixel_task: bool = False,
    ):
        del heads  # documented as without effect
        if variant not in VARIANTS:
            raise ValueError(unknown(type(self).__name__, "variant", variant, VARIANTS))
        chosen = VARIANTS[variant]
        num_blocks = chosen.num_blocks if num_blocks is None else num_blocks
        if num_refinement_blocks is None:
            num_refinement_blocks = chosen.num_refinement_blocks
        sizes = inp_channels, out_channels, dim, num_blocks, num_refinement_blocks
        super().__init__(chosen, *sizes, ffn_expansion_factor, bias, LayerNorm_type, dual_pixel_task)


@network_info.register(VmambaIRUNet)
def _(net: VmambaIRUNet) -> NetworkInfo:
    return NetworkInfo(
        channels=net.inp_channels,
        scale=net.scale,
        size_multiple=net.patch_multiple,
        full_precision=("patch_embed.proj", "*.attn.conv_cin", "*.attn.conv_cout", "skip_conv", "output", "tail.*"),
        behind_scan=("*.attn.out_conv",),
        sources=MIXER_SOURCES,
        blocks=("encoder_level?.*", "latent.*", "decoder_level?.*", "refinement.*"),
    )


@detects("VmambaIR")
def _(keys: Keys) -> dict:
    """``VmambaIR`` stands for all four classes: which it is shows in the tail and in the scan of the channels."""
    options, blocks = keys.unet(), keys.unet_blocks()
    first, enlarges = blocks[0][0], "tail.1.weight" in keys
    scan = f"{first}.attn.conv_cin.weight"
    width = keys[scan][0] if scan in keys else None
    fitting = (n for n, v in VARIANTS.items() if (v.enlarges, v.channel_scan.width) == (enlarges, width))
    return options | {
        "variant": next(fitting),
        "LayerNorm_type": "WithBias" if f"{first}.norm1.body.bias" in keys else "BiasFree",
        "ffn_expansion_factor": ratio(*((keys[f"{b}.ffn.project_out.weight"][1], width) for b, width in blocks)),
        "dual_pixel_task": "skip_conv.weight" in keys,
    }


@ARCH_REGISTRY.register()
@quantized_form(VmambaIR)
class QVmambaIR(VmambaIR):
    """The graph of :class:`VmambaIR`, any of the four networks, then ``prepare``.

    Quantized (our reading, unpublished): all that MambaIR quantizes in a block, the 1x1 convolutions and the feed-forward
    networks, the projections and the inputs of the channels' scan, and the convolutions between levels. ``conv_cin`` and
    ``conv_cout``, which act on one value per channel, keep full precision as MambaIR's channel attention does.
    Arguments and errors as :class:`~.qmambair_arch.QMambaIR`.
    """
