"""EAMamba (a U-Net: denoising, deblurring ...) and EAMambaSR (light super-resolution).

Source: "EAMamba: Efficient All-Around Vision State Space Model for Image Restoration" (arXiv:2506.22246). Parameter names
and shapes are those of the authors' code, whose checkpoints load with ``strict=True``; outputs and input gradients are
tested against vectors of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from basicsr.archs.arch_util import Upsample
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from ..layers.detection import Keys, detects, ratio
from ..layers.info import NetworkInfo, network_info
from ..strict import strict_options
from .blocks import BlockSequence, conv_channels_last
from .eamamba_blocks import BLOCK_SOURCES, BlockOptions, ChannelNorm, EAMambaBlock, MambaConfig
from .mambairunet_arch import StateSpaceUNet
from .option_rules import EAMAMBA, EAMAMBA_SR
from .quantized import quantized_form
from .ss2d import BEHIND_SCAN


@ARCH_REGISTRY.register()
class EAMamba(StateSpaceUNet):
    """U-Net for same-size restoration. Input and output (B, C, H, W) with H and W multiples of 8.

    Args:
        inp_channels (int): Channels of the input image.
        out_channels (int): Channels of the output image; equal to inp_channels unless dual_pixel_task.
        dim (int): Channels of the first level; level n has dim * 2^(n-1).
        num_blocks (Sequence[int]): Blocks on the four levels (the decoder mirrors the encoder).
        num_refinement_blocks (int): Blocks after the decoder, at full resolution with 2 * dim channels.
        ffn_expansion_factor (float): Expansion of the channel mixers.
        bias (bool): Bias of the mixers, reduce_chan_level*, skip_conv and output; the other convolutions have none.
        layernorm_type (str): 'WithBias' or 'BiasFree'.
        dual_pixel_task (bool): Defocus deblurring: no image residual, a skip from the embedding to the output instead.
        checkpoint_percentage (float): Above 0, blocks are recomputed in the backward pass to save memory.
        channel_mixer_type (str): 'Simple' or 'GDFN'.
        upscale (int): 1, or 2, the authors' default: their released configurations so carry a convolution ``upsample.0``
            that no image can pass through (its input has other channels). It is loaded and kept, and has no effect.
        mamba_cfg (Mapping): The scans, see ``eamamba_blocks.MambaConfig``.

    Raises:
        ValueError: An unknown option or an impossible combination.
    """

    option_rules = EAMAMBA

    @staticmethod
    def output_factor(options: Mapping) -> tuple[int, str]:
        """Output over input, for the check of option files: ``upscale`` has no effect."""
        return 1, "type"

    @strict_options
    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 64,
        num_blocks: Sequence[int] = (4, 6, 6, 7),
        num_refinement_blocks: int = 2,
        ffn_expansion_factor: float = 2.0,
        bias: bool = False,
        layernorm_type: str = "WithBias",
        dual_pixel_task: bool = False,
        checkpoint_percentage: float = 0.0,
        channel_mixer_type: str = "Simple",
        upscale: int = 2,
        mamba_cfg: Mapping[str, Any] | None = None,
    ):
        if upscale not in (1, 2):
            raise ValueError(f"{type(self).__name__}: upscale must be 1 or 2 (without effect), got {upscale}.")
        config = MambaConfig.from_dict(mamba_cfg)
        options = BlockOptions(config, channel_mixer_type, ffn_expansion_factor, bias, layernorm_type)
        super().__init__(
            lambda level, channels, number: EAMambaBlock(channels, options),
            inp_channels=inp_channels,
            out_channels=out_channels,
            dim=dim,
            num_blocks=num_blocks,
            num_refinement_blocks=num_refinement_blocks,
            bias=bias,
            dual_pixel_task=dual_pixel_task,
            use_checkpoint=checkpoint_percentage > 0,
        )
        if upscale == 2:
            self.upsample = Upsample(2, out_channels)


@network_info.register(EAMamba)
def _(net: EAMamba) -> NetworkInfo:
    return NetworkInfo(
        channels=net.inp_channels,
        size_multiple=net.patch_multiple,
        full_precision=("patch_embed.proj", "skip_conv", "output", "upsample.*"),
        behind_scan=BEHIND_SCAN,
        sources=BLOCK_SOURCES,
        blocks=("encoder_level?.*", "latent.*", "decoder_level?.*", "refinement.*"),
    )


@detects("EAMamba")
def _(keys: Keys) -> dict:
    return (
        keys.unet()
        | _mixing(keys, keys.unet_blocks())
        | {
            "dual_pixel_task": "skip_conv.weight" in keys,
            "upscale": 2 if "upsample.0.weight" in keys else 1,
        }
    )


def _mixing(keys: Keys, blocks: list[tuple[str, int]]) -> dict:
    """Options of the blocks. ``scan_type`` cannot be seen; it is ``diagonal`` in every published configuration."""
    block = blocks[0][0]
    inner, gated = keys[f"{block}.mamba.out_proj.weight"][1], f"{block}.ffn.dwconv.weight" in keys
    scans, scanned = keys[f"{block}.mamba.dt_projs_bias"]
    wide = [(keys[f"{b}.ffn.project_in.weight"][0] // (2 if gated else 1), width) for b, width in blocks]
    plane = f"{block}.mamba.conv.weight"
    return {
        "bias": f"{block}.ffn.project_in.bias" in keys,
        "layernorm_type": "WithBias" if f"{block}.norm1.body.bias" in keys else "BiasFree",
        "channel_mixer_type": "GDFN" if gated else "Simple",
        "ffn_expansion_factor": ratio(*wide),
        "mamba_cfg": {
            "scan_type": "diagonal",
            "scan_count": scans,
            "scan_merge_method": "concate" if scans * scanned == inner else "add",
            "disable_z_branch": keys[f"{block}.mamba.in_proj.weight"][0] == inner,
            "d_state": keys[f"{block}.mamba.A_logs"][1],
            "d_conv": keys[plane][-1] if plane in keys else 3,
            "expand": ratio(*((keys[f"{b}.mamba.out_proj.weight"][1], width) for b, width in blocks)),
            "conv_2d": plane in keys and len(keys[plane]) == 4,
        },
    }


@ARCH_REGISTRY.register()
@quantized_form(EAMamba)
class QEAMamba(EAMamba):
    """The graph of :class:`EAMamba`, then ``prepare``. Arguments and errors as :class:`~.qmambair_arch.QMambaIR`."""


class EAMambaGroup(nn.Module):
    """x + conv(blocks(x)).

    Args:
        blocks (list[nn.Module]): Each (B, H, W, C) -> (B, H, W, C).
        dim (int): Channels.
        use_checkpoint (bool): Recompute the blocks in the backward pass.
    """

    def __init__(self, blocks: list[nn.Module], dim: int, use_checkpoint: bool):
        super().__init__()
        self.blocks = BlockSequence(blocks, use_checkpoint)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return x + conv_channels_last(self.conv, self.blocks(x))


@ARCH_REGISTRY.register()
class EAMambaSR(nn.Module):
    """Light super-resolution. Input (B, C, H, W) of any size, output (B, C, H * upscale, W * upscale).

    Args:
        inp_channels (int): Channels of the input image.
        out_channels (int): Channels of the output image.
        dim (int): Channels of the body.
        num_blocks (Sequence[int]): Blocks in each residual group.
        ffn_expansion_factor (float): Expansion of the channel mixers.
        bias (bool): Bias of the mixers, conv_first, conv_after_body and conv_last; the other convolutions have one.
        layernorm_type (str): 'WithBias' or 'BiasFree'.
        checkpoint_percentage (float): Above 0, blocks are recomputed in the backward pass to save memory.
        channel_mixer_type (str): 'Simple' or 'GDFN'.
        upscale (int): Scale of the output, 2^n or 3.
        mamba_cfg (Mapping): The scans, see ``eamamba_blocks.MambaConfig``.

    Raises:
        ValueError: An unknown option or an impossible combination.
    """

    option_rules = EAMAMBA_SR

    @strict_options
    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 64,
        num_blocks: Sequence[int] = (4, 4, 4, 4),
        ffn_expansion_factor: float = 1.0,
        bias: bool = False,
        layernorm_type: str = "WithBias",
        checkpoint_percentage: float = 0.0,
        channel_mixer_type: str = "Simple",
        upscale: int = 2,
        mamba_cfg: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        config = MambaConfig.from_dict(mamba_cfg)
        options = BlockOptions(config, channel_mixer_type, ffn_expansion_factor, bias, layernorm_type)
        self.inp_channels, self.upscale = inp_channels, upscale
        self.conv_first = nn.Conv2d(inp_channels, dim, 3, padding=1, bias=bias)
        self.layers = nn.ModuleList(
            EAMambaGroup([EAMambaBlock(dim, options) for _ in range(depth)], dim, checkpoint_percentage > 0)
            for depth in num_blocks
        )
        self.norm = ChannelNorm(dim, layernorm_type == "WithBias")
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1, bias=bias)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.LeakyReLU(0.01))
        self.upsample = Upsample(upscale, dim)
        self.conv_last = nn.Conv2d(dim, out_channels, 3, padding=1, bias=bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Restore a batch of images (B, inp_channels, H, W) with values in [0, 1].

        Raises:
            ValueError: Wrong number of dimensions or channels.
        """
        if image.dim() != 4 or image.shape[1] != self.inp_channels:
            raise ValueError(
                f"{type(self).__name__}: expected an input of shape (B, {self.inp_channels}, H, W), "
                f"got {tuple(image.shape)}."
            )
        first = self.conv_first(image.contiguous(memory_format=torch.channels_last))
        x = first.permute(0, 2, 3, 1)  # (B, H, W, C)
        for layer in self.layers:
            x = layer(x)
        features = first + self.conv_after_body(self.norm(x).permute(0, 3, 1, 2))
        return self.conv_last(self.upsample(self.conv_before_upsample(features)))


@network_info.register(EAMambaSR)
def _(net: EAMambaSR) -> NetworkInfo:
    return NetworkInfo(
        channels=net.inp_channels,
        scale=net.upscale,
        full_precision=("conv_first", "conv_after_body", "conv_before_upsample.*", "upsample.*", "conv_last"),
        group_convs=("layers.*.conv",),
        behind_scan=BEHIND_SCAN,
        sources=BLOCK_SOURCES,
        blocks=("layers.*.blocks.*",),
    )


@detects("EAMambaSR")
def _(keys: Keys) -> dict:
    width, channels = keys["conv_first.weight"][:2]
    depths = keys.counts("layers", "blocks")
    first = next(i for i, depth in enumerate(depths) if depth)
    return _mixing(keys, [(f"layers.{first}.blocks.0", width)]) | {
        "inp_channels": channels,
        "out_channels": keys["conv_last.weight"][0],
        "dim": width,
        "num_blocks": depths,
        "upscale": keys.shuffled("upsample"),
    }


@ARCH_REGISTRY.register()
@quantized_form(EAMambaSR)
class QEAMambaSR(EAMambaSR):
    """The graph of :class:`EAMambaSR`, then ``prepare``. Arguments and errors as :class:`~.qmambair_arch.QMambaIR`."""
