"""What a row of the benchmark is called, from its option file."""

from __future__ import annotations

import pytest

from qmambair_basicsr.recipes import option_names
from qmambair_basicsr.studies import benchmark as library
from qmambair_basicsr.studies.benchmark_table import read_published


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        (None, ("FP", (32, 32))),
        (("RFA", "LSQOffset", "DLS"), ("Q-MambaIR", (4, 4))),
        (("LSQ", "LSQ", "LSQ"), ("LSQ", (4, 4))),
        (("MinMax", "MinMax", "DLS"), ("MinMax+DLS", (4, 4))),
    ],
)
def test_method_names(quant, expected):
    """The quantizers decide what the row is called."""
    network = {"type": "MambaIR" if quant is None else "QMambaIR"}
    if quant is not None:
        network["quant"] = {s: {"type": t, "bits": 4} for s, t in zip(("weight", "act", "scan"), quant, strict=True)}
    entry = library.describe({"name": "test_X_SRx2_w4a4", "network_g": network})
    assert (entry.method, entry.bits, entry.model, entry.task) == (*expected, "MambaIR", "SRx2")


@pytest.mark.parametrize(
    ("act", "more", "method"),
    [
        ("LSQOffset", {}, "Q-MambaIR"),
        ("LSQOffset", {"conv": "fp"}, "Q-MambaIR, conv FP"),
        ("MinMax", {"attention": {"type": "MinMax", "bits": 4}}, "RFA+MinMax"),
    ],
)
def test_methods_of_a_network_without_a_scan(act, more, method):
    network = {"type": "QSwinIR", "depths": [1], "num_heads": [2], "embed_dim": 12, "window_size": 8}
    network["quant"] = {"weight": {"type": "RFA", "bits": 4}, "act": {"type": act, "bits": 4}, **more}
    entry = library.describe({"name": "test_X_SRx2_w4a4", "network_g": network})
    assert (entry.model, entry.method, entry.bits) == ("SwinIR", method, (4, 4))


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("SPR2Q", "SPR2Q"),
        ("PTQ4VM", "PTQ4VM"),
        ("TwoDQuant", "2DQuant"),
        ("QuambaScan", "Quamba (scan)"),
        ("PTQ4VMScan", "PTQ4VM (scan)"),
    ],
)
def test_rows_of_post_training_methods_stand_beside_published_ones(method, name):
    row = option_names.parse(f"test_QMambaIRv2Light_lightSRx2_w4a4_{method}")
    entry = library.describe(row.options())
    assert (entry.model, entry.task, entry.method, entry.bits) == ("MambaIRv2Light", "lightSRx2", name, (4, 4))
    paper = read_published().get(entry.key("Set5", "psnr"))
    assert {"SPR2Q": "37.72", "PTQ4VM": "37.17", "QuambaScan": "37.07", "PTQ4VMScan": "37.17"}.get(method) == (
        paper and paper.value
    )
