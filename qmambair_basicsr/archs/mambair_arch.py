"""MambaIR: a residual network of state-space groups for super-resolution, denoising and JPEG artifact reduction.

Source: "MambaIR: A Simple Baseline for Image Restoration with State-Space Model" (arXiv:2402.15648). Parameter names
and shapes are those of the official checkpoints, which load with ``strict=True``; outputs and input gradients are
tested against vectors of the official implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from basicsr.archs.arch_util import Upsample
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from ..layers.detection import Keys, detects, ratio
from ..layers.info import NetworkInfo, network_info
from ..strict import strict_options
from .blocks import BLOCK_SOURCES, ResidualStateSpaceBlock, ResidualStateSpaceGroup, conv_channels_last, residual_conv
from .option_rules import MAMBAIR, check_mambair
from .ss2d import BEHIND_SCAN

_RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K
_NUM_FEAT = 64  # channels of the 'pixelshuffle' tail


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> channels-last tokens (B, H, W, C), normalised if asked for."""

    def __init__(self, dim: int, norm: bool):
        super().__init__()
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1).contiguous())


def initialise_weights(module: nn.Module) -> None:
    """Linear weights: truncated normal of standard deviation 0.02, zero bias; everything else keeps torch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ResidualGroupNet(nn.Module):
    """Shallow convolution, residual groups of blocks, upsampling tail: the graph around the blocks of MambaIR and MaIR.

    Input (B, in_chans, H, W) of any size, output (B, in_chans, H * upscale, W * upscale).

    Args:
        block (Callable[[int, float], nn.Module]): Makes the block with this number in its group and this DropPath
            probability, (B, H, W, C) -> (B, H, W, C).
        others: See :class:`MambaIR`.
    """

    def __init__(
        self,
        block: Callable[[int, float], nn.Module],
        *,
        in_chans: int,
        embed_dim: int,
        depths: Sequence[int],
        drop_rate: float,
        drop_path_rate: float,
        patch_norm: bool,
        use_checkpoint: bool,
        upscale: int,
        img_range: float,
        upsampler: str | None,
        resi_connection: str,
    ):
        super().__init__()
        self.in_chans, self.img_range = in_chans, img_range
        self.upsampler, self.upscale = upsampler or "", upscale if upsampler else 1
        mean = torch.tensor(_RGB_MEAN if in_chans == 3 else (0.0,)).view(1, -1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)  # no state_dict entry, as in official checkpoints

        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.patch_embed = PatchEmbed(embed_dim, patch_norm)
        self.pos_drop = nn.Dropout(drop_rate)
        total, first = sum(depths), 0
        self.layers = nn.ModuleList()
        for depth in depths:
            blocks = [block(i, drop_path_rate * (first + i) / max(total - 1, 1)) for i in range(depth)]
            self.layers.append(ResidualStateSpaceGroup(blocks, embed_dim, resi_connection, use_checkpoint))
            first += depth
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = residual_conv(embed_dim, resi_connection)

        if self.upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, _NUM_FEAT, 3, padding=1), nn.LeakyReLU(0.01))
            self.upsample = Upsample(upscale, _NUM_FEAT)
            self.conv_last = nn.Conv2d(_NUM_FEAT, in_chans, 3, padding=1)
        elif self.upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(
                nn.Conv2d(embed_dim, in_chans * upscale**2, 3, padding=1), nn.PixelShuffle(upscale)
            )
        elif not self.upsampler:
            self.conv_last = nn.Conv2d(embed_dim, in_chans, 3, padding=1)
        else:
            raise ValueError(
                f"{type(self).__name__}: unknown upsampler '{upsampler}'. Allowed: 'pixelshuffle', "
                "'pixelshuffledirect', '' (same size)."
            )
        self.apply(initialise_weights)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Body: (B, C, H, W) -> (B, C, H, W)."""
        x = self.pos_drop(self.patch_embed(x))  # (B, H, W, C)
        for layer in self.layers:
            x = layer(x)
        return conv_channels_last(self.conv_after_body, self.norm(x)).permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Restore a batch of images (B, in_chans, H, W) with values in [0, 1].

        Raises:
            ValueError: Wrong number of dimensions or channels.
        """
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"{type(self).__name__}: expected an input of shape (B, {self.in_chans}, H, W), got {tuple(x.shape)}."
            )
        image = (x - self.mean) * self.img_range
        first = self.conv_first(image.contiguous(memory_format=torch.channels_last))
        features = first + self.forward_features(first)
        if self.upsampler == "pixelshuffle":
            out = self.conv_last(self.upsample(self.conv_before_upsample(features)))
        elif self.upsampler == "pixelshuffledirect":
            out = self.upsample(features)
        else:
            out = image + self.conv_last(features)
        return out / self.img_range + self.mean


@ARCH_REGISTRY.register()
class MambaIR(ResidualGroupNet):
    """MambaIR. Input (B, in_chans, H, W) of any size, output (B, in_chans, H * upscale, W * upscale).

    Args:
        in_chans (int): Image channels. With 3 the mean colour of DIV2K is subtracted, otherwise nothing.
        embed_dim (int): Channels d of the body; at least 30.
        depths (Sequence[int]): Blocks in each residual state-space group.
        d_state (int): State size N of the selective scans.
        mlp_ratio (float): Inner channels of SS2D are int(mlp_ratio * embed_dim).
        drop_rate (float): Dropout after the patch embedding.
        drop_path_rate (float): DropPath probability of the last block; grows linearly from 0 at the first.
        patch_norm (bool): LayerNorm in the patch embedding.
        use_checkpoint (bool): Recompute blocks in the backward pass to save memory.
        upscale (int): Scale of the output; without an upsampler it has no effect.
        img_range (float): Images are scaled by this inside the network; they enter and leave in [0, 1].
        upsampler (str | None): 'pixelshuffle' (2^n or 3), 'pixelshuffledirect' (selects the light CAB as well), or
            '' / None: same-size restoration, the network predicts a residual image.
        resi_connection (str): '1conv' or '3conv'.
        img_size (int): Without effect; accepted because official option files have it.
        patch_size (int): Without effect, as above.
        window_size (int): Without effect, as above.
        num_heads (int | Sequence[int]): Without effect, as above.

    Raises:
        ValueError: An unknown option, upsampler or resi_connection.
    """

    option_rules = MAMBAIR
    check_options = staticmethod(check_mambair)

    @strict_options
    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (6, 6, 6, 6),
        d_state: int = 16,
        mlp_ratio: float = 2.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        upscale: int = 2,
        img_range: float = 1.0,
        upsampler: str | None = "",
        resi_connection: str = "1conv",
        img_size: int = 64,
        patch_size: int = 1,
        window_size: int = 16,
        num_heads: int | Sequence[int] = 6,
    ):
        del img_size, patch_size, window_size, num_heads  # documented as without effect
        light = upsampler == "pixelshuffledirect"
        super().__init__(
            lambda _, drop_path: ResidualStateSpaceBlock(embed_dim, d_state, mlp_ratio, drop_path, light),
            in_chans=in_chans,
            embed_dim=embed_dim,
            depths=depths,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            patch_norm=patch_norm,
            use_checkpoint=use_checkpoint,
            upscale=upscale,
            img_range=img_range,
            upsampler=upsampler,
            resi_connection=resi_connection,
        )


@network_info.register(MambaIR)
def _(net: MambaIR) -> NetworkInfo:
    return NetworkInfo(
        channels=net.in_chans,
        scale=net.upscale,
        full_precision=(
            "conv_first",
            "*.cab.*.attention.*",
            "conv_after_body",
            "conv_after_body.*",
            "conv_before_upsample.*",
            "upsample.*",
            "conv_last",
        ),
        group_convs=("layers.*.conv",),
        behind_scan=BEHIND_SCAN,
        sources=BLOCK_SOURCES,
        blocks=("layers.*.residual_group.blocks.*",),
    )


@detects("MambaIR")
def _(keys: Keys) -> dict:
    """``img_range`` cannot be seen; it is 1 in every published configuration."""
    options, scan = keys.group_net(), "layers.0.residual_group.blocks.0.self_attention"
    return options | {
        "depths": keys.counts("layers", "residual_group.blocks"),
        "d_state": keys[f"{scan}.A_logs"][1],
        "mlp_ratio": ratio((keys[f"{scan}.out_proj.weight"][1], options["embed_dim"])),
    }
