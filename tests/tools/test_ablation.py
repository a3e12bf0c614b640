"""ablation: the table of studies, equality with the stock commands, resuming, failures, the report."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.utils.options import ordered_yaml
from devices import python_path

from qmambair_basicsr.models.mambair_model import MambaIRModel
from qmambair_basicsr.quantizers import LSQ, QUANTIZER_REGISTRY, QuantSpec
from qmambair_basicsr.recipes.option_contents import OPTIONS
from qmambair_basicsr.studies import study_runs
from qmambair_basicsr.studies.ablation_studies import studies
from qmambair_basicsr.studies.result_log import latest_log, read_results
from qmambair_basicsr.studies.study_runs import Store
from qmambair_basicsr.tools import ablation

ROOT = Path(__file__).resolve().parents[2]
FILE = "train_QMambaIR_tinySRx2_w4a4.yml"
NETWORK = {"depths": [1], "embed_dim": 32, "d_state": 2}


def load(file):
    return yaml.load(Path(file).read_text(encoding="utf-8"), Loader=ordered_yaml()[0])


def save(opt, file):
    file.write_text(yaml.dump(opt, Dumper=ordered_yaml()[1]), encoding="utf-8")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working folder: noise images, weights of a small network, a training and a test file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    rng = np.random.default_rng(0)
    for name in ("BSDS400T91", "Set5", "Set14"):
        for folder, side, stem in (("HR", 32, "{}"), ("LR_bicubic/X2", 16, "{}x2")):
            target = tmp_path / "datasets" / name / folder
            target.mkdir(parents=True)
            for image in ("a", "b"):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                cv2.imwrite(str(target / f"{stem.format(image)}.png"), pixels)
    opt = load(OPTIONS / FILE)
    opt["network_g"] |= NETWORK
    opt["num_gpu"] = 0
    opt["path"]["pretrain_network_g"] = "full.pth"
    opt["datasets"]["train"] |= {"gt_size": 24, "batch_size_per_gpu": 2}
    opt["quant_train"]["calibration"]["batches"] = 1
    opt["train"]["total_iter"] = 4
    opt["train"]["scheduler"]["milestones"] = [2, 3]
    opt["logger"] |= {"save_checkpoint_freq": 100, "print_freq": 1}
    test = load(OPTIONS / FILE.replace("train_", "test_"))
    test["num_gpu"] = 0
    del test["datasets"]["test_3"]
    save(opt, tmp_path / FILE)
    save(test, tmp_path / FILE.replace("train_", "test_"))
    section = {k: v for k, v in opt["network_g"].items() if k != "quant"} | {"type": "MambaIR"}
    torch.save({"params": build_network(section).state_dict()}, tmp_path / "full.pth")
    return tmp_path


def run(*argv):
    return ablation.main(["-opt", FILE, "--seeds", "3", "--bits", "4", *map(str, argv)])


def records(folder="ablation"):
    return {file.stem: json.loads(file.read_text()) for file in sorted(Path(folder, "finished").glob("*.json"))}


def weights(folder, name):
    return torch.load(Path(folder, "experiments", name, "models", "net_g_latest.pth"), weights_only=True)["params"]


def same_weights(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


# -- one run is what the stock commands give ----------------------------------------------------------------------


def test_equals_the_stock_commands(work):
    """Weights bit for bit and figures, from an option file written here, with a loader process as shipped."""
    assert run("--studies", "components", "--variants", "DLS only", "--sets", "Set5") == 0
    scans = {r["options"]["network_g"]["quant"]["scan"]["type"]: r for r in records().values()}
    assert set(scans) == {"QuantSR", "DLS"}  # the study's first row is the baseline
    ours = scans["DLS"]

    opt, test = load(FILE), load(FILE.replace("train_", "test_"))
    opt["network_g"]["quant"]["weight"]["type"] = "QuantSR"
    test["network_g"] = opt["network_g"]
    opt |= {"name": "stock", "manual_seed": 3}
    opt["logger"]["use_tb_logger"] = False
    opt["val"]["pbar"] = False
    test |= {"name": "test_stock", "datasets": {"test_1": test["datasets"]["test_1"]}}
    test["path"]["pretrain_network_g"] = "experiments/stock/models/net_g_latest.pth"
    assert opt["datasets"]["train"]["num_worker_per_gpu"] == 1
    save(opt, work / "stock.yml")
    save(test, work / "test_stock.yml")
    environment = {**os.environ, "PYTHONPATH": python_path()}
    for command, file in (("train", "stock.yml"), ("test", "test_stock.yml")):
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", f"qmambair_basicsr.{command}", "-opt", file],
            check=True,
            capture_output=True,
            env=environment,
        )
    same_weights(weights("ablation", ours["name"]), weights(".", "stock"))
    figures, _ = read_results(latest_log(work / "results", "test_stock"))
    assert ours["results"]["Set5"]["metrics"] == figures["Set5"]


# -- interruption and failure -------------------------------------------------------------------------------------


def test_killed_command_goes_on(work):
    """SIGKILL after the first result: the next call keeps it and runs the rest, with the same figures as ever."""
    argv = ["-opt", FILE, "--seeds", "3", "--bits", "4", "--studies", "methods", "--sets", "Set5"]
    command = [sys.executable, "-W", "ignore", "-m", "qmambair_basicsr.tools.ablation", *argv]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": python_path()}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not records() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = records()
    assert 1 <= len(before) < 3, "killed in the middle"
    stamps = {name: Path("ablation/finished", f"{name}.json").stat().st_mtime_ns for name in before}
    tested = {name for name, record in before.items() if record["results"]}
    assert ablation.main(argv) == 0
    assert len(records()) == 3
    for name in tested:
        assert Path("ablation/finished", f"{name}.json").stat().st_mtime_ns == stamps[name]
    assert ablation.main([*argv, "--out", "whole"]) == 0
    assert {n: r["results"] for n, r in records().items()} == {n: r["results"] for n, r in records("whole").items()}


def test_interrupted_training_goes_on_from_its_state(work, monkeypatch):
    """A saved training state is used, and the result is that of a training that never stopped."""
    argv = ("--studies", "placement", "--variants", "act_policy: paper", "--sets", "Set5")
    argv += ("--force_yml", "logger:save_checkpoint_freq=1")
    assert run(*argv, "--out", "whole") == 0
    seen, step = [], MambaIRModel.optimize_parameters

    def stop_at_3(self, iteration):
        seen.append(iteration)
        if len(seen) == 3:
            raise KeyboardInterrupt
        step(self, iteration)

    monkeypatch.setattr(MambaIRModel, "optimize_parameters", stop_at_3)
    with pytest.raises(KeyboardInterrupt):
        run(*argv)
    assert not records()
    assert run(*argv) == 0
    assert seen[:5] == [1, 2, 3, 3, 4], "the first run goes on at the iteration it was stopped in"
    for name, record in records().items():
        assert record["results"] == records("whole")[name]["results"]
        same_weights(weights("ablation", name), weights("whole", name))


def test_one_failure_does_not_lose_the_others(work, monkeypatch, capsys):
    """It is recorded with its message, the exit code says so, and the next call tries it again."""

    class Broken(LSQ):
        def estimate(self, x):
            raise ArithmeticError("no step today")

    monkeypatch.setitem(QUANTIZER_REGISTRY, "Broken", Broken)
    argv = ("--studies", "weights", "--variants", "Broken", "LSQ", "--sets", "Set5")
    assert run(*argv) == 1
    assert len(records()) == 2
    (message,) = Store(Path("ablation")).failures().values()
    assert message == "ArithmeticError: no step today"
    assert "weights / Broken, 4 bits, seed 3" in Path("ablation/ablation.md").read_text()
    assert "FAILED: ArithmeticError: no step today" in capsys.readouterr().err
    monkeypatch.setattr(Broken, "estimate", LSQ.estimate)
    assert run(*argv) == 0
    assert len(records()) == 3 and not Store(Path("ablation")).failures()
    assert "Failed" not in Path("ablation/ablation.md").read_text()


@pytest.fixture
def pretended(monkeypatch):
    """Trainings and tests that take no time; returns what was run, as ``train`` and ``test``."""
    calls = []

    def pipeline(function, opt, store, *flags):
        kind = "train" if function is study_runs.train_pipeline else "test"
        calls.append(kind)
        if kind == "train":
            file = store.root / "experiments" / opt["name"] / "models" / "net_g_latest.pth"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"weights")
        else:
            figures = "".join(
                f"Validation {s['name']}\n\t # psnr: 30.0\n\t # ssim: 0.9\n" for s in opt["datasets"].values()
            )
            log = store.root / "results" / opt["name"] / f"test_{opt['name']}_{len(calls)}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(figures)

    monkeypatch.setattr(study_runs, "_pipeline", pipeline)
    return calls


def _touch_pixels(file):
    """Another picture of the same size in bytes: lossless formats without compression."""
    img = cv2.imread(str(file))
    img[0, 0] += 1
    cv2.imwrite(str(file), img)


def _other_weights(_):
    content = torch.load("full.pth", weights_only=True)
    next(iter(content["params"].values())).add_(1)
    torch.save(content, "full.pth")


def _other_border(_):
    file = Path(FILE.replace("train_", "test_"))
    test = load(file)
    test["val"]["metrics"]["psnr"]["crop_border"] = 5
    save(test, file)


@pytest.mark.parametrize(
    ("change", "calls", "reason"),
    [
        (_other_weights, ["train", "test"], "other initial weights"),
        (lambda w: _touch_pixels(w / "datasets/BSDS400T91/HR/a.png"), ["train", "test"], "other training data"),
        (lambda w: _touch_pixels(w / "datasets/Set5/HR/a.png"), ["test"], "other options, images or code for Set5"),
        (_other_border, ["test"], "other options, images or code for Set5"),
        (
            lambda w: next(w.glob("ablation/experiments/*/models/*.pth")).write_bytes(b"WEIGHTS"),
            ["test"],
            "other weights",
        ),
    ],
)
def test_stale_figures_are_not_repeated(work, pretended, capsys, change, calls, reason):
    """What a run was made from decides whether it is trained, tested or kept; the reason is said."""
    first = next(iter(studies()["components"].variants))
    argv = ("--studies", "components", "--variants", first, "--sets", "Set5")
    assert run(*argv) == 0 and pretended == ["train", "test"]
    pretended.clear()
    assert run(*argv) == 0 and pretended == []
    change(work)
    capsys.readouterr()
    assert run(*argv, "--list") == 0 and "to do" in capsys.readouterr().out
    assert run(*argv, "--read-only") == 0 and f"is left out: its figures are of {reason}" in capsys.readouterr().err
    assert run(*argv) == 0 and pretended == calls
    assert f"done again: {reason}" in capsys.readouterr().err
    pretended.clear()
    assert run(*argv) == 0 and pretended == []
    assert run(*argv, "--rerun") == 0 and pretended == ["train", "test"]


def test_any_code_keeps_figures_of_other_code(work, pretended, monkeypatch):
    argv = ("--studies", "placement", "--variants", "act_policy: paper", "--sets", "Set5")
    assert run(*argv) == 0
    pretended.clear()
    monkeypatch.setattr(study_runs.made_from, "code", lambda: "other code")
    assert run(*argv, "--any-code") == 0 and pretended == []
    assert run(*argv) == 0 and pretended == ["test", "test"]


def test_sets_are_added_without_training_again(work):
    argv = ("--studies", "placement", "--variants", "act_policy: paper")
    assert run(*argv, "--sets", "Set5") == 0
    before = records()
    assert run(*argv) == 0
    for name, record in records().items():
        assert set(record["results"]) == {"Set5", "Set14"}
        assert record["train_seconds"] == before[name]["train_seconds"]
        assert record["results"]["Set5"] == before[name]["results"]["Set5"]


# -- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--studies", "metods"), "unknown study 'metods'; there are methods, components"),
        (("--variants", "LSC*"), "no variant fits 'LSC\\*'; there are Q-MambaIR, LSQ"),
        (("--sets", "Set6"), "--sets Set6: the test option file has Set5, Set14"),
        (("--force_yml", "trian:total_iter=3"), "--force_yml trian:total_iter=3"),
        (("--force_yml", "train:totl_iter=3"), "train.totl_iter: unknown key \\(did you mean 'total_iter'"),
        (("--root", "elsewhere"), "folder elsewhere/.* does not exist"),
        (("--test", "gone.yml"), "there is no file gone.yml"),
    ],
)
def test_mistakes_are_one_message(work, capsys, argv, message):
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert re.search(message, error), error


def test_full_precision_file_is_refused(work, capsys):
    opt = load(FILE)
    del opt["network_g"]["quant"]
    save(opt, work / FILE)
    assert run() == 2
    assert f"{FILE}: network_g has no quant block" in capsys.readouterr().err


def test_two_processes_share_the_runs(work, capsys):
    """What another process has claimed is left to it, and taken once that has ended."""
    store = Store(work / "ablation")
    argv = ("--studies", "placement", "--variants", "act_policy: paper", "--sets", "Set5")
    assert run(*argv, "--list") == 0
    name = capsys.readouterr().out.split()[0]
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('claimed', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(store.claims / name)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "claimed\n"
        assert run(*argv) == 0
        assert name not in records() and len(records()) == 1
        assert "1 run(s) are left to other processes" in capsys.readouterr().err
        other.kill()
    assert run(*argv) == 0
    assert len(records()) == 2


# -- files --------------------------------------------------------------------------------------------------------


def test_report_files(work):
    """Every finished run is in the files, and --read-only writes them again from the results alone."""
    argv = ("--studies", "methods", "--sets", "Set5")
    assert run(*argv) == 0
    texts = {f: Path("ablation", f).read_bytes() for f in ("ablation.md", "summary.csv", "runs.csv")}
    rows = list(csv.DictReader(texts["runs.csv"].decode().splitlines()))
    assert [(r["studies"], r["metric"]) for r in rows] == [
        (f"methods / {v}", m) for v in ("Q-MambaIR", "LSQ", "QuantSR") for m in ("psnr", "ssim")
    ]
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert Path("ablation", f"ablation.{suffix}").read_bytes().startswith(start)
    for file in texts:
        Path("ablation", file).unlink()
    assert run(*argv, "--read-only") == 0
    assert {f: Path("ablation", f).read_bytes() for f in texts} == texts


def test_list_runs_nothing(work, capsys):
    assert run("--studies", "methods", "components", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "5 runs"
    assert any(line.endswith("to do  methods / QuantSR; components / baseline (QuantSR)") for line in lines)
    assert not records()


def test_quant_blocks_in_the_written_files_are_valid(work):
    """What a run leaves in options/ can be trained by hand with the stock command."""
    assert run("--studies", "placement", "--variants", "act_policy: paper", "--sets", "Set5") == 0
    files = sorted(Path("ablation/options").glob("w4a4*.yml"))
    assert len(files) == 2
    policies = set()
    for file in files:
        opt = load(file)
        assert opt["name"] == file.stem
        policies.add(QuantSpec.from_dict(opt["network_g"]["quant"]).act_policy)
    assert policies == {"code", "paper"}
