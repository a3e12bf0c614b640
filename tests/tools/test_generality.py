"""generality: every training is the same but for network, method and width; what is finished, what is missing."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr import schema
from qmambair_basicsr.layers.info import full_precision_twin
from qmambair_basicsr.recipes.generality_table import ALL_SETS, EVERYWHERE, METHODS, NETWORKS
from qmambair_basicsr.studies import generality
from qmambair_basicsr.studies.generality import case_name, cases, test_of, training
from qmambair_basicsr.studies.generality_report import FINISHED, Case, Row, csv_table, markdown, verdict
from qmambair_basicsr.studies.study_runs import Store
from qmambair_basicsr.tools import generality as tool

test_of.__test__ = False
EVERY = list(cases(NETWORKS, [4, 2], 1))


def test_full_precision_comes_before_what_starts_from_it():
    assert len({case_name(case) for case in cases(NETWORKS, [4, 2], 2)}) == 2 * len(EVERY) == 2 * 60
    done = set()
    for case in EVERY:
        start = training(case, 8).opt["path"]["pretrain_network_g"]
        assert (start is None) == (case.bits == 32)
        assert start is None or start.split("/")[1] in done
        done.add(case_name(case))


@pytest.mark.parametrize("network", NETWORKS)
def test_files_differ_in_network_method_and_width_alone(network):
    recipes, sizes = [], set()
    for case in (c for c in EVERY if c.network.family == network):
        train, test = training(case, 8).opt, test_of(case, ALL_SETS)
        for opt in (train, test):
            assert [str(p) for p in schema.problems(opt, opt is train, look_at_files=False)] == []
        assert train["network_g"] == test["network_g"] and train["scale"] == test["scale"]
        sections = list(test["datasets"].values())
        assert [s["name"] for s in sections] == list(ALL_SETS)
        assert [s["dataroot_gt"] for s in sections] == [f"datasets/{name}/HR" for name in ALL_SETS]
        assert len({s["type"] for s in sections}) == 1 and all(("sigma" in s) == (test["scale"] == 1) for s in sections)
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
    first = training(EVERY[0], 8).opt["train"]
    assert all(training(case, 8).opt["train"] == first for case in EVERY if case.bits == 32)


def test_device_decides_what_trains_and_nothing_else():
    cpu, gpu = (training(EVERY[1], 8, device).opt for device in ("cpu", "cuda:1"))
    assert (cpu.pop("num_gpu"), gpu.pop("num_gpu")) == (0, 1) and cpu == gpu


# -- tables ------------------------------------------------------------------------------------------------------


def row(case, psnr):
    results = {name: {"metrics": {"psnr": psnr, "ssim": 0.5}} for name in ALL_SETS}
    return Row(case, {"results": results, "torch": "2.0", "device": "CPU", "train_seconds": 3.0}, FINISHED)


def fake(psnr, seeds=2):
    """Results of one network without and one with a scan, from (network, method, bits, seed) to dB."""
    return [row(case, psnr(case)) for case in cases(["MambaIR", "EDSR"], [4], seeds)]


GAIN = {"LSQ": 0.0, "QuantSR": 0.5, "Q-MambaIR": 0.25, EVERYWHERE: 0.75}


def test_table_and_verdict():
    rows = fake(lambda case: 30 + GAIN.get(case.method, 1.0) + 0.2 * case.seed)
    text = markdown(rows, [4], ALL_SETS)
    assert "| network | task | set | FP | LSQ 4/4 | QuantSR 4/4 | Q-MambaIR 4/4 |" in text
    assert "| MambaIR | lightSRx2 | Set5 | 31.10 ± 0.14 | 30.10 ± 0.14 | 30.60 ± 0.14 | 30.35 ± 0.14 |  |" in text
    said = verdict(rows, [4], ALL_SETS)
    assert (
        "* 4 bits: Q-MambaIR above LSQ in 2 of 2 networks, on average by +0.25 dB (MambaIR +0.25, EDSR +0.25)" in said
    )
    assert "* 4 bits: Q-MambaIR above QuantSR in 0 of 2 networks, on average by -0.25 dB" in said
    assert f"above {EVERYWHERE} in 0 of 1 networks, on average by -0.50 dB (EDSR -0.50)" in said


def test_missing_results_are_named_not_invented():
    """Of LSQ on EDSR there is nothing, of QuantSR one seed of two; comparisons leave them out and say so."""
    rows = [
        Row(r.case, state="FAILED: RuntimeError: broken")
        if r.case.network.family == "EDSR"
        and (r.case.method == "LSQ" or (r.case.method, r.case.seed) == ("QuantSR", 1))
        else r
        for r in fake(lambda case: 30 + GAIN.get(case.method, 1.0) + 0.2 * case.seed)
    ]
    text = markdown(rows, [4], ("Set5",))
    assert "| EDSR | lightSRx2 | Set5 | 31.10 ± 0.14 | missing | 30.50 (1 of 2) | 30.35 ± 0.14 | 30.85 ± 0.14 |" in text
    said = verdict(rows, [4], ("Set5",))
    assert "above LSQ in 1 of 1 networks, on average by +0.25 dB (MambaIR +0.25); not known for 1" in said
    assert "above QuantSR in 0 of 2 networks, on average by -0.25 dB (MambaIR -0.25, EDSR -0.25)\n" in said, (
        "equal seeds"
    )
    lines = [line for line in csv.DictReader(csv_table(rows, ("Set5",)).splitlines()) if line["network"] == "EDSR"]
    assert [(line["psnr"], line["state"]) for line in lines if line["method"] == "LSQ"] == [
        ("", "FAILED: RuntimeError: broken")
    ] * 2
    assert all(line["psnr"] and line["torch"] == "2.0" for line in lines if line["state"] == FINISHED)


# -- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A working folder with the image sets of the study, of noise; EDSR is smaller still."""
    monkeypatch.setitem(NETWORKS, "EDSR", replace(NETWORKS["EDSR"], network={"num_feat": 8, "num_block": 1}))
    rng = np.random.default_rng(0)
    for name in (generality.TRAINING_SET, "Set5"):
        for folder, side, stem in (("HR", 48, "{}"), ("LR_bicubic/X2", 24, "{}x2")):
            target = tmp_path / "out" / "datasets" / name / folder
            target.mkdir(parents=True)
            for image in ("a", "b"):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                cv2.imwrite(str(target / f"{stem.format(image)}.png"), pixels)
    return tmp_path


def words(out, *more):
    fixed = ["--networks", "EDSR", "--bits", "4", "--sets", "Set5", "--iterations", "2", "--quantized-iterations", "1"]
    return ["--out", str(out), *fixed, *more]


def test_several_at_a_time_then_again_then_elsewhere(pictures, capsys):
    out = pictures / "out"
    assert tool.main(words(out, "--jobs", "3")) == 0
    text = capsys.readouterr().out
    assert text == (out / "generality.md").read_text() and "missing" not in text and "2 iterations from scratch" in text
    assert (out / "generality.png").read_bytes().startswith(b"\x89PNG")
    records = {file.name: file.stat().st_mtime_ns for file in (out / "finished").iterdir()}
    assert len(records) == 5 and not list((out / "failed").iterdir())
    assert all(line["psnr"] for line in csv.DictReader((out / "generality.csv").read_text().splitlines()))

    shutil.copytree(out, pictures / "copy")
    assert tool.main(words(pictures / "copy")) == 0
    assert capsys.readouterr().out == text
    assert {file.name: file.stat().st_mtime_ns for file in (pictures / "copy/finished").iterdir()} == records

    assert tool.main(words(out, "--bits", "4", "2", "--read-only")) == 0
    text = capsys.readouterr().out
    assert "4 of 9 trainings are missing" in text and "EDSR, QuantSR, 2 bits, seed 0: missing" in text


@pytest.fixture
def pretended(monkeypatch):
    """Trainings that take no time; returns the names of those that ran and what happens to some."""
    seen, broken = [], set()

    def execute(run, test, store):
        seen.append((run.name, run.opt["train"]["total_iter"]))
        if run.name in broken:
            raise ArithmeticError("no step today")
        results = {section["name"]: {"metrics": {"psnr": 30.0, "ssim": 0.5}} for section in test["datasets"].values()}
        store.write(run, {"results": results, "torch": "2.0", "device": "CPU"})

    monkeypatch.setattr(generality, "execute", execute)
    monkeypatch.setattr(generality, "unfinished", lambda run, test, store: not store.read(run.name)["results"])
    monkeypatch.setattr(generality, "training_due", lambda run, store: not store.read(run.name)["results"])
    monkeypatch.setattr(generality, "stale_training", lambda *_: None)
    monkeypatch.setattr(generality, "stale_results", lambda *_: None)
    return seen, broken


def test_one_failure_is_named_and_the_others_go_on(pictures, pretended, capsys):
    seen, broken = pretended
    broken.add("QEDSR_lightSRx2_w4a4_lsq_seed0")
    assert tool.main(words(pictures / "out")) == 1
    assert seen[0] == ("EDSR_lightSRx2_seed0", 2) and {length for _, length in seen[1:]} == {1} and len(seen) == 5
    out, err = capsys.readouterr()
    assert "EDSR, LSQ, 4 bits, seed 0: FAILED: ArithmeticError: no step today" in out
    assert "QEDSR_lightSRx2_w4a4_lsq_seed0: FAILED: ArithmeticError: no step today" in err and "s left)" in err
    broken.clear()
    assert tool.main(words(pictures / "out")) == 0
    assert [name for name, _ in seen[5:]] == ["QEDSR_lightSRx2_w4a4_lsq_seed0"]
    assert not Store(pictures / "out").failures()


def test_full_precision_alone(pictures, pretended, capsys):
    seen, _ = pretended
    assert tool.main(words(pictures / "out", "--bits", "32")) == 0
    assert [name for name, _ in seen] == ["EDSR_lightSRx2_seed0"]
    assert "| EDSR | lightSRx2 | Set5 | 30.00 |\n" in capsys.readouterr().out


def test_without_full_precision_nothing_of_the_network_starts(pictures, pretended, capsys):
    seen, broken = pretended
    broken.add("EDSR_lightSRx2_seed0")
    assert tool.main(words(pictures / "out")) == 1
    assert [name for name, _ in seen] == ["EDSR_lightSRx2_seed0"]
    err = capsys.readouterr().err
    assert "QEDSR_lightSRx2_w4a4_seed0: not started, since EDSR_lightSRx2_seed0 failed" in err
    assert tool.main(words(pictures / "out", "--read-only")) == 0
    assert "5 of 5 trainings are missing" in capsys.readouterr().out


def test_other_code_counts_unless_any_will_do(pictures, monkeypatch, capsys):
    out = pictures / "out"
    assert tool.main(words(out)) == 0
    before = capsys.readouterr().out
    monkeypatch.setattr(generality.execute.__globals__["made_from"], "code", lambda: "another")
    monkeypatch.setattr(
        generality.execute.__globals__["made_from"], "version", lambda name: "9.9" if name == "torch" else "1.4.2"
    )
    assert tool.main(words(out, "--read-only")) == 0
    assert "5 of 5 trainings are missing" in capsys.readouterr().out
    assert tool.main(words(out, "--read-only", "--any-code")) == 0
    assert capsys.readouterr().out == before
    longer = ["--any-code", "--iterations", "3"]
    assert tool.main(words(out, "--read-only", *longer)) == 0
    assert "5 of 5 trainings are missing" in capsys.readouterr().out, "other options always count, also of the start"
    trained = {file.name: json.loads(file.read_text())["weights"] for file in (out / "finished").iterdir()}
    assert tool.main(words(out, *longer)) == 0
    for file in (out / "finished").iterdir():
        assert json.loads(file.read_text())["weights"] != trained[file.name]


@pytest.mark.parametrize(
    ("more", "message"), [(["--sets", "Set14"], "Set14 is not there; --source"), (["--device", "mps"], "mps")]
)
def test_mistakes_are_one_message(pictures, capsys, more, message):
    assert tool.main(words(pictures / "out", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error and message in error


def test_only_what_is_asked_for_is_prepared(pictures, pretended, monkeypatch):
    asked = []
    monkeypatch.setattr(tool.prepare_data, "main", lambda argv: asked.append(argv[argv.index("--set") + 1]) or 0)
    assert tool.main(words(pictures / "out", "--source", str(pictures))) == 0
    assert asked == [generality.TRAINING_SET, "Set5"]


def test_cases_know_their_methods():
    assert set(METHODS) == {case.method for case in EVERY if case.network.family == "MaIR"} - {"FP"}
    assert case_name(Case(NETWORKS["EDSR"], EVERYWHERE, 4, 1)) == "QEDSR_lightSRx2_w4a4_dlsinputs_seed1"
