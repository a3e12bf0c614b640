"""Networks of the option table have the parameter counts of their authors' configurations."""

from __future__ import annotations

import json

import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr.recipes.option_contents import network_options
from qmambair_basicsr.recipes.option_table import PAIRS, TASKS

COMPARED = ("MaIR", "MaIRUNet", "EAMamba", "EAMambaSR", "VmambaIR", "SwinIR", "EDSR")


@pytest.fixture(scope="module")
def published(shared_dir):
    """Class -> counts of all its official configurations."""
    counts = {}
    for path in sorted((shared_dir / "golden" / "backbones").glob("official_state_dicts_*.json")):
        for case in json.loads(path.read_text()).values():
            counts.setdefault(case["arch"], set()).add(case["num_params"])
    return counts


def count(family, task):
    options = network_options(family, TASKS[task], 32)
    with torch.device("meta"):
        net = build_network(options)
    return options.get("variant", options["type"]), sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("family", COMPARED)
def test_every_network_of_the_comparison_has_a_published_size(family, published):
    for task in (task for name, task in PAIRS if name == family):
        name, parameters = count(family, task)
        assert parameters in published[name], task


def test_all_published_sizes_of_mair_can_be_made(published):
    assert {count("MaIR", task)[1] for name, task in PAIRS if name == "MaIR"} == published["MaIR"]
