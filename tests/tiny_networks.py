"""A small network of every registered type: each takes those of the constructor keys here that it knows."""

from __future__ import annotations

import copy
import inspect

import torch
from basicsr.utils.registry import ARCH_REGISTRY

from qmambair_basicsr.layers.info import full_precision_twin
from qmambair_basicsr.layers.prepare import site_kinds

TINY_NETWORK = {
    "embed_dim": 30,
    "dim": 30,
    "depths": [2],
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_block": 4,
    "num_blocks": [1, 1, 1, 1],
    "num_refinement_blocks": 1,
    "num_heads": [2],
    "window_size": 8,
    "inner_rank": 4,
    "num_tokens": 8,
    "d_state": 3,
    "mlp_ratio": 1.2,
    "ssm_ratio": 1.2,
    "scan_len": 4,
    "mamba_cfg": {"scan_type": "diagonal", "scan_count": 2, "d_state": 3},
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}

SMALLEST = {"d_state": 2, "num_blocks": [0, 0, 0, 1], "num_refinement_blocks": 0, "eval_routing": "argmax"}
"""Keys of a still smaller one, that gives the same values every time."""

OURS = sorted(name for name, cls in ARCH_REGISTRY if cls.__module__.startswith("qmambair_basicsr"))
"""Networks that this package registers."""

QUANTIZED = [name for name in OURS if full_precision_twin(name)]


def tiny_options(name, **changes):
    """Constructor options of a small network, without ``type`` and ``quant``."""
    keys = inspect.signature(ARCH_REGISTRY.get(full_precision_twin(name) or name)).parameters
    return copy.deepcopy({key: value for key, value in (TINY_NETWORK | changes).items() if key in keys})


def kinds_of(name, options):
    """Kinds of sites that a quantized type with these constructor options has."""
    with torch.device("meta"):
        return site_kinds(ARCH_REGISTRY.get(name).before_prepare(**options))


def described(name, options, quant):
    """A ``network_g`` block: a quantized network has those parts of ``quant`` that it has sites for."""
    if name not in QUANTIZED:
        return {"type": name, **options}
    kinds = kinds_of(name, options)
    return {"type": name, **options, "quant": {kind: copy.deepcopy(quant[kind]) for kind in kinds if kind in quant}}


def tiny_network(name, quant, **changes):
    """The block of a small network."""
    return described(name, tiny_options(name, **changes), quant)
