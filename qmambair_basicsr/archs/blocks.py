"""Residual state-space blocks and groups shared by MambaIR and MambaIRUNet.

Source: MambaIR (arXiv:2402.15648). Feature maps are channels-last, (B, H, W, C), between modules; convolutions see
them as a (B, C, H, W) view in channels_last memory format, so that no layout conversion takes place.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .ss2d import SS2D

BLOCK_SOURCES = (
    ("self_attention.in_proj", "ln_1"),
    ("self_attention.conv2d", "self_attention.in_proj", 0, 2),
    ("self_attention.out_proj", "self_attention.out_norm"),  # the gate multiplies behind the norm
    ("conv_blk.cab.0", "ln_2"),
    ("conv_blk.cab.1", "conv_blk.cab.0"),  # light: pointwise, depthwise, GELU, pointwise, depthwise
    ("conv_blk.cab.4", "conv_blk.cab.3"),
)
"""What computes the inputs of a block's products, see ``NetworkInfo.sources``."""


def conv_channels_last(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a convolution, or a chain of them, to a channels-last map: (B, H, W, C) -> (B, H, W, C')."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DropPath(nn.Module):
    """Drop a residual branch per sample with probability p in training and rescale the kept ones by 1 / (1 - p).

    Source: stochastic depth (arXiv:1603.09382). Draws from torch's generator of the tensor's device, so
    ``torch.manual_seed`` reproduces it.

    Args:
        p (float): Drop probability in [0, 1).
    """

    def __init__(self, p: float = 0.0):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"DropPath: p must be in [0, 1), got {p}.")
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"p={self.p:.4g}"


class ChannelAttention(nn.Module):
    """Scale channels by a gate computed from their global means (RCAN, arXiv:1807.02758).

    Args:
        channels (int): Channels of the map.
        squeeze (int): Hidden channels = channels // squeeze; must leave at least one.
    """

    def __init__(self, channels: int, squeeze: int = 30):
        super().__init__()
        hidden = channels // squeeze
        if hidden < 1:
            raise ValueError(f"ChannelAttention: {channels} channels are fewer than the squeeze factor {squeeze}.")
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.attention(x)


class CAB(nn.Module):
    """Channel-attention convolution block that follows the SS2D.

    Classic form: two 3x3 convolutions with a third of the channels between them. Light form: pointwise and depthwise
    convolutions with half of the channels, the last depthwise one dilated by 2.

    Args:
        channels (int): Channels of input and output.
        light (bool): Use the light form (light-weight super-resolution nets).
    """

    def __init__(self, channels: int, light: bool = False):
        super().__init__()
        if light:
            hidden = channels // 2
            layers = [
                nn.Conv2d(channels, hidden, 1),
                nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
                nn.GELU(),
                nn.Conv2d(hidden, channels, 1),
                nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=channels),
            ]
        else:
            hidden = channels // 3
            layers = [nn.Conv2d(channels, hidden, 3, padding=1), nn.GELU(), nn.Conv2d(hidden, channels, 3, padding=1)]
        self.cab = nn.Sequential(*layers, ChannelAttention(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.cab(x)


class ResidualStateSpaceBlock(nn.Module):
    """x <- x * skip_scale + DropPath(SS2D(LN(x))); x <- x * skip_scale2 + CAB(LN(x)).  MambaIR, section 3.2.

    RSSB in the paper, ``VSSBlock`` in the authors' code.

    Args:
        dim (int): Channels.
        d_state (int): State size of the scan.
        mlp_ratio (float): SS2D's inner channels are int(mlp_ratio * dim).
        drop_path (float): Drop probability of the SS2D branch.
        light (bool): Light CAB.
    """

    traced_apart = True  # export traces one of each kind: a map in, a map of the same shape out

    def __init__(self, dim: int, d_state: int, mlp_ratio: float, drop_path: float = 0.0, light: bool = False):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = SS2D(dim, d_state=d_state, expand=mlp_ratio)
        self.drop_path = DropPath(drop_path)
        self.skip_scale = nn.Parameter(torch.ones(dim))
        self.conv_blk = CAB(dim, light=light)
        self.ln_2 = nn.LayerNorm(dim)
        self.skip_scale2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = torch.addcmul(self.drop_path(self.self_attention(self.ln_1(x))), x, self.skip_scale)
        return torch.addcmul(conv_channels_last(self.conv_blk, self.ln_2(x)), x, self.skip_scale2)


class BlockSequence(nn.ModuleList):
    """Residual state-space blocks one after the other (``BasicLayer`` in the authors' code).

    Args:
        blocks (list[nn.Module]): The blocks, each (B, H, W, C) -> (B, H, W, C).
        use_checkpoint (bool): Recompute activations in the backward pass, to save memory.
    """

    def __init__(self, blocks: list[nn.Module], use_checkpoint: bool = False):
        super().__init__(blocks)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        for block in self:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


def residual_conv(dim: int, kind: str) -> nn.Module:
    """Convolution before a long residual connection.

    Args:
        dim (int): Channels of input and output.
        kind (str): '1conv' (one 3x3) or '3conv' (3x3, 1x1, 3x3 with a quarter of the channels, LeakyReLU 0.2).

    Raises:
        ValueError: Unknown kind.
    """
    if kind == "1conv":
        return nn.Conv2d(dim, dim, 3, padding=1)
    if kind == "3conv":
        hidden = dim // 4
        return nn.Sequential(
            nn.Conv2d(dim, hidden, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, hidden, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, dim, 3, padding=1),
        )
    raise ValueError(f"resi_connection must be '1conv' or '3conv', got '{kind}'.")


class ResidualStateSpaceGroup(nn.Module):
    """x + conv(blocks(x)).  MambaIR, section 3.1.

    RSSG in the paper, ``ResidualGroup`` in the authors' code.

    Args:
        blocks (list[nn.Module]): The residual state-space blocks.
        dim (int): Channels.
        resi_connection (str): '1conv' or '3conv'.
        use_checkpoint (bool): Recompute the blocks in the backward pass.
    """

    def __init__(self, blocks: list[nn.Module], dim: int, resi_connection: str, use_checkpoint: bool):
        super().__init__()
        self.residual_group = nn.ModuleDict({"blocks": BlockSequence(blocks, use_checkpoint)})
        self.conv = residual_conv(dim, resi_connection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return x + conv_channels_last(self.conv, self.residual_group["blocks"](x))
