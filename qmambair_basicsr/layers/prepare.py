"""Turning a full-precision network into a quantized one, in place. Nothing else in the package swaps modules.

Sites are what modules declare (``sites.py``), and the weight and the input of every convolution and linear. What stays
in full precision is named by the network (:class:`NetworkInfo`); norms, biases, scales and activation functions have no
site at all. Three kinds are swapped only where the settings quantize them: ``attention`` (operands of ``MatMul``
modules), ``routing`` (the layers that pick tokens, and the product of policy and dictionary) and ``state`` (the states of a
scan).

Names that overrides are matched against: a layer's dotted module name; for a module ``S`` with several sites their
parts, such as ``S.x_proj`` (weight, act) or ``S.delta`` (scan) of a selective scan and ``S.q`` of a product, or ``S``
itself for all of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from ..quantizers import Quantizer, QuantSpec, build_quantizer
from ..quantizers.site import KINDS, OPTIONAL_KINDS, Site
from ..quantizers.spec import refuse
from ..strict import nearest
from .declared import attach_declared
from .info import NetworkInfo, match_modules, network_info
from .parameter_batch import ParameterBatch
from .policy import apply_policy, leave_group_convs
from .quant_layers import QUANTIZED_LAYERS
from .sites import sites_of


def prepare(net: nn.Module, spec: QuantSpec, info: NetworkInfo | None = None) -> nn.Module:
    """Swap the layers of a network for quantized ones, in place.

    Parameters keep their names and identity; only quantizer entries are added to the state_dict. Sites with 32 bits
    get an Identity quantizer.

    Args:
        net (nn.Module): Full-precision network.
        spec (QuantSpec): What to quantize with what.
        info (NetworkInfo | None): Facts about the network; None takes what is registered for its class.

    Returns:
        nn.Module: The same object.

    Raises:
        ValueError: The network is quantized already, nothing is known about it, or all of its layers stay in full
            precision.
        SpecError: A kind of site that the network lacks, or an override that matches no site; all of them at once. A
            transform that fits nowhere.
    """
    for name, module in net.named_modules():
        if isinstance(module, Quantizer):
            raise ValueError(f"prepare: {type(net).__name__} is quantized already ('{name}' is a quantizer).")
    info = network_info(net) if info is None else info
    found = _sites(net, info)
    if not found:
        raise ValueError(
            f"prepare: no layer of {type(net).__name__} can be quantized; in full precision stay "
            f"{list(info.full_precision)}."
        )
    refuse(_unmet(net, spec, info, [site for _, sites in found for site in sites]))
    if spec.conv == "fp":
        spec = leave_group_convs(spec, match_modules(net, info.group_convs))
    resolved = apply_policy(spec, info.behind_scan)
    for module, sites in found:
        specs = [resolved.resolve(site) for site in sites]
        if all(s.bits == 32 and site.kind in OPTIONAL_KINDS for s, site in zip(specs, sites, strict=True)):
            continue
        quantizers = {
            site.slot: build_quantizer(s, site)
            for s, site in zip(specs, sites, strict=True)
            if s.bits != 32 or site.kind != "state"  # states are computed only where they are quantized
        }
        if type(module) in QUANTIZED_LAYERS:
            quantized = QUANTIZED_LAYERS[type(module)].from_float(module, **quantizers)
        else:
            quantized = module.attach_quantizers(quantizers)
        if quantized is not module:
            parent, _, leaf = sites[0].owner.rpartition(".")
            setattr(net.get_submodule(parent), leaf, quantized)
    attach_declared(net, spec.transforms)
    ParameterBatch().attach(net)
    device = next((p.device for p in net.parameters()), None)
    return net if device is None or device.type == "meta" else net.to(device)


def site_kinds(net: nn.Module, info: NetworkInfo | None = None) -> tuple[str, ...]:
    """Kinds of sites that a full-precision network has: the keys that its ``quant:`` block may hold.

    Args:
        net: as for :func:`prepare`.
        info: as for :func:`prepare`.
    """
    found = {site.kind for _, sites in _sites(net, network_info(net) if info is None else info) for site in sites}
    return tuple(kind for kind in KINDS if kind in found)


def sites_within(net: nn.Module) -> list[Site]:
    """Every site that a full-precision network has for :func:`prepare`, in module order."""
    return [site for _, sites in _sites(net, network_info(net)) for site in sites]


def _sites(net: nn.Module, info: NetworkInfo) -> list[tuple[nn.Module, list[Site]]]:
    """Modules that can be quantized with their sites, in module order."""
    found = []
    for name, module in net.named_modules():
        if info.keeps(name):
            continue
        if type(module) in QUANTIZED_LAYERS:
            layer_form = QUANTIZED_LAYERS[type(module)]
            if info.routes(name):
                sites = layer_form.sites_of(module, "routing")
            else:  # tables that no routing reads are left alone
                sites = () if isinstance(module, nn.Embedding) else layer_form.sites_of(module)
        else:
            sites = sites_of(module)
        if sites:
            found.append((module, [site.within(name) for site in sites]))
    return found


def _unmet(net: nn.Module, spec: QuantSpec, info: NetworkInfo, sites: Sequence[Site]) -> Iterator[str]:
    """Settings that ask for sites the network does not have."""
    names: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for site in sites:
        names[site.kind] |= {site.name, site.owner}
    for kind in KINDS:
        if getattr(spec, kind).bits != 32 and not names[kind] and kind not in spec.preset:
            there = ", ".join(k for k in KINDS if names[k])
            yield f"quant.{kind}: {type(net).__name__} has no such sites; leave the key out (its sites: {there})."
    if spec.conv == "fp" and not info.group_convs:
        yield f"quant.conv: {type(net).__name__} has no convolutions behind groups of blocks; leave the key out."
    for pattern, kinds in spec.overrides:
        for kind in kinds:
            if f"{pattern}.{kind}" in spec.preset or any(site.kind == kind and site.matches(pattern) for site in sites):
                continue
            candidates = sorted(
                {re.sub(r"\.\d+(?=\.|$)", ".*", n) for n in names[kind]}
                | {f"*.{n.rsplit('.', 1)[-1]}" for n in names[kind]}
            )
            near = nearest(pattern, candidates, 5, 0.4) or candidates[:12]
            yield (
                f"quant.overrides[{pattern!r}].{kind}: no quantized site of this network matches. "
                f"Near names: {', '.join(near) or 'none at all'}."
            )
