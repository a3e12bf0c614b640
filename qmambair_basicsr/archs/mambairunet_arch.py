"""MambaIRUNet: the four-level U-Net of residual state-space blocks for real image denoising, and its quantized form.

Source: MambaIR (arXiv:2402.15648), real-noise experiments; the U-Net follows Restormer (arXiv:2111.09881).

Confirmed: names of all parameters, channel counts, order of operations and defaults, against the public source text of
the authors' ``realDenoising`` folder. Not confirmed: numerical equality with a published checkpoint (none is at hand, so
no test compares outputs), and the quantizer placement, which was never published for this network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from ..layers.detection import Keys, detects, ratio
from ..layers.info import NetworkInfo, network_info
from ..strict import strict_options
from .blocks import BLOCK_SOURCES, BlockSequence, ResidualStateSpaceBlock, conv_channels_last
from .option_rules import UNET, check_unet
from .quantized import quantized_form
from .ss2d import BEHIND_SCAN

_MULTIPLE = 8  # three halvings


class OverlapPatchEmbed(nn.Module):
    """3x3 convolution (B, C_in, H, W) -> channels-last features (B, H, W, C)."""

    def __init__(self, in_channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1).contiguous()


class Resample(nn.Module):
    """3x3 convolution and pixel (un)shuffle on a channels-last map.

    Args:
        dim (int): Channels of the input.
        down (bool): Halve the sides and double the channels; otherwise double the sides and halve the channels.
    """

    def __init__(self, dim: int, down: bool):
        super().__init__()
        channels, shuffle = (dim // 2, nn.PixelUnshuffle(2)) if down else (dim * 2, nn.PixelShuffle(2))
        self.body = nn.Sequential(nn.Conv2d(dim, channels, 3, padding=1, bias=False), shuffle)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv_channels_last(self.body, x).contiguous()


class StateSpaceUNet(nn.Module):
    """Restormer's U-Net around blocks of any kind. Input and output (B, C, H, W) with H and W multiples of 8.

    Args:
        block (Callable[[str, int, int], nn.Module]): Makes the block of this level (``encoder_level1`` to ``3``,
            ``latent``, ``decoder_level3`` to ``1``, ``refinement``) with these channels and this number in its level,
            (B, H, W, C) -> (B, H, W, C).
        others: See :class:`MambaIRUNet`.

    Raises:
        ValueError: An impossible combination.
    """

    patch_multiple = _MULTIPLE  # of training patches, which nothing pads

    def __init__(
        self,
        block: Callable[[str, int, int], nn.Module],
        *,
        inp_channels: int,
        out_channels: int,
        dim: int,
        num_blocks: Sequence[int],
        num_refinement_blocks: int,
        bias: bool,
        dual_pixel_task: bool,
        use_checkpoint: bool,
    ):
        super().__init__()
        if len(num_blocks) != 4:
            raise ValueError(f"{type(self).__name__}: num_blocks must have 4 entries, got {list(num_blocks)}.")
        if inp_channels != out_channels and not dual_pixel_task:
            raise ValueError(
                f"{type(self).__name__}: the output is added to the input, so out_channels ({out_channels}) must equal "
                f"inp_channels ({inp_channels}) unless dual_pixel_task is set."
            )
        self.inp_channels = inp_channels

        def level(name: str, channels: int, depth: int) -> BlockSequence:
            return BlockSequence([block(name, channels, i) for i in range(depth)], use_checkpoint)

        n1, n2, n3, n4 = num_blocks
        self.patch_embed = OverlapPatchEmbed(inp_channels, dim)
        self.encoder_level1 = level("encoder_level1", dim, n1)
        self.down1_2 = Resample(dim, down=True)
        self.encoder_level2 = level("encoder_level2", 2 * dim, n2)
        self.down2_3 = Resample(2 * dim, down=True)
        self.encoder_level3 = level("encoder_level3", 4 * dim, n3)
        self.down3_4 = Resample(4 * dim, down=True)
        self.latent = level("latent", 8 * dim, n4)
        self.up4_3 = Resample(8 * dim, down=False)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = level("decoder_level3", 4 * dim, n3)
        self.up3_2 = Resample(4 * dim, down=False)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = level("decoder_level2", 2 * dim, n2)
        self.up2_1 = Resample(2 * dim, down=False)
        self.decoder_level1 = level("decoder_level1", 2 * dim, n1)  # the concatenated skip is not reduced on this level
        self.refinement = level("refinement", 2 * dim, num_refinement_blocks)
        self.skip_conv = nn.Conv2d(dim, 2 * dim, 1, bias=bias) if dual_pixel_task else None
        self.add_output(2 * dim, out_channels, bias)

    def add_output(self, channels: int, out_channels: int, bias: bool) -> None:
        """Make the layers behind the last block; a network with another end overrides this and :meth:`finish`."""
        self.output = nn.Conv2d(channels, out_channels, 3, padding=1, bias=bias)

    def finish(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The output image from features (B, 2 dim, H, W) and the input image."""
        return self.output(x) + image

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Restore a batch of images (B, inp_channels, H, W) with values in [0, 1].

        Raises:
            ValueError: Wrong number of dimensions or channels, or sides that are no multiples of 8.
        """
        if (
            image.dim() != 4
            or image.shape[1] != self.inp_channels
            or any(n % _MULTIPLE or n == 0 for n in image.shape[-2:])
        ):
            raise ValueError(
                f"{type(self).__name__}: expected an input of shape (B, {self.inp_channels}, H, W) with H and W "
                f"multiples of {_MULTIPLE} (the model class pads), got {tuple(image.shape)}."
            )
        embedded = self.patch_embed(image)  # (B, H, W, dim)
        skip1 = self.encoder_level1(embedded)
        skip2 = self.encoder_level2(self.down1_2(skip1))
        skip3 = self.encoder_level3(self.down2_3(skip2))
        x = self.latent(self.down3_4(skip3))  # (B, H/8, W/8, 8 dim)
        x = torch.cat((self.up4_3(x), skip3), dim=-1)
        x = self.decoder_level3(conv_channels_last(self.reduce_chan_level3, x))
        x = torch.cat((self.up3_2(x), skip2), dim=-1)
        x = self.decoder_level2(conv_channels_last(self.reduce_chan_level2, x))
        x = torch.cat((self.up2_1(x), skip1), dim=-1)
        x = self.refinement(self.decoder_level1(x)).permute(0, 3, 1, 2)  # (B, 2 dim, H, W)
        if self.skip_conv is None:
            return self.finish(x, image)
        return self.output(x + self.skip_conv(embedded.permute(0, 3, 1, 2)))


@ARCH_REGISTRY.register()
class MambaIRUNet(StateSpaceUNet):
    """U-Net for same-size restoration. Input and output (B, C, H, W) with H and W multiples of 8.

    Other sizes are padded by the model class.

    Args:
        inp_channels (int): Channels of the input image.
        out_channels (int): Channels of the output image; equal to inp_channels unless dual_pixel_task.
        dim (int): Channels of the first level, at least 30; level n has dim * 2^(n-1).
        num_blocks (Sequence[int]): Blocks on the four levels (the decoder mirrors the encoder).
        num_refinement_blocks (int): Blocks after the decoder, at full resolution with 2 * dim channels.
        mlp_ratio (float): Inner channels of SS2D are int(mlp_ratio * channels).
        d_state (int): State size N of the selective scans.
        drop_path_rate (float): DropPath probability of every block.
        bias (bool): Bias of reduce_chan_level*, skip_conv and output; the other convolutions here have none.
        dual_pixel_task (bool): Defocus deblurring: no image residual, a skip from the embedding to the output instead.
        use_checkpoint (bool): Recompute blocks in the backward pass to save memory.

    Raises:
        ValueError: An unknown option or an impossible combination.
    """

    option_rules = UNET
    check_options = staticmethod(check_unet)

    @strict_options
    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        mlp_ratio: float = 1.5,
        d_state: int = 16,
        drop_path_rate: float = 0.0,
        bias: bool = False,
        dual_pixel_task: bool = False,
        use_checkpoint: bool = False,
    ):
        super().__init__(
            lambda level, channels, number: ResidualStateSpaceBlock(channels, d_state, mlp_ratio, drop_path_rate),
            inp_channels=inp_channels,
            out_channels=out_channels,
            dim=dim,
            num_blocks=num_blocks,
            num_refinement_blocks=num_refinement_blocks,
            bias=bias,
            dual_pixel_task=dual_pixel_task,
            use_checkpoint=use_checkpoint,
        )


@network_info.register(MambaIRUNet)
def _(net: MambaIRUNet) -> NetworkInfo:
    return NetworkInfo(
        channels=net.inp_channels,
        size_multiple=_MULTIPLE,
        full_precision=("patch_embed.proj", "*.cab.*.attention.*", "skip_conv", "output"),
        behind_scan=BEHIND_SCAN,
        sources=BLOCK_SOURCES,
        blocks=("encoder_level?.*", "latent.*", "decoder_level?.*", "refinement.*"),
    )


@detects("MambaIRUNet")
def _(keys: Keys) -> dict:
    blocks = keys.unet_blocks()
    return keys.unet() | {
        "mlp_ratio": ratio(*((keys[f"{b}.self_attention.out_proj.weight"][1], width) for b, width in blocks)),
        "d_state": keys[f"{blocks[0][0]}.self_attention.A_logs"][1],
        "dual_pixel_task": "skip_conv.weight" in keys,
    }


@ARCH_REGISTRY.register()
@quantized_form(MambaIRUNet)
class QMambaIRUNet(MambaIRUNet):
    """The graph of :class:`MambaIRUNet`, then ``prepare``.

    Quantized (our reading, unpublished): everything MambaIR quantizes in a block, and the resampling and channel
    reducing convolutions between levels.

    Args:
        quant (Mapping): The ``quant:`` block, see ``quantizers/spec.py``.
        options: The constructor options of :class:`MambaIRUNet`.

    Raises:
        ValueError: An unknown option.
        SpecError: Unknown or impossible settings under ``quant``.
    """
