"""What takes the place of functions of the networks while they are exported.

Same results, in operators that ONNX runtimes and TensorRT have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...archs import windows
from ...archs.windows import MASKED, WindowPlan
from ...ops.ss2d_scan import DIRECTIONS
from .operators import cast
from .scan_graph import SCAN_NODE

DOMAIN = "qmambair"


def scan_node(kind: torch.dtype, plugin: bool) -> Callable[..., Tensor]:
    """``ops.ss2d_scan`` as one placeholder node.

    Args:
        kind: what the network around it computes in. In an FP16 network standard operators scan in FP32 all the same;
            the plugin takes FP16 feature maps and keeps its state in FP32.
        plugin: the node stays, for the TensorRT plugin.
    """
    state = torch.float64 if kind == torch.float64 else torch.float32
    maps = kind if plugin else state

    def scan(x, delta, A, B, C, D, delta_bias, delta_softplus=True, directions=DIRECTIONS) -> Tensor:
        attributes = {"directions": [DIRECTIONS.index(d) for d in directions], "delta_softplus": int(delta_softplus)}
        kinds = (maps, maps, state, maps, maps, state, state)
        given = (x, delta, A, B, C, D, delta_bias)
        inputs = tuple(cast(value, wanted) for value, wanted in zip(given, kinds, strict=True))
        y = torch.onnx.ops.symbolic(f"{DOMAIN}::{SCAN_NODE}", inputs, attributes, dtype=maps, shape=x.shape, version=1)
        return cast(y, kind)

    return scan


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, scale: float) -> Tensor:
    """``scaled_dot_product_attention``; the exporter rounds a scale that is no tensor to FP32, in FP64 as well."""
    return ((q * torch.tensor(scale, dtype=q.dtype)) @ k.transpose(-2, -1) + attn_mask).softmax(dim=-1) @ v


def semantic_order(prompts: int, block: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """``routing.semantic_order`` as a counting sort.

    The exporter has no stable sort, and TensorRT's TopK takes at most 3840 elements. A token's place is the number of
    tokens with a smaller prompt, plus those before it with the same one. Counts within a block of tokens are matrix
    products of zeros and ones (exact in FP16 and TF32 up to 2048), everything above is integer arithmetic.

    Args:
        prompts: number of prompts.
        block: tokens in a block; divides the number of tokens.
    """

    def order_of(picked: Tensor) -> tuple[Tensor, Tensor]:
        length = picked.shape[1]  # picked is (1, L): an exported network restores one image at a time
        kinds = torch.arange(prompts)
        chosen = (picked.unsqueeze(-1) == kinds).view(length // block, block, prompts)
        inside = torch.ones(block, block).tril() @ chosen.float()  # with the token itself
        totals = inside[:, -1].to(torch.int32)  # (blocks, prompts)
        blocks = torch.arange(length // block)
        earlier = (blocks.unsqueeze(0) < blocks.unsqueeze(1)).unsqueeze(-1).to(torch.int32)
        before = (earlier * totals).sum(1, dtype=torch.int32)
        counts = totals.sum(0, dtype=torch.int32)
        start = (counts * (kinds.unsqueeze(0) < kinds.unsqueeze(1)).to(torch.int32)).sum(1, dtype=torch.int32)
        place = inside.to(torch.int32) + (before + start).unsqueeze(1)
        inverse = ((place * chosen.to(torch.int32)).sum(-1, dtype=torch.int32) - 1).flatten().long()
        return _inverted(inverse), inverse

    return order_of


def _inverted(order: Tensor) -> Tensor:
    """Inverse of a permutation."""
    places = torch.arange(order.shape[0])
    return torch.empty_like(places).index_put((order,), places)


def fixed_window_plans(height: int, width: int, window: int) -> Callable[..., WindowPlan]:
    """``windows.window_plan`` for images of one size, as constants.

    The plans are made here, before the exporter traces: while it does there are no values to count windows by, and the
    tensors must not enter the cache of plans.
    """
    sides = [-(-n // window) * window for n in (height, width)]
    plans = {shift: windows.window_plan(*sides, window, shift, torch.device("cpu")) for shift in (0, window // 2)}
    return lambda height, width, window, shift, device: plans[shift]


def window_plan(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowPlan:
    """``windows.window_plan`` for sides that are known at run time only.

    All windows are of one kind with a mask of its own for each, (windows, 1, T, T): the number of windows of each kind
    is not known.
    """
    rows, columns = height // window, width // window

    def cut(grid: Tensor) -> Tensor:
        grid = grid.view(rows, window, columns, window).transpose(1, 2)
        return grid.reshape(rows * columns, window * window)

    raster = torch.arange(height * width, device=device).view(height, width)
    mask = None
    if shift:
        raster = torch.cat((raster[shift:], raster[:shift]), 0)
        raster = torch.cat((raster[:, shift:], raster[:, :shift]), 1)
        below = (torch.arange(height, device=device) >= _number(height - shift, device)).long()
        right = (torch.arange(width, device=device) >= _number(width - shift, device)).long()
        side = cut(2 * below.unsqueeze(1) + right.unsqueeze(0))
        mask = ((side.unsqueeze(1) != side.unsqueeze(2)).float() * MASKED).unsqueeze(1)
    order = cut(raster).flatten()
    return WindowPlan(order, _inverted(order), ((rows * columns, mask),), None)


def padded(x: Tensor, window: int) -> Tensor:
    """``MambaIRv2._pad`` for sides that are known at run time only."""
    for dim in (2, 3):
        size = x.shape[dim]
        period = _number(2 * size, x.device)
        index = torch.remainder(torch.arange((size + window - 1) // window * window, device=x.device), period)
        x = x.index_select(dim, torch.minimum(index, period - 1 - index))
    return x


def _number(value: int, device: torch.device) -> Tensor:
    """A size as a tensor (1,): the exporter compares and divides by tensors only where the size is not known."""
    return torch.full((1,), value, dtype=torch.int64, device=device)
