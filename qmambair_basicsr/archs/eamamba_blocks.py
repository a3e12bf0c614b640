"""The block of EAMamba: heads that scan all around the map, and a channel mixer.

Source: "EAMamba: Efficient All-Around Vision State Space Model for Image Restoration" (arXiv:2506.22246), section 3.
Feature maps are channels-last, (B, H, W, C), and lie at raster positions throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn

from ..strict import check_keys
from .blocks import conv_channels_last
from .scan_orders import eamamba_order
from .ss2d import ScanParameters


@dataclass(frozen=True)
class MambaConfig:
    """The ``mamba_cfg`` block of the official option files.

    Attributes:
        scan_type: ``diagonal``, ``zigzag``, or None: rows and columns alone; see ``scan_orders.eamamba_order``.
        scan_count: K, heads.
        scan_merge_method: ``concate``: each head scans D / K channels of its own; ``add``: each scans all, summed.
        disable_z_branch: no SiLU gate.
        d_state: state size N.
        d_conv: size of the depthwise convolution before the scan.
        expand: inner channels D = int(expand * dim).
        conv_2d: the convolution is 2-D; otherwise it is causal along the raster sequence.
    """

    scan_type: str | None = None
    scan_count: int = 4
    scan_merge_method: str = "concate"
    disable_z_branch: bool = False
    d_state: int = 16
    d_conv: int = 3
    expand: float = 1.0
    conv_2d: bool = True

    def __post_init__(self):
        eamamba_order(1, 1, torch.device("cpu"), scan_type=self.scan_type, count=self.scan_count)
        if self.scan_merge_method not in ("concate", "add"):
            raise ValueError(f"scan_merge_method must be 'concate' or 'add', got {self.scan_merge_method!r}")
        if self.conv_2d and self.d_conv % 2 == 0:
            raise ValueError(f"d_conv must be odd for a 2-D convolution, got {self.d_conv}")

    @classmethod
    def from_dict(cls, given: Mapping | None) -> MambaConfig:
        """The block as it stands in an option file.

        Raises:
            ValueError: An unknown key or value.
        """
        given = dict(given or {})
        check_keys("mamba_cfg", given, [field.name for field in fields(cls)])
        return cls(**given)


class ChannelNorm(nn.Module):
    """LayerNorm over channels, parameters in ``body``; without bias the mean is not subtracted either (Restormer).

    Args:
        dim (int): Channels.
        bias (bool): Subtract the mean and add a bias; otherwise divide by the standard deviation alone.
    """

    def __init__(self, dim: int, bias: bool):
        super().__init__()
        self.body = nn.LayerNorm(dim, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., C)."""
        if self.body.bias is not None:
            return self.body(x)
        return x * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + self.body.eps) * self.body.weight


MIXER_SOURCES = (
    ("ffn.dwconv", "ffn.project_in"),
    ("ffn.project_out", "ffn.dwconv", 1, 2),  # the half without GELU
)
BLOCK_SOURCES = (
    ("mamba.in_proj", "norm1.body"),
    ("mamba.out_proj", "mamba.out_norm"),  # the gate multiplies behind the norm
    ("ffn.project_in", "norm2.body"),
    *MIXER_SOURCES,
)
"""What computes the inputs of a block's products, see ``NetworkInfo.sources``."""


class AllAroundScan(ScanParameters):
    """MHSS: in_proj, depthwise conv, K heads that scan in K orders, LayerNorm, SiLU gate, out_proj (section 3.2).

    Args:
        dim (int): Channels of input and output.
        config (MambaConfig): Everything else.

    Raises:
        ValueError: Heads that do not divide the channels.
    """

    def __init__(self, dim: int, config: MambaConfig):
        inner, heads = int(config.expand * dim), config.scan_count
        apart = config.scan_merge_method == "concate"
        if apart and inner % heads:
            raise ValueError(
                f"scan_count {heads} must divide the {inner} inner channels (dim {dim}, expand {config.expand})"
            )
        super().__init__(
            inner // heads if apart else inner,
            config.d_state,
            dt_rank=math.ceil(dim / 16),
            directions=("row",) * heads,  # to be counted: every scan follows an explicit order
            apart=apart,
        )
        self.config = config
        self.in_proj = nn.Linear(dim, inner if config.disable_z_branch else 2 * inner, bias=False)
        kernel = config.d_conv
        if config.conv_2d:
            self.conv = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner)
        else:
            self.conv = nn.Conv1d(inner, inner, kernel, padding=kernel - 1, groups=inner)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """Depthwise convolution and SiLU, (B, H, W, D) -> (B, H, W, D)."""
        if self.config.conv_2d:
            return F.silu(conv_channels_last(self.conv, x))
        sequence = self.conv(x.flatten(1, 2).transpose(1, 2))[..., : x.shape[1] * x.shape[2]]
        return F.silu(sequence.transpose(1, 2).unflatten(1, x.shape[1:3]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        heads, kind = self.config.scan_count, self.config.scan_type
        order = eamamba_order(*x.shape[1:3], x.device, scan_type=kind, count=heads)
        x, *gate = (self.in_proj(x),) if self.config.disable_z_branch else self.in_proj(x).chunk(2, dim=-1)
        x = self.convolve(x)
        x = x.unflatten(-1, (heads, -1)) if self.apart else x
        y = self.scan(x, *self.project(x), order=order, merge=not self.apart)
        y = self.out_norm(y.flatten(3))
        return self.out_proj(y * F.silu(gate[0]) if gate else y)


class SimpleMixer(nn.Module):
    """Product of the two halves of a wider map: project_in, split, product, project_out.

    Args:
        dim (int): Channels of input and output.
        factor (float): The wider map has int(factor * dim) channels.
        bias (bool): Bias of the convolutions.
    """

    def __init__(self, dim: int, factor: float, bias: bool):
        super().__init__()
        hidden = int(factor * dim)
        self.project_in = nn.Conv2d(dim, hidden, 1, bias=bias)
        self.project_out = nn.Conv2d(hidden // 2, dim, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        first, second = self.project_in(x).chunk(2, dim=1)
        return self.project_out(first * second)


class GatedMixer(nn.Module):
    """GDFN of Restormer (arXiv:2111.09881): project_in, depthwise 3x3, GELU of one half times the other, project_out.

    Args:
        dim (int): Channels of input and output.
        factor (float): Each half has int(factor * dim) channels.
        bias (bool): Bias of the convolutions.
    """

    def __init__(self, dim: int, factor: float, bias: bool):
        super().__init__()
        hidden = int(factor * dim)
        self.project_in = nn.Conv2d(dim, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, dim, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        first, second = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(first) * second)


MIXERS = {"Simple": SimpleMixer, "GDFN": GatedMixer}


@dataclass(frozen=True)
class BlockOptions:
    """Shared by all blocks of a network.

    Attributes:
        mamba: Of the scan.
        mixer: ``Simple`` or ``GDFN``.
        factor: Expansion of the mixer.
        bias: Bias of the mixer's convolutions.
        norm: ``WithBias`` or ``BiasFree``.
    """

    mamba: MambaConfig
    mixer: str
    factor: float
    bias: bool
    norm: str

    def __post_init__(self):
        if self.mixer not in MIXERS:
            raise ValueError(f"channel_mixer_type must be one of {', '.join(map(repr, MIXERS))}, got {self.mixer!r}")
        if self.norm not in ("WithBias", "BiasFree"):
            raise ValueError(f"layernorm_type must be 'WithBias' or 'BiasFree', got {self.norm!r}")


class EAMambaBlock(nn.Module):
    """MambaFormer block: x <- x + MHSS(norm(x)); x <- x + mixer(norm(x)).

    Args:
        dim (int): Channels.
        options (BlockOptions): The rest.
    """

    def __init__(self, dim: int, options: BlockOptions):
        super().__init__()
        with_bias = options.norm == "WithBias"
        self.norm1 = ChannelNorm(dim, with_bias)
        self.mamba = AllAroundScan(dim, options.mamba)
        self.norm2 = ChannelNorm(dim, with_bias)
        self.ffn = MIXERS[options.mixer](dim, options.factor, options.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.mamba(self.norm1(x))
        return x + conv_channels_last(self.ffn, self.norm2(x))
