"""The residual block of MaIR: a scan along nested S-shaped stripes with gated directions, and an MLP.

Source: "MaIR: A Locality- and Continuity-Preserving Mamba for Image Restoration" (arXiv:2412.20066), section 3.
Feature maps are channels-last, (B, H, W, C), and lie at raster positions throughout.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import DropPath
from .scan_orders import mair_order
from .ss2d import ScanParameters

BLOCK_SOURCES = (
    ("self_attention.in_proj", "ln_1"),
    ("self_attention.conv2d", "self_attention.in_proj", 0, 2),
    ("self_attention.out_proj", "self_attention.out_norm"),  # the gate multiplies behind the norm
    ("conv_blk.fc1", "ln_2"),
    ("mlp.fc1", "ln_2"),  # the U-Net's name for it
)
"""What computes the inputs of a block's products, see ``NetworkInfo.sources``."""


class SequenceShuffleAttention(nn.Module):
    """Weigh the directions' outputs channel by channel and sum them (SSA, section 3.3).

    The gate of direction k in channel d comes from the mean values of channel d in all directions.

    Args:
        channels (int): D.
        count (int): K, directions.
    """

    def __init__(self, channels: int, count: int):
        super().__init__()
        self.count = count
        width = channels * count
        self.gating = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1, groups=channels), nn.Sigmoid())

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """(B, H, W, K, D) -> (B, H, W, D)."""
        means = y.mean((1, 2)).transpose(1, 2)  # (B, D, K)
        gate = self.gating(means.flatten(1)[:, :, None, None]).view_as(means).transpose(1, 2)
        return (y * gate[:, None, None]).sum(3)


class VisualMambaModule(ScanParameters):
    """VMM: in_proj, depthwise conv, four scans along the stripes, SSA, LayerNorm, SiLU gate, out_proj (section 3.1).

    Args:
        d_model (int): Channels of input and output.
        d_state (int): State size N of the scan.
        ssm_ratio (float): Inner channels D = int(ssm_ratio * d_model).
        scan_len (int): Width of a stripe.
        shift (int): Width of the first stripe; 0: as the others.
    """

    def __init__(self, d_model: int, d_state: int, ssm_ratio: float, scan_len: int, shift: int):
        d_inner = int(ssm_ratio * d_model)
        super().__init__(d_inner, d_state, dt_rank=math.ceil(d_model / 16))
        self.scan_len, self.shift = scan_len, shift
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv2d = nn.Conv2d(d_inner, d_inner, 3, padding=1, groups=d_inner)
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.gating = SequenceShuffleAttention(d_inner, len(self.directions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        order = mair_order(*x.shape[1:3], x.device, scan_len=self.scan_len, shift=self.shift)
        x, gate = self.in_proj(x).chunk(2, dim=-1)  # (B, H, W, D) each
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        y = self.gating(self.scan(x, *self.project(x), order=order, merge=False))
        return self.out_proj(self.out_norm(y) * F.silu(gate))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class MaIRBlock(nn.Module):
    """RMB: x <- x * skip_scale + DropPath(VMM(LN(x))); x <- x * skip_scale2 + MLP(LN(x)).

    Args:
        dim (int): Channels.
        d_state (int): State size of the scan.
        ssm_ratio (float): Inner channels of the scan are int(ssm_ratio * dim).
        mlp_ratio (float): Hidden channels of the MLP are int(mlp_ratio * dim).
        scan_len (int): Width of a stripe.
        shift (int): Width of the first stripe; 0: as the others.
        drop_path (float): Drop probability of the scan's branch.
        mlp (str): Name of the MLP in the authors' checkpoints: ``conv_blk``, in the U-Net ``mlp``.
    """

    def __init__(
        self,
        dim: int,
        d_state: int,
        ssm_ratio: float,
        mlp_ratio: float,
        scan_len: int,
        shift: int = 0,
        drop_path: float = 0.0,
        mlp: str = "conv_blk",
    ):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = VisualMambaModule(dim, d_state, ssm_ratio, scan_len, shift)
        self.drop_path = DropPath(drop_path)
        self.skip_scale = nn.Parameter(torch.ones(dim))
        self.mlp_name = mlp
        self.add_module(mlp, Mlp(dim, int(mlp_ratio * dim)))
        self.ln_2 = nn.LayerNorm(dim)
        self.skip_scale2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = torch.addcmul(self.drop_path(self.self_attention(self.ln_1(x))), x, self.skip_scale)
        return torch.addcmul(self.get_submodule(self.mlp_name)(self.ln_2(x)), x, self.skip_scale2)
