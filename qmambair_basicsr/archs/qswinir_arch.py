"""QSwinIR: BasicSR's own SwinIR with a fake-quantized body.

Source: "SwinIR: Image Restoration Using Swin Transformer" (arXiv:2108.10257). The network is BasicSR's class; what is
here is where it may be quantized: ``attn.qkv``, ``attn.proj``, ``mlp.fc1`` and ``mlp.fc2`` of every block, the
convolution behind the blocks of a group (``layers.*.conv``, unless ``quant: conv`` is ``fp``, as 2DQuant, CondiQuant and
SPR2Q report) and, with ``quant: attention``, the operands of the two products of the attention: queries, which are
scaled already, keys, the attention map and values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from basicsr.archs.swinir_arch import SwinIR, SwinTransformerBlock, WindowAttention
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from ..constants import ConstantBuffers
from ..layers.detection import Keys, detects, ratio
from ..layers.info import NetworkInfo, network_info
from ..layers.matmul import MatMul
from .quantized import quantized_form
from .windows import relative_position_index


class AttentionOfProducts(ConstantBuffers, WindowAttention):
    """BasicSR's window attention with its products as modules."""

    def constant_buffers(self) -> dict[str, Tensor]:
        return {"relative_position_index": relative_position_index(self.window_size[0])}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(windows * B, T, C), mask (windows, T, T) of the windows of one image -> (windows * B, T, C)."""
        count, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (windows * B, heads, T, C / heads) each
        scores = self.qk_matmul(q * self.scale, k.transpose(-2, -1))
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        scores = scores + bias.view(tokens, tokens, -1).permute(2, 0, 1)
        if mask is not None:
            masked = scores.view(-1, mask.shape[0], self.num_heads, tokens, tokens) + mask[None, :, None]
            scores = masked.view(scores.shape)
        x = self.av_matmul(self.attn_drop(scores.softmax(-1)), v)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(count, tokens, channels)))


class BlockOfConstants(ConstantBuffers, SwinTransformerBlock):
    """BasicSR's block, whose mask of shifted windows a file cannot change."""

    def constant_buffers(self) -> dict[str, Tensor]:
        if self.attn_mask is None:
            return {}
        with torch.device("cpu"):
            return {"attn_mask": self.calculate_mask(self.input_resolution)}


def with_products(net: SwinIR) -> None:
    """Put the products of every attention into modules."""
    for module in net.modules():
        if type(module) is WindowAttention:
            module.__class__ = AttentionOfProducts
            module.qk_matmul, module.av_matmul = MatMul(operands=("q", "k")), MatMul(operands=("map", "v"))
        elif type(module) is SwinTransformerBlock:
            module.__class__ = BlockOfConstants


@network_info.register(SwinIR)
def _(net: SwinIR) -> NetworkInfo:
    blocks = [module for module in net.modules() if isinstance(module, SwinTransformerBlock)]
    return NetworkInfo(
        channels=net.conv_first.in_channels,
        scale=net.upscale if net.upsampler else 1,
        size_multiple=blocks[0].window_size,
        full_precision=(
            "conv_first",
            "conv_after_body",
            "conv_after_body.*",
            "conv_before_upsample.*",
            "upsample.*",
            "conv_up1",
            "conv_up2",
            "conv_hr",
            "conv_last",
        ),
        group_convs=("layers.*.conv",),
        blocks=("layers.*.residual_group.blocks.*",),
    )


@detects("SwinIR")
def _(keys: Keys) -> dict:
    """``img_range`` cannot be seen: 255 in the published JPEG network, which alone has windows of 7, else 1."""
    options, block = keys.group_net(), "layers.0.residual_group.blocks.0"
    depths = keys.counts("layers", "residual_group.blocks")
    window = math.isqrt(keys[f"{block}.attn.relative_position_index"][0])
    masks = [shape[0] for name, shape in keys.items() if name.endswith(".attn_mask")]  # of the windows of img_size
    heads = (f"layers.{i}.residual_group.blocks.0.attn.relative_position_bias_table" for i in range(len(depths)))
    return options | {
        "depths": depths,
        "num_heads": [keys[table][1] for table in heads],
        "window_size": window,
        "img_size": window * math.isqrt(masks[0]) if masks else window,
        "mlp_ratio": ratio((keys[f"{block}.mlp.fc1.weight"][0], options["embed_dim"])),
        "qkv_bias": f"{block}.attn.qkv.bias" in keys,
        "ape": "absolute_pos_embed" in keys,
        "img_range": 255.0 if window == 7 else 1.0,
    }


@ARCH_REGISTRY.register()
@quantized_form(SwinIR, with_products)
class QSwinIR(SwinIR):
    """The graph of BasicSR's SwinIR, then ``prepare``. Arguments and errors as :class:`~.qmambair_arch.QMambaIR`."""

    @staticmethod
    def patch_multiple(options: Mapping) -> int:
        """What the sides of a training patch must be multiples of, for the check of option files."""
        window = options.get("window_size", 7)
        return window if isinstance(window, int) else 1
