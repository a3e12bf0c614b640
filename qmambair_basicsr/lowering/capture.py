"""Integer codes of the activations of a network, as it runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.integer import Codes
from .grids import DynamicGrid, StaticGrid
from .scan import IntegerProjections


def lowered_codes(net: nn.Module, image: Tensor) -> dict[str, list[Tensor]]:
    """Codes of every activation of an integer network on an image.

    Args:
        net: from :func:`lower`.
        image: (B, C, H, W) in the precision of the network.

    Returns:
        Name of the quantizer that a grid stands for -> int8 codes, one tensor for each call of the network's.
    """
    seen: dict[str, list[Tensor]] = {}
    cut = {  # grids that are called once for each direction of a scan
        layer.act.site: len(module.dt_projs)
        for module in net.modules()
        if isinstance(module, IntegerProjections)
        for layer in module.dt_projs
        if isinstance(layer.act, StaticGrid)
    }

    def keep(grid: nn.Module, _: tuple, codes: Codes) -> None:
        seen.setdefault(grid.site, []).append(codes.data)

    grids = {module for module in net.modules() if isinstance(module, (StaticGrid, DynamicGrid))}
    handles = [grid.register_forward_hook(keep) for grid in grids]
    try:
        with torch.no_grad():
            net(image)
    finally:
        for handle in handles:
            handle.remove()
    for name, parts in cut.items():
        calls = seen[name]
        seen[name] = [torch.stack(calls[i : i + parts], -2) for i in range(0, len(calls), parts)]
    return seen
