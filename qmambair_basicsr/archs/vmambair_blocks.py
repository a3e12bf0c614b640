"""The block of VmambaIR: scans of the map in four directions, then a scan of its channels that gates them.

Source: "VmambaIR: Visual State Space Model for Image Restoration" (arXiv:2403.11423), section 3 (OSS module), as the
authors' four networks really compute it. Feature maps are channels-last, (B, H, W, C), between modules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.ss2d_scan import ss2d_scan
from ..quantizers.site import Site
from .blocks import conv_channels_last
from .eamamba_blocks import ChannelNorm, GatedMixer
from .integer_projections import IntegerProjections
from .ss2d import DECAY, ScanParameters

STATE = 16
_CHANNEL_PROJECTIONS = ("xc_proj", "dtc_projs")
_CHANNEL_DIRECTIONS = ("row", "row_rev")  # the channels are the columns of a map of height 1


@dataclass(frozen=True)
class ChannelScan:
    """How a network scans the channels of a map.

    Attributes:
        width: the mean of a channel is widened to so many values (``conv_cin``); None: scanned as it is.
        additive: the gate c acts as y + c instead of y + y * c.
    """

    width: int | None
    additive: bool = False

    @property
    def rank(self) -> int | None:
        """Rank of the projection that yields delta; None: as for the map."""
        return None if self.width is None else 6


class OmniScan(ScanParameters):
    """OSS: in_conv, depthwise conv, four scans, LayerNorm, SiLU gate, scan of the channels, out_conv.

    The parameters of the channels' scan lie beside those of the map's, as in the authors' checkpoints:
    ``xc_proj_weight`` (2, R + 2N, d), ``dtc_projs_weight`` (2, d, R), ``dtc_projs_bias`` (2, d), ``Ac_logs`` (2 d, N),
    ``Dsc`` (2 d), with d values per channel. Its sites are those of the map's scan: ``xc_proj`` and ``dtc_projs``, and
    ``channel_u``, ``channel_delta``, ``channel_A`` and so on.

    Args:
        dim (int): Channels.
        channel (ChannelScan): The scan of the channels.
        bias_norm (bool): LayerNorms with bias.
    """

    entry_points = (*ScanParameters.entry_points, "scan_channels")
    stacked_inputs = (*ScanParameters.stacked_inputs, "dtc_projs")

    def __init__(self, dim: int, channel: ChannelScan, bias_norm: bool):
        rank = math.ceil(dim / 16)
        super().__init__(dim, STATE, dt_rank=rank)
        self.channel, self.channel_rank = channel, channel.rank or rank
        width, count = channel.width or 1, len(_CHANNEL_DIRECTIONS)
        self.xc_proj_weight = nn.Parameter(torch.empty(count, self.channel_rank + 2 * STATE, width))
        self.dtc_projs_weight = nn.Parameter(torch.empty(count, width, self.channel_rank))
        self.dtc_projs_bias = nn.Parameter(torch.empty(count, width))
        self.Ac_logs = nn.Parameter(torch.empty(count * width, STATE))
        self.Dsc = nn.Parameter(torch.ones(count * width))
        self.register_module("channel_projections", None)  # as ``projections``, for the channels
        self.reset_channel_scan()
        if channel.width is not None:
            self.conv_cin, self.conv_cout = nn.Conv2d(1, width, 1), nn.Conv2d(width, 1, 1)
        self.channel_norm = ChannelNorm(dim, bias_norm)
        self.in_conv = nn.Conv2d(dim, 2 * dim, 1)
        self.conv2d = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.out_norm = ChannelNorm(dim, bias_norm)
        self.out_conv = nn.Conv2d(dim, dim, 1)

    def quantization_sites(self) -> tuple[Site, ...]:
        count, width = self.dtc_projs_bias.shape

        def scan(name: str, channels: int, parameter: str | None = None, **more) -> Site:
            return self._scan_site(f"channel_{name}", channels, parameter, operation="channel_scan", **more)

        return (
            *super().quantization_sites(),
            *self._projection_sites("xc_proj", self.xc_proj_weight, width, copies=count),
            *self._projection_sites("dtc_projs", self.dtc_projs_weight, self.channel_rank),
            scan("u", width, copies=count),
            scan("delta", width),
            scan("A", STATE, "Ac_logs", derived=DECAY),
            scan("B", STATE),
            scan("C", STATE),
            scan("D", count * width, "Dsc"),
            scan("dt_bias", width, "dtc_projs_bias"),
        )

    def inner_sources(self) -> dict[str, tuple[str, slice]]:
        return super().inner_sources() | {"dtc_projs": ("xc_proj", slice(0, self.channel_rank))}

    def lower_products(self) -> tuple[str, ...]:
        names = _CHANNEL_PROJECTIONS
        if not self._multiplies_codes(names):
            return super().lower_products()
        sizes = len(_CHANNEL_DIRECTIONS), self.channel_rank, STATE
        self.channel_projections = IntegerProjections(sizes, self, names, apart=False)
        return (*super().lower_products(), *names)

    @torch.no_grad()
    def reset_channel_scan(self) -> None:
        """The authors' start: normal values where the means are widened, Mamba's start where they are not."""
        width = self.xc_proj_weight.shape[2]
        self.xc_proj_weight.uniform_(-(width**-0.5), width**-0.5)
        if self.channel.width is not None:
            for parameter in (self.Ac_logs, self.dtc_projs_weight, self.dtc_projs_bias):
                parameter.normal_()
            return
        usual = ScanParameters(width, STATE, self.channel_rank, _CHANNEL_DIRECTIONS)
        for name in ("dt_projs_weight", "dt_projs_bias"):
            getattr(self, name.replace("dt_", "dtc_")).copy_(getattr(usual, name))
        self.Ac_logs.copy_(usual.A_logs)

    def scan_channels(self, y: torch.Tensor) -> torch.Tensor:
        """Gate of every channel of a map (B, H, W, C): (B, 1, 1, C), normalised over the channels, signed."""
        means = y.mean((1, 2))[:, None, None]  # (B, 1, 1, C)
        widened = means if self.channel.width is None else self.conv_cin(means)  # (B, d, 1, C)
        u = widened.permute(0, 2, 3, 1)  # (B, 1, C, d)
        if self.channel_projections is not None:
            delta, b, c = self.channel_projections(u)
        else:
            delta, b, c = self._projected(u, _CHANNEL_PROJECTIONS, (self.channel_rank, STATE), apart=False)
        count, width = self.dtc_projs_bias.shape
        u, delta, b, c = self.joint_sites(channel_u=u, channel_delta=delta, channel_B=b, channel_C=c)
        scanned = ss2d_scan(
            u,
            delta,
            self.derived_site("channel_A", self.Ac_logs, DECAY).view(count, width, STATE),
            b,
            c,
            self.site("channel_D", self.Dsc).view(count, width),
            self.site("channel_dt_bias", self.dtc_projs_bias),
            directions=_CHANNEL_DIRECTIONS,
        )
        scanned = scanned.permute(0, 3, 1, 2)  # (B, d, 1, C)
        return self.channel_norm(scanned if self.channel.width is None else self.conv_cout(scanned))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x, gate = conv_channels_last(self.in_conv, x).chunk(2, dim=-1)
        x = F.silu(conv_channels_last(self.conv2d, x))
        y = self.out_norm(self.scan(x, *self.project(x))) * F.silu(gate)
        c = self.scan_channels(y)
        return conv_channels_last(self.out_conv, y + c if self.channel.additive else torch.addcmul(y, y, c))


class OmniScanBlock(nn.Module):
    """x <- x + OSS(norm(x)); x <- x + GDFN(norm(x)).

    Args:
        dim (int): Channels.
        channel (ChannelScan): The scan of the channels.
        factor (float): Expansion of the GDFN.
        bias (bool): Bias of the GDFN's convolutions.
        bias_norm (bool): LayerNorms with bias.
    """

    def __init__(self, dim: int, channel: ChannelScan, factor: float, bias: bool, bias_norm: bool):
        super().__init__()
        self.norm1 = ChannelNorm(dim, bias_norm)
        self.attn = OmniScan(dim, channel, bias_norm)
        self.norm2 = ChannelNorm(dim, bias_norm)
        self.ffn = GatedMixer(dim, factor, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.attn(self.norm1(x))
        return x + conv_channels_last(self.ffn, self.norm2(x))
