"""From a fake-quantized network to an integer one."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..layers.convert import FrozenCodes, freeze_parameters, require_quantized
from ..layers.matmul import QuantMatMul
from ..layers.merging import merge
from ..layers.quant_layers import QuantConv2d, QuantEmbedding, QuantLinear
from ..layers.sites import SiteModule, parameter_sites
from .layers import lowered_layer
from .sites import lower_sites


@torch.no_grad()
def frozen_copy(net: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy in evaluation, on the CPU, whose quantized parameters are codes; transforms of weights are part of them.

    Args:
        net: calibrated or trained network; its codes and scales are those in its own precision.
        dtype: precision of everything else; None for that of the network.

    Raises:
        ValueError: nothing in the network is quantized.
        UncalibratedError: a quantizer of the network was never calibrated.
    """
    net = copy.deepcopy(net).cpu().eval()
    require_quantized(net)
    merge(net)
    if not all(isinstance(site.quantizer, FrozenCodes) for site in parameter_sites(net)):
        freeze_parameters(net)
    return (net if dtype is None else net.to(dtype)).requires_grad_(False)


@torch.no_grad()
def lower(net: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """The integer network that a fake-quantized one stands for.

    Quantized convolutions, linears, products, embeddings and projections become modules that multiply integer codes and
    add the products up exactly; sites of a scan become constant grids. Everything else is as it was. In FP64 every code
    of the network is equal to that of ``frozen_copy(net, torch.float64)``, and outputs differ by rounding alone.

    Args:
        net: calibrated or trained network; left as it is.
        dtype: precision of everything that is no code; None for that of the network.

    Returns:
        The integer network, in evaluation, on the CPU; images in and out have its precision.

    Raises:
        LoweringError: a quantizer has no integer form; the message names it.
        ValueError: nothing in the network is quantized.
        UncalibratedError: a quantizer of the network was never calibrated.
    """
    net = frozen_copy(net, dtype)
    for name, module in list(net.named_modules()):
        if isinstance(module, (QuantLinear, QuantConv2d, QuantEmbedding, QuantMatMul)):
            parent, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(parent), leaf, lowered_layer(module))
        elif isinstance(module, SiteModule) and module.quantizers is not None:
            lower_sites(module)
    return net.eval().requires_grad_(False)
