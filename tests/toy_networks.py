"""The toys in ``toys/`` as networks and quantizers of the package, for the modules that import the fixture ``toys``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY

import qmambair_basicsr
from qmambair_basicsr import archs, quantizers
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.detection import RULES
from qmambair_basicsr.layers.info import TWINS
from qmambair_basicsr.quantizers import (
    QUANTIZER_REGISTRY,
)

TOYS = Path(__file__).parent / "toys"
QUANT = {
    "weight": {"type": "RFA", "bits": 4},
    "act": {"type": "LSQOffset", "bits": 4},
    "scan": {"type": "DLS", "bits": 4},
    "attention": {"type": "DLS", "bits": 8},
}
NETWORKS = {
    "ToyPlain": (("weight", "act", "attention"), {"mixer.mix": ("RFA", "LSQOffset", 36), "product.q": ("-", "DLS", 0)}),
    "ToyForeign": (
        ("weight", "act", "attention"),
        {"query": ("RFA", "LSQOffset", 36), "qk.q": ("-", "DLS", 0), "av.map": ("-", "DLS", 0)},
    ),
    "ToyScan": (("weight", "act", "scan"), {"decay": ("DLS", "-", 24), "outer": ("RFA", "DLS", 36)}),
}
toy_networks = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(scope="module", autouse=True)
def toys():
    """The files in ``toys/`` as if they lay in the package's folders, for this module only."""
    registries = ARCH_REGISTRY._obj_map, TWINS, QUANTIZER_REGISTRY, RULES
    known = [dict(registry) for registry in registries]
    with pytest.MonkeyPatch.context() as patch:
        for package in (archs, quantizers):
            folder = TOYS / package.__name__.rpartition(".")[-1]
            patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        qmambair_basicsr._register_all()
        quantizers.load_quantizers()
        yield
    for registry, before in zip(registries, known, strict=True):
        for added in registry.keys() - before:
            del registry[added]
    for module in [m for m in sys.modules if m.startswith(f"{qmambair_basicsr.__name__}.") and ".toy_" in m]:
        del sys.modules[module]


def options(name):
    kinds, _ = NETWORKS[name]
    return {"type": f"Q{name}", "quant": {kind: QUANT[kind] for kind in kinds}}


def calibrated(name):
    net = build_network(options(name))
    return calibrate(net, [torch.rand(2, 3, 6, 8)])
