"""FP16 and FP64 forms of a network that is to be exported.

FP16 is for engines without precision flags (TensorRT 11). Feature maps and layers in full precision become FP16. FP32
stay: the quantization grids and what integer layers add up (their result is rounded to FP16), the state and the
parameters of the selective scan, MambaIRv2's token routing (a close decision turned by rounding is visible), and the
image that goes in and the one that comes out.

FP64 is for proving that a graph is the network: a deep network of few bits magnifies the rounding of float32 until
outputs differ visibly although nothing is wrong. In FP64 nothing is left of that. The image goes in, and comes out, in
FP32. Quantized parameters keep the codes and scales they have in FP32.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from ...layers.info import network_info
from ...layers.sites import quantizers_of, sites_of
from ...lowering import frozen_copy
from ...lowering.grids import StaticGrid
from ...lowering.layers import BorderSums, FloatWeight, IntegerConv2d, IntegerLinear, IntegerWeight
from ...lowering.sites import Constant
from ...quantizers.forms import DynamicForm

_FLOAT_MODULES = (
    BorderSums,
    Constant,
    DynamicForm,
    FloatWeight,
    IntegerConv2d,
    IntegerLinear,
    IntegerWeight,
    StaticGrid,
)


def _to_half(_: nn.Module, inputs: tuple) -> tuple:
    return (inputs[0].half(), *inputs[1:])


def _to_float(_: nn.Module, inputs: tuple) -> tuple:
    return (inputs[0].float(), *inputs[1:])


def in_double(net: nn.Module) -> nn.Module:
    """A copy in FP64, on the CPU, of a network in full precision or calibrated; takes and returns FP32 images.

    Codes and scales of quantized parameters are those of the network given.
    """
    quantized = bool(quantizers_of(net))
    net = frozen_copy(net, torch.float64) if quantized else copy.deepcopy(net).cpu().eval().double()
    net.requires_grad_(False)
    for module in net.modules():  # numbers that the exporter stores in FP32
        for name in ("eps", "scale", "negative_slope"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, torch.tensor(getattr(module, name)).item())
    net.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(), *inputs[1:]))
    net.register_forward_hook(lambda _, inputs, output: output.float())
    return net


def make_half(net: nn.Module) -> nn.Module:
    """Turn a network, after ``lower`` where it is quantized, into its FP16 form, in place."""
    kept = {child for m in net.modules() if isinstance(m, FloatWeight) for child in m.modules()}
    info = network_info(net)
    for name, module in net.named_modules():
        if name.endswith(".route"):
            module.register_forward_pre_hook(_to_float)
        if isinstance(module, _FLOAT_MODULES) or module in kept or info.routes(name):
            continue
        stay = {site.parameter for site in sites_of(module) if site.kind == "scan"}
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.is_floating_point() and key not in stay:
                tensor.data = tensor.data.half()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)):
            module.register_forward_pre_hook(_to_half)
    net.register_forward_pre_hook(_to_half)
    net.register_forward_hook(lambda _, inputs, output: output.float())
    return net
