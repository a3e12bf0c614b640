"""Table 4 of the Q-MambaIR paper, counted as the paper counted.

Its figures follow from three choices (the text states none of them; every printed digit agrees):

* the network is the one of MambaIR's old ``analysis`` folder: the channel-attention block has two 3x3 convolutions with
  a sixth of the channels, the light network an ``mlp_ratio`` of 1.5. Input: 320 x 320 (640 / 2);
* costs are those of ``thop``: leaf modules only. Raw parameters of a module with children count as nothing (x_proj,
  the second projection, A, D, dt_bias, skip scales), and so does the selective scan. A LayerNorm element counts 4 operations, a pooled
  element 1;
* bits/32 of a count on the quantized part, and what that part is differs from cell to cell, see ``_RULES``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import floor

import torch
from basicsr.archs import build_network
from torch import nn

from ..archs.blocks import ChannelAttention
from ..layers.info import blocks_of
from ..recipes.option_networks import NETS

SIDE = 320
BITS = (32, 4, 2)

_SS2D, _CAB, _GROUP_CONVS = "*.self_attention.*", "*.conv_blk.*", "layers.*.conv"


@dataclass(frozen=True)
class _Rule:
    """How one row of the table was counted.

    Attributes:
        size: Key of ``NETS``.
        changes: Constructor keys of the old network that differ from it.
        parameters: Patterns of the leaf modules whose parameters are multiplied by bits/32.
        dropped: Patterns of those left out of the quantized parameter counts altogether.
        operations: Patterns of those whose operations are multiplied by bits/32.
        units: Name and size of the units of parameters and operations.
        digits: Decimals of both, in full precision and quantized.
        cut: Cells ('parameters' or 'operations', bits) whose last digit is cut off instead of rounded.
    """

    size: str
    changes: dict
    parameters: tuple[str, ...]
    dropped: tuple[str, ...]
    operations: tuple[str, ...]
    units: tuple[tuple[str, float], tuple[str, float]]
    digits: tuple[int, int]
    cut: tuple[tuple[str, int], ...]


_RULES = {
    "MambaIR-light": _Rule(
        size="light",
        changes={"mlp_ratio": 1.5},
        parameters=(_SS2D, _GROUP_CONVS),
        dropped=(_CAB,),
        operations=(_SS2D, _CAB, _GROUP_CONVS),
        units=(("K", 1e3), ("G", 1e9)),
        digits=(2, 2),
        cut=(("operations", 32),),
    ),
    "MambaIR-classic": _Rule(
        size="classic",
        changes={},
        parameters=(_SS2D, _CAB),
        dropped=(),
        operations=(_SS2D, _CAB),
        units=(("M", 1e6), ("T", 1e12)),
        digits=(3, 2),
        cut=(("parameters", 2),),
    ),
}


@dataclass(frozen=True)
class PaperRow:
    """One row of Table 4.

    Attributes:
        network: As in the table.
        bits: Of weights and activations.
        parameters: Computed parameters, in 32-bit ones.
        operations: Computed operations for a 320 x 320 input, called FLOPs in the paper.
        printed_parameters: With the unit and digits of the table.
        printed_operations: As above.
    """

    network: str
    bits: int
    parameters: float
    operations: float
    printed_parameters: str
    printed_operations: str


@dataclass(frozen=True)
class _Leaf:
    name: str
    parameters: int
    operations: int


def old_network(size: str, changes: dict) -> nn.Module:
    """The network of MambaIR's old analysis code at x2, on the meta device."""
    with torch.device("meta"):
        net = build_network({"type": "MambaIR", "upscale": 2, "in_chans": 3, **NETS["MambaIR", size], **changes})
        for block in blocks_of(net).values():
            dim = block.ln_2.normalized_shape[0]
            block.conv_blk.cab = nn.Sequential(
                nn.Conv2d(dim, dim // 6, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(dim // 6, dim, 3, padding=1),
                ChannelAttention(dim),
            )
    return net.eval()


def _operations(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        return y.numel() // y.shape[1] * module.weight.numel()
    if isinstance(module, nn.Linear):
        return y.numel() // y.shape[-1] * module.weight.numel()
    if isinstance(module, nn.LayerNorm):
        return 4 * x.numel()
    return x.numel() if isinstance(module, nn.AdaptiveAvgPool2d) else 0


@torch.no_grad()
def _leaves(net: nn.Module) -> list[_Leaf]:
    """Costs of the leaf modules, each of which runs once."""
    found = []

    def watch(name: str):
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            parameters = sum(p.numel() for p in module.parameters())
            found.append(_Leaf(name, parameters, _operations(module, inputs[0], output)))

        return hook

    for name, module in net.named_modules():
        if not list(module.children()):
            module.register_forward_hook(watch(name))
    net(torch.empty(1, 3, SIDE, SIDE, device="meta"))
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _printed(value: float, unit: tuple[str, float], digits: int, cut: bool) -> str:
    value = value / unit[1] * 10**digits
    return f"{(floor(value) if cut else round(value)) / 10**digits:.{digits}f} {unit[0]}"


def table4() -> list[PaperRow]:
    """The six rows of Table 4: light and classic at 32, 4 and 2 bits."""
    rows = []
    for network, rule in _RULES.items():
        leaves = _leaves(old_network(rule.size, rule.changes))
        for bits in BITS:
            share = bits / 32
            parameters = operations = 0.0
            for leaf in leaves:
                if bits == 32 or not _matches(leaf.name, rule.dropped):
                    parameters += leaf.parameters * (share if _matches(leaf.name, rule.parameters) else 1)
                operations += leaf.operations * (share if _matches(leaf.name, rule.operations) else 1)
            # in full precision the classic row has three decimals in both columns
            digits = rule.digits[0] if bits == 32 else rule.digits[1]
            cells = (
                _printed(value, unit, digits, (kind, bits) in rule.cut)
                for kind, value, unit in zip(
                    ("parameters", "operations"), (parameters, operations), rule.units, strict=True
                )
            )
            rows.append(PaperRow(network, bits, parameters, operations, *cells))
    return rows


WHY_THEY_DIFFER = (
    "Another network: the paper counted MambaIR's old analysis code (two 3x3 convolutions with a sixth of the channels in "
    "the channel-attention block; light: mlp_ratio 1.5). The trained light network has pointwise and depthwise "
    "convolutions there and mlp_ratio 1.2, the classic one a third of the channels.",
    "Raw parameters are left out (thop sees leaf modules only): both projections of the scan, A, D, dt_bias and skip scales.",
    "The selective scan and both of its projections count no operation; their true share is in the table of -opt.",
    "Light, quantized: the parameters of the channel-attention blocks are dropped altogether, while its operations are "
    "counted. Classic: the convolutions at the end of the groups stay at 32 bits, in the light row they are quantized.",
    "bits/32 is applied to biases and to the LayerNorm of SS2D, which stay in full precision, and to whole layers "
    "whatever the width of their activations. The states of the scan have 32 bits in any case.",
    "A LayerNorm element counts as four operations and a pooled one as one; here neither is a multiply-accumulate.",
    "88.02 G and 2.99 M are cut off (88.025, 2.9989), the other cells are rounded. The reduction printed as 77.8 % "
    "(classic, 2 bits) is 76.8 % by the table's own figures.",
)
"""Reasons why :func:`table4` and the count of the real networks disagree."""
