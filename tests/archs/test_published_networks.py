"""Registered networks of the comparison against vectors, keys and parameter counts that their authors' code gave.

Every case in golden/backbones whose network is registered is run: a new network needs no test of its own here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("QMAMBAIR_SHARED", ROOT.parent / "shared")) / "golden" / "backbones"
REGISTERED = dict(iter(ARCH_REGISTRY))


def vectors():
    for path in sorted(GOLDEN.glob("*.pt")):
        if torch.load(path, weights_only=True)["arch"] in REGISTERED:
            yield path.stem


def key_lists():
    for path in sorted(GOLDEN.glob("official_state_dicts_*.json")):
        for name, case in json.loads(path.read_text()).items():
            cls = REGISTERED.get(case["arch"])  # the keys of BasicSR's own classes are BasicSR's business
            if cls is not None and cls.__module__.startswith("qmambair_basicsr"):
                yield pytest.param(path.name, name, id=name)


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", vectors())
def test_matches_official_vectors(name, shared_dir):
    """Outputs in both precisions; gradients in the one that agrees better: those of the vectors are float32, and deep
    networks amplify its rounding, the authors' as ours, to some 1e-5."""
    case = torch.load(shared_dir / "golden" / "backbones" / f"{name}.pt", weights_only=True)
    net = build_network({"type": case["arch"], **case["config"]})
    net.load_state_dict(case["params"], strict=True)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x = case["input"].to(dtype, copy=True).requires_grad_()
        out = net.eval().to(dtype)(x)
        assert relative_error(out, case["output"]) < 1e-5
        (out * case["grad_weight"]).sum().backward()
        gradients.append(relative_error(x.grad, case["input_grad"]))
    assert min(gradients) < 1e-5 and max(gradients) < 3e-5, gradients


@pytest.mark.parametrize(("file", "name"), list(key_lists()))
def test_official_keys_and_parameter_count(file, name, shared_dir):
    official = json.loads((shared_dir / "golden" / "backbones" / file).read_text())[name]
    with torch.device("meta"):
        net = build_network({"type": official["arch"], **official["config"]})
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == official["state_dict"]
    assert sum(p.numel() for p in net.parameters()) == official["num_params"]
