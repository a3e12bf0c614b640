"""Turning a full-precision network into a quantized one, in place. Nothing else in the package swaps modules.

Sites: the weight and the input of every convolution and linear of the body, the raw projection weights of a selective
scan with their inputs, and the scan's seven inputs. What stays in full precision is named by the network's
``fp_modules``; norms, biases, scales, activation functions and the scan's state have no site at all. MambaIRv2 has two
more kinds of sites, swapped only where the settings quantize them: ``attention`` (operands of its ``MatMul`` modules)
and ``routing`` (what its ``routing_modules`` name, and the product of policy and dictionary).

Names that overrides are matched against: a layer's dotted module name; for a selective scan called ``S``, its
projections ``S.x_proj`` and ``S.dt_projs`` (weight, act) and its inputs ``S.u``, ``S.delta``, ``S.A``, ``S.B``,
``S.C``, ``S.D``, ``S.dt_bias`` (scan), or ``S`` itself for all of these; for a product ``M`` its operands, such as
``M.q``, or ``M``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..archs.matmul import MatMul
from ..archs.ss2d import ScanParameters
from ..quantizers import Quantizer, QuantizerSpec, QuantSpec, SpecError, build_quantizer
from ..quantizers.spec import SITES
from ..strict import nearest
from .policy import apply_policy
from .quant_layers import QuantConv2d, QuantEmbedding, QuantLinear
from .quant_matmul import QuantMatMul
from .quant_scan import PROJECTION_SITES, SCAN_SITES, QuantSelectiveScan


class _Resolver:
    """Looks up the spec of each site and remembers which names were asked for, to find overrides that match none."""

    def __init__(self, spec: QuantSpec):
        self.spec = apply_policy(spec)
        self.user_overrides = spec.overrides
        self.asked: dict[str, set[str]] = {site: set() for site in SITES}

    def __call__(self, name: str, site: str, parent: str | None = None) -> QuantizerSpec:
        names = {name} if parent is None else {name, parent}
        self.asked[site] |= names
        chosen = getattr(self.spec, site)
        for pattern, sites in self.spec.overrides:  # the last match decides
            if site in sites and any(fnmatchcase(n, pattern) for n in names):
                chosen = sites[site]
        return chosen

    def check(self, net: nn.Module) -> None:
        """Raise SpecError for a kind of site that ``net`` lacks, or for the first override that no site matched."""
        for site in ("attention", "routing"):
            if getattr(self.spec, site).bits != 32 and not self.asked[site]:
                raise SpecError(f"quant.{site}: {type(net).__name__} has no such sites; leave the key out.")
        for pattern, sites in self.user_overrides:
            for site in sites:
                names = self.asked[site]
                if any(fnmatchcase(name, pattern) for name in names):
                    continue
                candidates = sorted(
                    {re.sub(r"\.\d+(?=\.|$)", ".*", n) for n in names} | {f"*.{_leaf(n)}" for n in names}
                )
                near = nearest(pattern, candidates, 5, 0.4) or candidates[:12]
                raise SpecError(
                    f"quant.overrides[{pattern!r}].{site}: no quantized site of this network matches. "
                    f"Near names: {', '.join(near) or 'none at all'}."
                )


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def prepare(
    net: nn.Module, spec: QuantSpec, *, include: Sequence[str] = ("*",), fp_modules: Sequence[str] | None = None
) -> nn.Module:
    """Swap the layers of a network for quantized ones, in place.

    Parameters keep their names and identity; only quantizer entries are added to the state_dict. Sites with 32 bits
    get an Identity quantizer.

    Args:
        net (nn.Module): Full-precision network.
        spec (QuantSpec): What to quantize with what.
        include (Sequence[str]): fnmatch patterns of module names that may be swapped.
        fp_modules (Sequence[str] | None): Patterns of modules that stay in full precision; None takes the attribute
            ``fp_modules`` of the network.

    Returns:
        nn.Module: The same object.

    Raises:
        ValueError: The network is quantized already, does not say what stays in full precision, or nothing of it is
            selected.
        SpecError: An override matches no site.
    """
    if fp_modules is None:
        fp_modules = getattr(net, "fp_modules", None)
        if fp_modules is None:
            raise ValueError(
                f"prepare: {type(net).__name__} has no attribute fp_modules; pass fp_modules=(...), the patterns of "
                "the layers that stay in full precision (an empty tuple for none)."
            )
    resolve = _Resolver(spec)
    routing_modules = getattr(net, "routing_modules", ())
    selected, optional = {}, {}
    for name, module in net.named_modules():
        if isinstance(module, Quantizer):
            raise ValueError(f"prepare: {type(net).__name__} is quantized already ('{name}' is a quantizer).")
        if not _matches(name, include) or _matches(name, fp_modules):
            continue
        if type(module) is MatMul or (_matches(name, routing_modules) and type(module) in (nn.Linear, nn.Embedding)):
            optional[name] = module
        elif type(module) in (nn.Linear, nn.Conv2d) or isinstance(module, ScanParameters):
            selected[name] = module
    if not selected:
        raise ValueError(
            f"prepare: no layer of {type(net).__name__} is selected by include={list(include)} "
            f"with fp_modules={list(fp_modules)}."
        )
    for name, module in selected.items():
        if isinstance(module, ScanParameters):
            module.quantizers = _scan_quantizers(module, name, resolve).train(module.training)
        else:
            _replace(net, name, _quantized_layer(module, name, resolve(name, "weight"), resolve(name, "act")))
    for name, module in optional.items():
        if type(module) is MatMul:
            quantized = _quantized_product(module, name, resolve)
        else:
            chosen = resolve(name, "routing")
            quantized = module if chosen.bits == 32 else _quantized_layer(module, name, chosen, chosen)
        _replace(net, name, quantized)
    resolve.check(net)
    device = next((p.device for p in net.parameters()), None)
    return net if device is None or device.type == "meta" else net.to(device)


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)


def _quantized_layer(
    layer: nn.Linear | nn.Conv2d | nn.Embedding, name: str, weight: QuantizerSpec, act: QuantizerSpec
) -> QuantLinear | QuantConv2d | QuantEmbedding:
    rows = layer.weight.shape[0]
    weight_quantizer = build_quantizer(weight, role="weight", channels=rows, channel_dim=0, name=f"{name}.weight")
    if isinstance(layer, nn.Embedding):
        return QuantEmbedding.from_float(layer, weight_quantizer)
    linear = isinstance(layer, nn.Linear)
    channels, channel_dim = (layer.in_features, -1) if linear else (layer.in_channels, 1)
    act_quantizer = build_quantizer(act, role="act", channels=channels, channel_dim=channel_dim, name=f"{name}.act")
    return (QuantLinear if linear else QuantConv2d).from_float(layer, weight_quantizer, act_quantizer)


def _quantized_product(product: MatMul, name: str, resolve: _Resolver) -> MatMul | QuantMatMul:
    own = [f"{name}.{operand}" for operand in product.operands]
    specs = [resolve(operand, product.kind, name) for operand in own]
    if all(spec.bits == 32 for spec in specs):
        return product
    left, right = (
        build_quantizer(spec, role=role, name=operand)
        for spec, role, operand in zip(specs, product.roles, own, strict=True)
    )
    return QuantMatMul(left, right).train(product.training)


def _scan_quantizers(scan: ScanParameters, name: str, resolve: _Resolver) -> QuantSelectiveScan:
    k, d, n, r = len(scan.directions), scan.d_inner, scan.d_state, scan.dt_rank
    # The release stacks the K permuted copies of the map before quantizing it; one map with copies=K is the same.
    # projection -> (rows of its weight, channels of its input, copies of its input)
    projections = {"x_proj": (r + 2 * n, d, k), "dt_projs": (d, r, 1)}
    # scan input -> (role, channels, copies)
    inputs = {
        "u": ("act", d, k),
        "delta": ("act", d, 1),
        "A": ("param", n, 1),
        "B": ("act", n, 1),
        "C": ("act", n, 1),
        "D": ("param", k * d, 1),
        "dt_bias": ("param", d, 1),
    }
    quantizers = {}
    for projection, (rows, columns, copies) in projections.items():
        weight_site, act_site = PROJECTION_SITES[projection]
        own = f"{name}.{projection}"
        quantizers[weight_site] = build_quantizer(
            resolve(own, "weight", name), role="weight", channels=rows, channel_dim=1, name=f"{own}.weight"
        )
        quantizers[act_site] = build_quantizer(
            resolve(own, "act", name), role="act", channels=columns, channel_dim=-1, name=f"{own}.act", copies=copies
        )
    for site in SCAN_SITES:
        role, channels, copies = inputs[site]
        own = f"{name}.{site}"
        quantizers[site] = build_quantizer(
            resolve(own, "scan", name), role=role, channels=channels, channel_dim=-1, name=own, copies=copies
        )
    return QuantSelectiveScan(quantizers)
