"""generality: every training is the same but for network, method and width, and its file has no mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr import schema
from qmambair_basicsr.layers.info import full_precision_twin
from qmambair_basicsr.recipes.generality_table import ALL_SETS, EVERYWHERE, METHODS, NETWORKS
from qmambair_basicsr.studies import generality
from qmambair_basicsr.studies.generality import Case, cases, test_file, train_file
from qmambair_basicsr.tools import generality as tool

test_file.__test__ = False
EVERY = list(cases(NETWORKS, [4, 2], 1))


def test_full_precision_comes_before_what_starts_from_it():
    assert len({case.name("train") for case in cases(NETWORKS, [4, 2], 2)}) == 2 * len(EVERY) == 2 * 60
    done = set()
    for case in EVERY:
        start = train_file(case, 8)["path"]["pretrain_network_g"]
        assert (start is None) == (case.bits == 32)
        assert start is None or start.split("/")[1] in done
        done.add(case.name("train"))


@pytest.mark.parametrize("network", NETWORKS)
def test_files_differ_in_network_method_and_width_alone(network, tmp_path):
    recipes, sizes = [], set()
    for case in (c for c in EVERY if c.network.family == network):
        train, test = train_file(case, 8), test_file(case, tmp_path, ALL_SETS)
        for opt in (train, test):
            assert [str(p) for p in schema.problems(opt, opt is train, look_at_files=False)] == []
        assert train["network_g"] == test["network_g"] and [s["name"] for s in test["datasets"].values()] == list(
            case.network.sets
        )
        assert full_precision_twin(train["network_g"]["type"]) == (None if case.bits == 32 else network)
        if case.bits != 32:
            kinds = {
                entry["type"] for key, entry in train["network_g"]["quant"].items() if key in ("weight", "act", "scan")
            }
            expected = {"LSQ": {"LSQ"}, "QuantSR": {"QuantSR"}, EVERYWHERE: {"RFA", "DLS"}}
            assert kinds == expected.get(case.method, kinds) and (case.method != "Q-MambaIR" or "RFA" in kinds)
        data = {k: v for k, v in train["datasets"]["train"].items() if k in ("batch_size_per_gpu", "name")}
        recipes.append(
            (data, train["datasets"]["train"]["gt_size"] // train["scale"], train["train"] | {"optim_g": None})
        )
        with torch.device("meta"):
            net = build_network(dict(train["network_g"]))
        sizes.add(sum(p.numel() for name, p in net.named_parameters() if "quantizer" not in name))
    assert all(recipe == recipes[0] for recipe in recipes) and recipes[0][1] == 24
    assert len(sizes) == 1 and sizes.pop() < 3_000_000


def test_one_recipe_for_all_networks():
    first = train_file(EVERY[0], 8)["train"]
    assert all(train_file(case, 8)["train"] == first for case in EVERY if case.bits == 32)


def fake(psnr):
    """Results of one network without and one with a scan, from (network, method, bits, seed) to dB."""
    return {
        case: {name: {"psnr": psnr(case)} for name in case.network.sets} for case in cases(["MambaIR", "EDSR"], [4], 2)
    }


def test_table_and_verdict():
    gain = {"LSQ": 0.0, "QuantSR": 0.5, "Q-MambaIR": 0.25, EVERYWHERE: 0.75}
    results = fake(lambda case: 30 + gain.get(case.method, 1.0) + 0.2 * case.seed)
    text = generality.table(results, [4])
    assert "| network | task | set | FP | LSQ 4/4 | QuantSR 4/4 | Q-MambaIR 4/4 |" in text
    assert "| MambaIR | lightSRx2 | Set5 | 31.10 ± 0.14 | 30.10 ± 0.14 | 30.60 ± 0.14 | 30.35 ± 0.14 |  |" in text
    assert (
        "* 4 bits: Q-MambaIR above LSQ in 2 of 2 networks, on average by +0.25 dB (MambaIR +0.25, EDSR +0.25)" in text
    )
    assert "* 4 bits: Q-MambaIR above QuantSR in 0 of 2 networks, on average by -0.25 dB" in text
    assert f"above {EVERYWHERE} in 0 of 1 networks, on average by -0.50 dB (EDSR -0.50)" in text


def test_table_while_it_grows():
    first = dict(list(fake(lambda case: 30.0).items())[:1])
    assert generality.table(first, [4]).count("30.00") == 2


def test_command(tmp_path, monkeypatch, capsys):
    """What runs, in which order, for how long; the folder is prepared once."""
    seen, prepared = [], []

    def run_files(train, test, work, rerun):
        seen.append((train["name"], train["train"]["total_iter"]))
        return {section["name"]: {"psnr": 30.0} for section in test["datasets"].values()}

    monkeypatch.setattr(generality, "run_files", run_files)
    monkeypatch.setattr(generality, "prepare", lambda *_: prepared.append(1))
    words = ["--source", str(tmp_path), "--out", str(tmp_path / "out"), "--networks", "EDSR", "--bits", "4"]
    assert tool.main([*words, "--iterations", "6", "--quantized-iterations", "3", "--sets", "Set5"]) == 0
    assert seen[0] == ("train_EDSR_lightSRx2_seed0", 6) and prepared == [1]
    assert [name for name, length in seen[1:] if length == 3] == [
        "train_QEDSR_lightSRx2_w4a4_lsq_seed0",
        "train_QEDSR_lightSRx2_w4a4_quantsr_seed0",
        "train_QEDSR_lightSRx2_w4a4_seed0",
        "train_QEDSR_lightSRx2_w4a4_dlsinputs_seed0",
    ]
    said = capsys.readouterr().out
    assert said == (tmp_path / "out" / "generality.md").read_text() and "| EDSR | lightSRx2 | Set5 | 30.00 |" in said
    assert "Set14" not in said


def test_cases_know_their_methods():
    assert set(METHODS) == {case.method for case in EVERY if case.network.family == "MaIR"} - {"FP"}
    assert Case(NETWORKS["EDSR"], EVERYWHERE, 4, 1).name("test") == "test_QEDSR_lightSRx2_w4a4_dlsinputs_seed1"
    assert Path(train_file(EVERY[0], 8)["datasets"]["train"]["dataroot_gt"]).parts[0] == "datasets"
