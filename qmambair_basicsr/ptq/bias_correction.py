"""Bias correction: the mean error that quantization leaves in each channel of a layer's output, taken off its bias.

Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, with measured
means. Layers are corrected one after the other in the order in which the network has them, so that a later one sees what the
correction of those in front left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..calibration.calibrate import evaluation
from ..layers.info import blocks_of
from ..layers.quant_layers import QuantConv2d, QuantLinear


def _biased(net: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, (QuantLinear, QuantConv2d)) and module.bias is not None
    }


@torch.no_grad()
def output_means(net: nn.Module, names: Sequence[str], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Mean of each output channel of some layers, (C,) each."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str, dim: int):
        def hook(_: nn.Module, given: tuple, result: Tensor) -> None:
            values = result.double().movedim(dim, -1).flatten(0, -2)
            sums[name] = sums.get(name, 0) + values.sum(0)
            counts[name] = counts.get(name, 0) + len(values)

        return hook

    modules = {name: net.get_submodule(name) for name in names}
    hooks = [m.register_forward_hook(watch(n, 1 if isinstance(m, nn.Conv2d) else -1)) for n, m in modules.items()]
    try:
        with evaluation(net):
            for batch in batches:
                net(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}


@torch.no_grad()
def correct_biases(net: nn.Module, full: nn.Module, batches: Sequence[Tensor]) -> None:
    """Correct all biases of quantized layers, in place; those of one block together.

    Args:
        net: quantized.
        full: its full-precision counterpart, with the same names.
        batches: calibration images.
    """
    names = list(_biased(net))
    wanted = output_means(full, names, batches)
    done: set[str] = set()
    groups = [[name for name in names if name.startswith(f"{block}.")] for block in blocks_of(net)]
    inside = {name for group in groups for name in group}
    for group in [*groups, [name for name in names if name not in inside]]:
        group = [name for name in group if name not in done]
        if not group:
            continue
        found = output_means(net, group, batches)
        for name in group:
            bias = net.get_submodule(name).bias
            bias.sub_((found[name] - wanted[name]).to(bias.dtype))
        done.update(group)
