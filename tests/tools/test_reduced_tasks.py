"""reduced_tasks: its files run through the check of option files, and its start interpolates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from basicsr.archs import build_network

from qmambair_basicsr import made_from
from qmambair_basicsr.studies import reduced_tasks
from qmambair_basicsr.studies.claims import claimed
from qmambair_basicsr.studies.reduced_start import interpolate_at_start
from qmambair_basicsr.tools import reduced_tasks as command


@pytest.mark.parametrize(("upsampler", "scale"), [("pixelshuffledirect", s) for s in (2, 3, 4)] + [("pixelshuffle", 2)])
def test_start_is_bilinear_interpolation(upsampler, scale):
    """The network at its start equals torch's bilinear enlargement away from the borders."""
    net = build_network(
        {"type": "MambaIR", "embed_dim": 30, "depths": [1], "d_state": 2, "upscale": scale, "upsampler": upsampler}
    ).eval()
    x = torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        out = interpolate_at_start(net)(x)
    expected = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    inner = (..., slice(scale, -scale), slice(scale, -scale))
    torch.testing.assert_close(out[inner], expected[inner], atol=1e-5, rtol=1e-5)


def test_start_refuses_what_it_cannot_do():
    net = build_network(
        {"type": "MambaIR", "embed_dim": 30, "depths": [1], "d_state": 2, "upscale": 4, "upsampler": "pixelshuffle"}
    )
    with pytest.raises(ValueError, match="scale 4"):
        interpolate_at_start(net)


@pytest.mark.parametrize("task", sorted(reduced_tasks.REDUCED))
@pytest.mark.parametrize("bits", [32, 4])
def test_files_keep_the_protocol(tmp_path, task, bits):
    """Metrics, loss and model are the shipped file's; only size, length and folders change."""
    from qmambair_basicsr.recipes.option_contents import test_options, train_options
    from qmambair_basicsr.recipes.option_table import TASKS

    reduced = reduced_tasks.REDUCED[task]
    train = reduced_tasks.train_file(reduced, bits, 200)
    test = reduced_tasks.test_file(reduced, bits, tmp_path)
    shipped_train, shipped_test = (make(reduced.family, TASKS[task], bits) for make in (train_options, test_options))
    assert train["train"]["pixel_opt"] == shipped_train["train"]["pixel_opt"]
    assert test["val"]["metrics"] == shipped_test["val"]["metrics"]
    assert train["model_type"] == shipped_train["model_type"]
    assert train["train"]["total_iter"] == 200
    assert [s["name"] for s in test["datasets"].values()] and train["network_g"] == test["network_g"]
    if task != "RealDN":
        assert train["datasets"]["train"]["type"] == shipped_train["datasets"]["train"]["type"]
    build_network(train["network_g"])


def test_input_quality_of_set5_is_bicubic(shared_dir, tmp_path):
    """The figure beside the result is the 33.66 dB that papers print for bicubic x2."""
    set5 = shared_dir / "data" / "test" / "Set5"
    opt = reduced_tasks.test_file(reduced_tasks.REDUCED["lightSRx2"], 32, tmp_path)
    section = opt["datasets"]["test_1"] | {
        "dataroot_gt": str(set5 / "HR"),
        "dataroot_lq": str(set5 / "LR_bicubic" / "X2"),
    }
    assert reduced_tasks.input_quality(section, opt)["psnr"] == pytest.approx(33.66, abs=0.03)


def test_table():
    rows = [("SRx2", "Set5", 32, 33.66, 34.0)]
    assert "| SRx2 | Set5 | 32/32 | 33.66 | 34.00 | +0.34 |" in reduced_tasks.table(rows)


def _pretended_steps(monkeypatch, psnr, lost=()):
    """Trainings and tests that take no time, without figures of the sets ``lost``; returns the list of what was run."""
    ran = []

    def run(work, module, *argv):
        opt = yaml.safe_load(Path(argv[1]).read_text())
        ran.append((module, opt["name"]))
        if module == "train":
            target = work / "experiments" / opt["name"] / "models" / "net_g_latest.pth"
            target.parent.mkdir(parents=True)
            target.write_bytes(b"weights")
        else:
            log = work / "results" / opt["name"] / f"test_{opt['name']}_{len(ran)}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            record = made_from.log_line(made_from.of_test(opt, work))
            names = [s["name"] for s in opt["datasets"].values() if s["name"] not in lost]
            figures = "".join(f"Validation {name}\n\t # psnr: {psnr}\n" for name in names)
            log.write_text(f"INFO: {record}\n{figures}")

    monkeypatch.setattr(reduced_tasks, "_run", run)
    return ran


def test_processes_share_the_tasks(tmp_path, monkeypatch, capsys):
    """A task that another is at is left to it; the table has what all have finished, and each task is run once."""
    for name in reduced_tasks.ALL_SETS:
        (tmp_path / "datasets" / name / "HR").mkdir(parents=True)
    prepared = []
    monkeypatch.setattr(reduced_tasks, "prepare", lambda *args: prepared.append(args))
    measured = []

    def input_quality(section, opt):
        measured.append(section["name"])
        return {"psnr": 20.0}

    monkeypatch.setattr(reduced_tasks, "input_quality", input_quality)
    ran = _pretended_steps(monkeypatch, 30.0)
    argv = ["--source", str(tmp_path), "--out", str(tmp_path), "--tasks", "ColorDN25", "CARq10", "--bits", "32", "4"]
    (tmp_path / "claims").mkdir()
    with claimed(tmp_path / "claims" / "ColorDN25") as mine:
        assert mine and command.main(argv) == 1, "not all tasks have their results"
    assert {name.split("_")[2] for _, name in ran} == {"CARq10"} and len(ran) == 4
    assert measured == ["classic5", "LIVE1"], "once for both widths"
    first = capsys.readouterr().out
    assert first.count("| CARq10 |") == 4 and "ColorDN25" not in first
    ran.clear()
    assert command.main(argv) == 0 and len(prepared) == 2
    assert {name.split("_")[2] for _, name in ran} == {"ColorDN25"} and len(ran) == 4
    table = capsys.readouterr().out
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]] == ["ColorDN25"] * 2 + [
        "CARq10"
    ] * 2 + ["ColorDN25"] * 2 + ["CARq10"] * 2
    assert (tmp_path / "results.md").read_text() == table
    log = next((tmp_path / "results" / "test_QMambaIR_CARq10_w4a4").iterdir())
    log.write_text(log.read_text().replace('"weights": "', '"weights": "other '))
    reduced = [*reduced_tasks.finished_rows(tmp_path, tmp_path, ["CARq10"], [32, 4], reduced_tasks.ALL_SETS)]
    assert [row[2] for row in reduced] == [32, 32], "figures of other weights are none"


def test_a_table_without_all_rows_is_no_success(tmp_path, monkeypatch, caplog):
    for name in reduced_tasks.ALL_SETS:
        (tmp_path / "datasets" / name / "HR").mkdir(parents=True)
    monkeypatch.setattr(reduced_tasks, "prepare", lambda *args: None)
    monkeypatch.setattr(reduced_tasks, "input_quality", lambda section, opt: {"psnr": 20.0})
    _pretended_steps(monkeypatch, 30.0, lost=("LIVE1",))
    with caplog.at_level("INFO"):
        assert (
            command.main(["--source", str(tmp_path), "--out", str(tmp_path), "--tasks", "CARq10", "--bits", "32"]) == 1
        )
    assert "1 of 2 rows have no figures" in caplog.text


def test_what_is_finished_is_repeated_for_other_inputs_only(tmp_path, monkeypatch, caplog):
    """Another training picture trains anew, another test picture tests anew; the reason is said."""
    for name in ("BSDS400T91", "McMaster", "CBSD68"):
        (tmp_path / "datasets" / name / "HR").mkdir(parents=True)
        (tmp_path / "datasets" / name / "HR" / "a.png").write_bytes(b"a picture")
    ran = _pretended_steps(monkeypatch, 30.0)

    def go(**more):
        ran.clear()
        with caplog.at_level("INFO"):
            results = reduced_tasks.run_task(reduced_tasks.REDUCED["ColorDN25"], 32, 4, tmp_path, tmp_path, **more)
        assert results == {name: {"psnr": 30.0} for name in ("McMaster", "CBSD68")}
        return [module for module, _ in ran]

    assert go() == ["train", "test"] and go() == []
    (tmp_path / "datasets/BSDS400T91/HR/a.png").write_bytes(b"A PICTURE")
    assert go() == ["train"]  # to the same weights, whose figures stay
    assert "trained anew: other training data" in caplog.text
    (tmp_path / "datasets/CBSD68/HR/a.png").write_bytes(b"A PICTURE")
    assert go() == ["test"] and go() == []
    assert "tested anew: other set CBSD68" in caplog.text
    assert go(rerun=True) == ["train", "test"]
