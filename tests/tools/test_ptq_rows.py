"""ptq_rows: every row is its option file but for data and budget; what is finished, what failed, what it says."""

from __future__ import annotations

import copy
import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from recorded_operations import remembered

from qmambair_basicsr import checkpoints
from qmambair_basicsr.command_lines.ptq_rows import build_parser
from qmambair_basicsr.layers.info import full_precision_twin
from qmambair_basicsr.models.mambair_model import MambaIRModel
from qmambair_basicsr.ops.backend import ENV
from qmambair_basicsr.ptq.two_d_quant import TwoDQuant
from qmambair_basicsr.quantizers import ste
from qmambair_basicsr.recipes.option_table import TASKS
from qmambair_basicsr.recipes.ptq_contents import METHODS, ptq_options, ptq_test_options
from qmambair_basicsr.studies import ptq_rows, ptq_rows_quantize
from qmambair_basicsr.studies.benchmark_table import read_published
from qmambair_basicsr.studies.ptq_rows_report import Reported, markdown, write_report
from qmambair_basicsr.studies.time_limit import OutOfTime
from qmambair_basicsr.tools import ptq_rows as tool

TINY = {
    "embed_dim": 12,
    "d_state": 4,
    "depths": [1],
    "num_heads": [2],
    "window_size": 4,
    "inner_rank": 6,
    "num_tokens": 5,
}


def arguments(*words):
    return build_parser().parse_args([*map(str, words)])


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_row_is_its_option_file_but_for_data_and_budget(method, bits):
    run, test = ptq_rows.options_of(2, bits, method, arguments("--scales", 2, "--patches", 24, "--samples", 64))
    file, file_test = (f("MambaIRv2Light", TASKS["lightSRx2"], bits, method) for f in (ptq_options, ptq_test_options))
    assert run.opt["num_gpu"] == test["num_gpu"] == 0
    for key in ("network_g", "scale", "manual_seed"):
        assert run.opt[key] == file[key]
    assert {**run.opt["train"], "minutes": 0} == {**file["train"], "minutes": 0}
    assert test["network_g"] == file_test["network_g"] and test["val"]["metrics"] == file_test["val"]["metrics"]
    of_method = {k: v for k, v in run.opt["ptq"]["method"].items() if k != "samples"}
    assert of_method == file["ptq"]["method"]
    assert run.opt["ptq"]["calibration"] == {"batches": 3, "batch_size": 8}
    theirs, ours = file["datasets"]["train"], run.opt["datasets"]["train"]
    assert {k: ours[k] for k in ("gt_size", "use_hflip", "use_rot")} == {
        k: theirs[k] for k in ("gt_size", "use_hflip", "use_rot")
    }
    assert ours["dataroot_lq"].endswith(theirs["dataroot_lq"]) and ours["meta_info_file"].endswith("bsds400_train.txt")
    assert [s["name"] for s in test["datasets"].values()] == ["Set5", "Set14", "B100"]


def test_device_decides_where_and_nothing_else():
    cpu, gpu = (ptq_rows.options_of(4, 4, "SPR2Q", arguments("--device", name)) for name in ("cpu", "cuda:1"))
    for ours, theirs in ((cpu[0].opt, gpu[0].opt), (cpu[1], gpu[1])):
        assert (ours.pop("num_gpu"), theirs.pop("num_gpu")) == (0, 1) and ours == theirs


def test_one_bit_is_for_spr2q():
    assert list(ptq_rows.rows(arguments("--bits", 4, 1, "--methods", "MinMax", "SPR2Q"))) == [
        (4, 4, "MinMax"),
        (4, 4, "SPR2Q"),
        (4, 1, "SPR2Q"),
    ]


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Folders as a user has them, with a tiny network and tiny images."""

    def shrunk(make):
        def made(*args):
            opt = make(*args)
            opt["network_g"] |= copy.deepcopy(TINY)
            if "train" in opt["datasets"]:
                opt["datasets"]["train"] |= {"gt_size": 32}
                opt["datasets"]["train"].pop("meta_info_file")
            return opt

        return made

    for name in ("ptq_options", "ptq_test_options"):
        monkeypatch.setattr(ptq_rows, name, shrunk(getattr(ptq_rows, name)))
    generator = np.random.default_rng(0)
    for name in ("BSDS400T91", "Set5"):
        for i in range(2):
            small = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            for folder, image in (("HR", cv2.resize(small, (64, 64))), ("LR_bicubic/X4", small)):
                (tmp_path / "datasets" / name / folder).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(tmp_path / f"datasets/{name}/{folder}/{i}{'x4' if folder != 'HR' else ''}.png"), image)
    opt = ptq_options("MambaIRv2Light", TASKS["lightSRx4"], 4, "MinMax")["network_g"]
    config = {k: v for k, v in opt.items() if k != "quant"} | copy.deepcopy(TINY)
    config["type"] = full_precision_twin(config["type"])
    folder = tmp_path / "experiments/pretrained_models"
    checkpoints.write_file({"params": build_network(config).state_dict()}, folder / "mambairv2_lightSR_x4.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def never(*_, **__):
    raise AssertionError("made again")


def call(*more):
    words = ["--bits", "4", "--sets", "Set5", "--iterations", "4", "--batch", "2", "--patches", "2", "--out", "out"]
    return tool.main([*words, *more])


def test_rows_are_made_once_and_told(tiny, capsys, monkeypatch):
    assert call("--methods", "MinMax", "SPR2Q") == 0
    printed = capsys.readouterr().out
    assert printed == (tiny / "out/ptq_rows.md").read_text() and "lack figures" not in printed
    with open(tiny / "out/ptq_rows.csv") as file:
        by_method = {row["method"]: row for row in csv.DictReader(file)}
    assert (by_method["MinMax"]["iterations"], by_method["SPR2Q"]["iterations"]) == ("0", "4")
    assert all(float(row["psnr"]) > 5 and float(row["seconds"]) > 0 for row in by_method.values())
    assert "(31.60)" in printed and f"{float(by_method['SPR2Q']['psnr']):.2f} (31.60) | 4 | 2 + 8 |" in printed
    weights = {f.parts[-3]: f.read_bytes() for f in tiny.glob("out/experiments/*/models/net_g_latest.pth")}

    monkeypatch.setattr(ptq_rows, "quantize_row", never)
    assert call("--methods", "MinMax", "SPR2Q") == 0 and capsys.readouterr().out == printed
    assert len(weights) == 2
    capsys.readouterr()
    assert (
        call("--methods", "MinMax", "SPR2Q", "--minutes", "2", "--read-only") == 0
    )  # another budget: of one that trains
    printed = capsys.readouterr().out
    assert "1 of 2 rows lack figures" in printed and "* x4, SPR2Q, 4/4: other options" in printed


def test_same_seed_same_weights(tiny):
    assert call("--methods", "SPR2Q") == 0
    assert call("--methods", "SPR2Q", "--out", "again") == 0
    (name,) = (f.name for f in tiny.glob("out/experiments/*"))
    first, second = (
        torch.load(tiny / folder / "experiments" / name / "models/net_g_latest.pth")["params"]
        for folder in ("out", "again")
    )
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_row_that_fails_is_named_and_the_next_one_is_made(tiny, capsys, monkeypatch):
    build = ptq_rows_quantize.build_method

    def broken(config):
        if config["type"] == "Percentile":
            raise ValueError("no such luck")
        return build(config)

    monkeypatch.setattr(ptq_rows_quantize, "build_method", broken)
    assert call("--methods", "Percentile", "MinMax") == 1
    printed = capsys.readouterr().out
    assert "* x4, Percentile, 4/4: ValueError: no such luck" in printed and "| x4 | MinMax |" in printed


def weights_of(folder, method):
    return torch.load(folder / f"experiments/QMambaIRv2Light_lightSRx4_w4a4_{method}/models/net_g_latest.pth")["params"]


@pytest.mark.parametrize("method", ["SPR2Q", "MambaQuantScan"])
def test_starting_values_can_be_worked_out_before(tiny, monkeypatch, method):
    assert call("--methods", method, "--only", "quantize") == 0
    assert call("--methods", method, "MinMax", "--only", "calibrate", "--out", "apart") == 0
    assert not (tiny / "apart/experiments").exists()  # neither weights, nor anything of a method without iterations
    monkeypatch.setattr(TwoDQuant, "calibrate", never)
    assert call("--methods", method, "--only", "calibrate", "--out", "apart") == 0  # they are there
    assert call("--methods", method, "--only", "quantize", "--out", "apart") == 0
    first, second = weights_of(tiny / "out", method), weights_of(tiny / "apart", method)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    record = json.loads((tiny / f"apart/finished/QMambaIRv2Light_lightSRx4_w4a4_{method}.json").read_text())
    assert 0 < record["seconds_elsewhere"] < record["seconds_before"] < record["seconds"]


@pytest.mark.parametrize("change", ["samples", "images", "damage"])
def test_starting_values_of_something_else_do_not_count(tiny, capsys, caplog, change):
    caplog.set_level("INFO")
    assert call("--methods", "SPR2Q", "--only", "calibrate") == 0
    (file,) = (tiny / "out/calibrated").iterdir()
    if change == "damage":
        file.write_bytes(file.read_bytes()[:1000])
    if change == "images":
        for photograph in (tiny / "datasets/BSDS400T91/LR_bicubic/X4").iterdir():
            cv2.imwrite(str(photograph), 255 - cv2.imread(str(photograph)))
    failed = call("--methods", "SPR2Q", "--only", "quantize", *(["--samples", "64"] if change == "samples" else []))
    assert failed == (change == "damage")
    if change == "damage":
        assert str(file) in capsys.readouterr().out
    else:
        said = {"samples": "other options or weights", "images": "other images"}[change]
        assert f"starting values that are there do not count: {said}" in caplog.text


def test_losses_that_begin_late_are_averaged_over_what_there_is():
    assert ptq_rows_quantize._means([{"a": 1.0}, {"a": 2.0, "b": 4.0}, {"a": 3.0}]) == {"a": 2.0, "b": 4.0}


# -- several processes, and little time ------------------------------------------------------------------------------


@pytest.fixture
def recorders(monkeypatch):
    """Recorders that stand in for CUDA graphs; every one that is made."""
    made = remembered(monkeypatch)
    monkeypatch.setenv(ENV, "reference")  # the stand-in sees PyTorch's operators
    monkeypatch.setattr(ste, "asking_is_free", lambda x: False)
    return made


def record_of(folder, method):
    return json.loads((folder / f"out/finished/QMambaIRv2Light_lightSRx4_w4a4_{method}.json").read_text())


def test_end_to_end_methods_are_recorded_where_a_device_can(tiny, recorders):
    assert call("--methods", "SPR2Q", "MinMax", "--iterations", "50", "--batch", "1", "--only", "quantize") == 0
    assert [r.recordings for r in recorders] == [2] and recorders[0].replays >= 40
    record = record_of(tiny, "SPR2Q")
    assert record["iterations"] == 50 and record["eager"] == "" and record["method"]["routing"] == 2
    assert record["results"] == {} and 0 < record["seconds_before"] < record["seconds"]
    assert record["images"]["training"] == 50 and all(loss > 0 for loss in record["losses"].values())


def test_one_process_quantizes_and_another_one_tests(tiny, capsys, monkeypatch):
    assert call("--methods", "MinMax", "--only", "test") == 0 and "lack figures" in capsys.readouterr().out
    assert call("--methods", "MinMax", "--only", "quantize") == 0
    assert "* x4, MinMax, 4/4: Set5" in capsys.readouterr().out and not list(tiny.glob("out/results/*"))
    monkeypatch.setattr(ptq_rows, "quantize_row", never)
    assert call("--methods", "MinMax", "Percentile", "--only", "test") == 0
    printed = capsys.readouterr().out
    assert "| x4 | MinMax |" in printed and "* x4, Percentile, 4/4: Set5" in printed
    assert call("--methods", "MinMax", "--only", "quantize") == 0


def test_tests_need_neither_photographs_nor_the_budget(tiny, capsys, monkeypatch):
    assert call("--methods", "SPR2Q", "--only", "quantize", "--minutes", "0.5") == 0
    with monkeypatch.context() as patch:
        patch.setattr(ptq_rows, "quantize_row", never)
        assert call("--methods", "SPR2Q", "--only", "quantize", "--iterations", "9") == 0
    for folder in ("datasets/BSDS400T91", "experiments"):
        (tiny / folder).rename(tiny / "gone")
        shutil.rmtree(tiny / "gone")
    monkeypatch.setattr(ptq_rows, "quantize_row", never)
    assert call("--methods", "SPR2Q", "--only", "test", "--iterations", "9", "--batch", "1") == 0
    assert "| x4 | SPR2Q |" in capsys.readouterr().out


def test_a_quantization_needs_no_test_images(tiny, capsys):
    shutil.rmtree(tiny / "datasets/Set5")
    assert call("--methods", "MinMax", "--only", "quantize") == 0 and record_of(tiny, "MinMax")["results"] == {}
    assert call("--methods", "MinMax") == 2 and "Set5/HR is not there" in capsys.readouterr().err


def test_photographs_can_be_named(tiny):
    (tiny / "one.txt").write_text("1.png\n")
    run, _ = ptq_rows.options_of(4, 4, "MinMax", arguments("--photographs", "one.txt"))
    assert run.opt["datasets"]["train"]["meta_info_file"] == str(tiny / "one.txt")
    assert call("--methods", "MinMax", "--photographs", "one.txt") == 0
    (tiny / "one.txt").write_text("2.png\n")  # nothing of that name
    assert call("--methods", "Percentile", "--photographs", "one.txt") == 1


def test_tests_wait_for_rows_of_others(tiny, capsys, monkeypatch):
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            monkeypatch.chdir(tiny)
            assert call("--methods", "MinMax", "--only", "quantize") == 0

    monkeypatch.setattr(ptq_rows.time, "sleep", nap)
    assert call("--methods", "MinMax", "--only", "test", "--until", "600") == 0
    assert "| x4 | MinMax |" in capsys.readouterr().out and naps == [ptq_rows.LOOK_AGAIN] * 2


def test_a_row_that_another_process_has_is_left_to_it(tiny, capsys):
    made, _ = ptq_rows.options_of(4, 4, "MinMax", arguments("--out", "out"))
    with ptq_rows.Store(tiny / "out").claimed(made):
        assert call("--methods", "MinMax", "Percentile") == 0
    printed = capsys.readouterr().out
    assert "* x4, MinMax, 4/4: Set5" in printed and "| x4 | Percentile |" in printed
    assert call("--methods", "MinMax") == 0
    kept = record_of(tiny, "MinMax")
    with ptq_rows.Store(tiny / "out").claimed(made):  # to make all again takes away nothing that it works with
        assert call("--methods", "MinMax", "--rerun") == 0
    assert record_of(tiny, "MinMax") == kept


def test_when_the_time_is_over_what_is_done_stays(tiny, capsys, monkeypatch):
    """Weights of a row whose test is cut off, and figures of its finished sets."""
    (tiny / "datasets/Set14").symlink_to(tiny / "datasets/Set5")
    real = MambaIRModel.nondist_validation

    def second_is_cut_off(self, dataloader, *args):
        if dataloader.dataset.opt["name"] == "Set14":
            raise OutOfTime
        return real(self, dataloader, *args)

    monkeypatch.setattr(MambaIRModel, "nondist_validation", second_is_cut_off)
    sets = ("--sets", "Set5", "Set14")
    assert call("--methods", "MinMax", "Percentile", *sets, "--until", "500") == 0
    printed = capsys.readouterr().out
    assert "* x4, MinMax, 4/4: Set14\n" in printed and "* x4, Percentile, 4/4: Set5, Set14\n" in printed
    assert record_of(tiny, "MinMax")["results"].keys() == {"Set5"}
    monkeypatch.setattr(MambaIRModel, "nondist_validation", real)
    monkeypatch.setattr(ptq_rows, "quantize_row", never)
    first = record_of(tiny, "MinMax")["results"]["Set5"]
    assert call("--methods", "MinMax", *sets) == 0 and "lack figures" not in capsys.readouterr().out
    record = record_of(tiny, "MinMax")["results"]
    assert record.keys() == {"Set5", "Set14"} and record["Set5"] == first


def test_rows_that_do_not_fit_any_more_are_not_begun(tiny, capsys, caplog):
    caplog.set_level("INFO")
    assert call("--methods", "MinMax", "--bits", "4") == 0
    finished = tiny / "out/finished/QMambaIRv2Light_lightSRx4_w4a4_MinMax.json"
    finished.write_text(json.dumps({**json.loads(finished.read_text()), "seconds": 1000}))
    assert call("--methods", "MinMax", "Percentile", "--bits", "2", "4", "--until", "500") == 0
    assert "w2a2_MinMax: not begun: 500 s are left, it takes 1000 s" in caplog.text.replace("499 s", "500 s")
    printed = capsys.readouterr().out
    assert "* x4, MinMax, 2/2: Set5" in printed and "| x4 | Percentile | 2/2 |" in printed


def test_figures_hold_wherever_the_images_lie(tiny, capsys, monkeypatch):
    assert call("--methods", "MinMax") == 0
    printed = capsys.readouterr().out
    (tiny / "datasets").rename(tiny / "elsewhere")
    monkeypatch.setattr(ptq_rows, "quantize_row", never)
    assert call("--methods", "MinMax", "--root", "elsewhere") == 0 and capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scales", "2", "4", "--checkpoint", "x.pth"], "--checkpoint is of one scale"),
        (["--checkpoint", "x.pth"], "x.pth is not there"),
        (["--device", "meta"], "no device 'meta'"),
        (["--root", "elsewhere"], "elsewhere/BSDS400T91/HR is not there"),
    ],
)
def test_mistakes_are_one_message(tiny, capsys, more, message):
    assert call(*more) == 2
    assert message in capsys.readouterr().err


def test_table_has_published_figures_beside_and_names_what_is_missing(tmp_path):
    _, test = ptq_rows.options_of(4, 4, "QuambaScan", arguments())
    results = {"Set5": {"metrics": {"psnr": 30.5, "ssim": 0.9}}}
    record = {"results": results, "iterations": 12, "images": {"calibration": 16, "training": 24}, "seconds": 90.0,
              "torch": "2", "device": "CPU"}  # fmt: skip
    rows = [Reported(4, 4, "QuambaScan", test, record), Reported(4, 4, "MinMax", test)]
    paper = {name: read_published()["MambaIRv2Light", "lightSRx4", "Quamba", "4", "4", name, "psnr"].value
             for name in ("set5", "set14")}  # fmt: skip
    line = markdown(rows, ["Set5", "Set14"]).splitlines()[2]
    assert line == (
        f"| x4 | Quamba (scan) | 4/4 | 30.50 ({paper['set5']}) |  ({paper['set14']}) | 12 | 16 + 24 | 1.5 |"
    )
    text = write_report(rows, tmp_path, ["Set5", "Set14"])
    assert "2 of 2 rows lack figures" in text
    assert "* x4, QuambaScan, 4/4: Set14" in text and "* x4, MinMax, 4/4: Set5, Set14" in text
