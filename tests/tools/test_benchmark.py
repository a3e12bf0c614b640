"""benchmark: logs to tables, resuming, failures, published figures."""

from __future__ import annotations

import csv
import io
import logging
import os
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from qmambair_basicsr import made_from
from qmambair_basicsr.data.image_files import write_image
from qmambair_basicsr.recipes.option_contents import OPTIONS
from qmambair_basicsr.recipes.option_files import read_options
from qmambair_basicsr.schema.forced import apply
from qmambair_basicsr.studies import benchmark as library
from qmambair_basicsr.studies.benchmark_page import heat_map, most_structure
from qmambair_basicsr.studies.benchmark_table import Entry, csv_table, latex_table, markdown_table, read_published
from qmambair_basicsr.studies.result_log import latest_log, read_results
from qmambair_basicsr.tools import benchmark

SETS = ("Set5", "Set14", "B100", "Urban100", "Manga109")
FILES = [
    OPTIONS / f"test_{name}.yml" for name in ("MambaIR_lightSRx2", "QMambaIR_lightSRx2_w4a4", "QMambaIR_lightSRx2_w2a2")
]


def write_log(folder, name, psnr, sets=SETS, stamp="20260101_000000", made=None):
    """A log as BasicSR's own logger and validation write it, of a test that says what it was made from."""
    if made is None and (OPTIONS / f"{name}.yml").is_file():
        made = made_from.of_test(read_options(OPTIONS / f"{name}.yml"))
    log = folder / name / f"test_{name}_{stamp}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = ["2026-01-01 00:00:00,000 INFO: Network: MambaIR, with parameters: 905,016"]
    lines += [f"2026-01-01 00:00:00,000 INFO: {made_from.log_line(made)}"] if made else []
    for i, set_name in enumerate(sets):
        lines += [
            f"2026-01-01 00:00:01,000 INFO: Testing {set_name}...",
            f"2026-01-01 00:00:09,000 INFO: Validation {set_name}",
            f"\t # psnr: {psnr - i:.4f}",
            f"\t # ssim: {0.9 - i / 100:.4f}",
            "",
        ]
    log.write_text("\n".join(lines))
    return log


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """A working folder whose results hold three finished tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])
    for file, psnr in zip(FILES, (38.16, 37.60, 36.70), strict=True):
        write_log(tmp_path / "results", file.stem, psnr)
    return tmp_path


def _main(*argv):
    return benchmark.main([str(a) for a in argv])


def test_read_results(tmp_path):
    """Every set and metric, the parameter count, and only the newest log."""
    write_log(tmp_path, "test_a", 30.0)
    newest = write_log(tmp_path, "test_a", 31.0, ("Set5",), "20260202_000000")
    assert latest_log(tmp_path, "test_a") == newest
    assert latest_log(tmp_path, "test_b") is None
    assert read_results(newest) == ({"Set5": {"psnr": 31.0, "ssim": 0.9}}, 905016)


def test_log_of_basicsr_itself_is_understood(tmp_path):
    """The text comes from BasicSR's own validation code, not from this test."""
    from basicsr.models.sr_model import SRModel

    from qmambair_basicsr.models.mambair_model import MambaIRModel

    model = MambaIRModel.__new__(MambaIRModel)
    model.metric_results = {"psnr": 37.123456, "ssim": 0.95}
    records = []
    logger = logging.getLogger("basicsr")
    handler = logging.Handler()
    handler.emit = lambda record: records.append(f"2026-01-01 INFO: {record.getMessage()}")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        SRModel._log_validation_metric_values(model, 0, "Set 5", None)
    finally:
        logger.removeHandler(handler)
    (tmp_path / "a.log").write_text("\n".join(records))
    assert read_results(tmp_path / "a.log")[0] == {"Set 5": {"psnr": 37.1235, "ssim": 0.95}}


def test_tables_from_logs(logs, capsys):
    """Three formats; places among the quantized rows; published figures beside ours."""
    assert _main("-opt", *FILES, "--read-only") == 0
    text = (logs / "benchmark" / "lightSRx2.md").read_text()
    assert text in capsys.readouterr().out
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| MambaIR |")]
    assert [row[1:3] for row in rows] == [["FP", "32/32"], ["Q-MambaIR", "4/4"], ["Q-MambaIR", "2/2"]]
    assert rows[0][4] == "38.16 (38.16)"  # Set5 of the paper
    assert rows[1][4].startswith("**37.60** (")
    assert rows[2][4].startswith("<u>36.70</u> (")
    sizes = [float(row[3].replace(",", "")) for row in rows]
    assert sizes[0] == pytest.approx(905016 * 4 / 1024, rel=1e-3)
    assert sizes[0] > sizes[1] > sizes[2]
    table = list(csv.DictReader(io.StringIO((logs / "benchmark" / "lightSRx2.csv").read_text())))
    assert len(table) == 3 * 5 * 2
    urban = next(r for r in table if (r["w_bits"], r["dataset"], r["metric"]) == ("2", "Urban100", "psnr"))
    assert (urban["published"], urban["source"], urban["difference"]) == ("30.81", "Q-MambaIR-v3 Table 8", "+2.89")
    tex = (logs / "benchmark" / "lightSRx2.tex").read_text()
    assert r"\textbf{37.60}" in tex and r"\underline{36.70}" in tex
    lines = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") for line in lines}) == 1


def test_doubtful_figures_are_marked(tmp_path):
    """A figure that the review of the paper flagged carries a dagger and, in the CSV, the reason."""
    entry = Entry("MambaIR", "SRx2", "LSQ", (4, 4), 1.0, {"Manga109": {"psnr": 38.0, "ssim": 0.97}})
    published = read_published()
    assert "(0.9685†)" in markdown_table("SRx2", [entry], published)
    assert r"(0.9685$^\dagger$)" in latex_table("SRx2", [entry], published)
    rows = list(csv.DictReader(io.StringIO(csv_table("SRx2", [entry], published))))
    assert {r["metric"]: bool(r["doubt"]) for r in rows} == {"psnr": False, "ssim": True}


def test_published_figures_are_those_of_the_sheet(shared_dir):
    """Every shipped figure stands in the design sheet with its table, and every flagged row of a shipped table is marked."""
    sheet = {
        (
            f"{r['paper']} Table {r['table']}",
            r["w_bits"],
            r["a_bits"],
            r["dataset"].lower(),
            r["metric"].lower(),
            r["value"],
        )
        for r in csv.DictReader((shared_dir / "design" / "paper_numbers.csv").open())
    }
    published = read_published()
    assert len(published) > 1000
    for (_, _, _, w, a, name, metric), figure in published.items():
        assert (figure.source, w, a, name, metric, figure.value) in sheet
    quamba = [f for k, f in published.items() if k[1:5] == ("SRx2", "Quamba2", "4", "4")]
    assert quamba and all(f.doubt for f in quamba)
    assert published["MambaIR", "lightSRx3", "LSQ", "4", "4", "b100", "psnr"].doubt
    assert not published["MambaIR", "SRx2", "FP", "32", "32", "set5", "psnr"].doubt


def test_resumes_and_survives_failures(logs, monkeypatch):
    """Complete logs are not run again; an incomplete one is; a failing file is listed and costs no other row."""
    incomplete, failing = OPTIONS / "test_MambaIR_SRx2.yml", OPTIONS / "test_MambaIR_lightSRx4.yml"
    write_log(logs / "results", incomplete.stem, 38.6, SETS[:2])
    ran = []

    def run(command, **options):
        name = Path(command[command.index("-opt") + 1]).stem
        ran.append(name)
        if name == failing.stem:
            return types.SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nRuntimeError: no weights\n")
        write_log(logs / "results", name, 38.6, SETS, "20270101_000000")
        return types.SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(library.subprocess, "run", run)
    (logs / "broken.yml").write_text("name: [")
    files = [*FILES, failing, logs / "broken.yml", logs / "gone.yml", incomplete]
    assert _main("-opt", *files) == 1
    assert ran == [failing.stem, incomplete.stem]
    failures = (logs / "benchmark" / "failures.txt").read_text()
    assert "no weights" in failures and "broken.yml is not valid YAML" in failures
    assert f"there is no file {logs / 'gone.yml'}" in failures
    assert {f.name for f in (logs / "benchmark").glob("*.md")} == {"lightSRx2.md", "SRx2.md"}
    ran.clear()
    assert _main("-opt", *FILES, incomplete) == 0
    assert ran == []
    assert (logs / "benchmark" / "failures.txt").read_text() == ""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """``go(*arguments)``: a benchmark of one option file; returns how many tests ran. Logs are written as a test would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])
    for folder in ("HR", "LR"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"first picture")
    (tmp_path / "w.pth").write_bytes(b"weights")
    section = {"name": "A", "type": "RestorationPairDataset", "dataroot_gt": "HR", "dataroot_lq": "LR"}
    metric = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}
    opt = {"name": "test_X_SRx2", "scale": 2, "network_g": {"type": "MambaIR"}, "path": {"pretrain_network_g": "w.pth"}}
    opt |= {"datasets": {"test_1": section}, "val": {"metrics": {"psnr": metric}}}
    runs = []

    def run(command, **options):
        file = command[command.index("-opt") + 1]
        made = read_options(file)
        if "--force_yml" in command:
            assert not apply(made, command[command.index("--force_yml") + 1 :])
        # as parse_options leaves them
        for part in made["datasets"].values():
            part |= {"phase": "test", "scale": 2}
        made["path"] |= {"results_root": "x"}
        runs.append(file)
        log = Path("results", opt["name"], f"test_{opt['name']}_{len(runs)}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        figures = "".join(f"\t # {name}: {30 + len(runs)}.0\n" for name in made["val"]["metrics"])
        record = made_from.log_line(made_from.of_test(made))
        log.write_text(f"2026-01-01 INFO: {record}\n2026-01-01 INFO: Validation A\n{figures}")
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(library.subprocess, "run", run)
    monkeypatch.setattr(library, "build_network", lambda network: torch.nn.Conv2d(1, 1, 1))

    def go(*arguments, code=0):
        (tmp_path / "a.yml").write_text(yaml.safe_dump(opt))
        runs.clear()
        assert _main("-opt", "a.yml", *arguments) == code
        return len(runs)

    go.opt = opt
    return go


def _same_size(path, content):
    assert len(content) == Path(path).stat().st_size
    before = Path(path).stat().st_mtime_ns
    Path(path).write_bytes(content)
    os.utime(path, ns=(before, before))


CHANGES = {
    "other weights": lambda opt: _same_size("w.pth", b"WEIGHTS"),
    "other set A": lambda opt: _same_size("LR/a.png", b"other picture"),
    "other set A ": lambda opt: Path("HR/b.png").write_bytes(b"more"),
    "other set A  ": lambda opt: opt["datasets"]["test_1"].update(grey="luma"),
    "other metric psnr": lambda opt: opt["val"]["metrics"]["psnr"].update(crop_border=10),
    "other metric psnr ": lambda opt: opt["val"]["metrics"]["psnr"].update(test_y_channel=False),
    "other network": lambda opt: opt["network_g"].update(embed_dim=60),
    "other settings": lambda opt: opt.update(tile=False),
    "other settings ": lambda opt: opt["path"].update(param_key_g="params_ema"),
    "other seed": lambda opt: opt.update(manual_seed=3),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_figures_of_other_inputs_are_not_repeated(small, caplog, reason):
    """Whatever decides about a figure makes the file run again, once, and the reason is said; the rest does not."""
    assert small() == 1
    assert small() == 0
    CHANGES[reason](small.opt)
    with caplog.at_level("INFO"):
        assert small("--read-only", code=1) == 0
        assert small() == 1
    assert f"a.yml: running again: {reason.strip()}\n" in caplog.text
    assert small() == 0


def test_what_does_not_decide_about_figures(small):
    """Another place of the same files, another number of workers, another order of keys."""
    assert small() == 1
    for folder in ("HR", "LR"):
        Path(folder).rename(f"moved{folder}")
    Path("w.pth").rename("v.pth")
    section = small.opt["datasets"]["test_1"]
    section |= {
        "dataroot_gt": "movedHR",
        "dataroot_lq": "movedLR",
        "num_worker_per_gpu": 3,
        "io_backend": {"type": "disk"},
    }
    small.opt["path"]["pretrain_network_g"] = "v.pth"
    small.opt["val"] |= {"save_img": True}
    assert small() == 0


def test_figures_that_the_file_no_longer_asks_for(small, tmp_path):
    """A log may hold more sets and metrics, of which nothing is known any more."""
    small.opt["datasets"]["test_2"] = small.opt["datasets"]["test_1"] | {"name": "B"}
    small.opt["val"]["metrics"]["ssim"] = {"type": "calculate_ssim", "crop_border": 2}
    log = tmp_path / "results" / small.opt["name"] / f"test_{small.opt['name']}_9.log"
    log.parent.mkdir(parents=True)
    figures = "\t # psnr: 30.0\n\t # ssim: 0.9\n"
    record = made_from.log_line(made_from.of_test(small.opt))
    log.write_text(f"INFO: {record}\nINFO: Validation A\n{figures}INFO: Validation B\n{figures}")
    assert small() == 0
    del small.opt["datasets"]["test_2"], small.opt["val"]["metrics"]["ssim"]
    assert small() == 0
    table = (tmp_path / "benchmark" / "SRx2.csv").read_text()
    assert ",A,psnr,30.00," in table and ",B," not in table and "ssim" not in table


def test_code_and_command_line_decide(small, caplog, monkeypatch):
    assert small() == 1
    assert small("--rerun") == 1
    assert small("--force_yml", "val:metrics:psnr:crop_border=4") == 1
    assert small("--force_yml", "val:metrics:psnr:crop_border=4") == 0
    assert small() == 1
    assert small("--metrics", "st_lpips") == 1
    assert small("--metrics", "st_lpips") == small() == 0  # the file's own metrics are among them
    monkeypatch.setattr(made_from, "code", lambda: "other")
    with caplog.at_level("INFO"):
        assert small() == 1
    assert "running again: other code" in caplog.text


def test_logs_that_do_not_say_what_they_are_of(small, caplog):
    """Of older versions: not believed; with --read-only taken with a warning. Inputs that are gone change nothing."""
    assert small() == 1
    log = latest_log(Path("results"), small.opt["name"])
    log.write_text("\n".join(line for line in log.read_text().splitlines() if "Made from" not in line))
    with caplog.at_level("INFO"):
        assert small("--read-only") == 0
        assert "cannot be checked: it does not say what it was made from" in caplog.text
        assert small() == 1
    assert "running again: it does not say what it was made from" in caplog.text
    Path("w.pth").unlink()
    assert small() == 0
    assert "weights is gone; the figures of its log are kept" in caplog.text


def test_read_only_runs_nothing(logs, monkeypatch):
    """What is not there is a failure, not a run."""
    monkeypatch.setattr(library.subprocess, "run", lambda *a, **k: pytest.fail("must not run"))
    assert _main("-opt", FILES[0], OPTIONS / "test_MambaIR_lightSRx4.yml", "--read-only") == 1
    assert "no log with results" in (logs / "benchmark" / "failures.txt").read_text()


def test_extra_metrics_reach_the_test(logs, monkeypatch):
    """--metrics writes an option file that names them, with the task's border."""
    seen = {}

    def run(command, **options):
        seen.update(yaml.safe_load(Path(command[command.index("-opt") + 1]).read_text())["val"]["metrics"])
        return types.SimpleNamespace(returncode=1, stdout="", stderr="stop here")

    monkeypatch.setattr(library.subprocess, "run", run)
    assert _main("-opt", FILES[0], "--metrics", "lpips", "st_lpips") == 1
    assert seen["lpips"] == {"type": "calculate_lpips", "crop_border": 2}
    assert seen.keys() == {"psnr", "ssim", "lpips", "st_lpips"}


def test_command_line(capsys):
    """--help works without data."""
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    assert "--read-only" in capsys.readouterr().out


def test_page_of_details_and_errors(logs):
    """Two of three tests left images; a column for each ground truth, a row for each test."""
    rng = np.random.default_rng(0)
    truth = np.full((120, 150, 3), 90, np.uint8)
    truth[10:110, 40:140] = rng.integers(0, 255, (100, 100, 3))
    opt = read_options(FILES[0])
    section = next(iter(opt["datasets"].values()))
    write_image(Path(section["dataroot_gt"]) / "baby.png", truth)
    for file, change in zip(FILES[:2], (0, 16), strict=True):
        name = f"babyx2_{file.stem}.png" if change else f"baby_{file.stem}.png"
        path = logs / "results" / file.stem / "visualization" / section["name"] / name
        write_image(path, truth + (truth < 200).astype(np.uint8) * change)
    assert benchmark.main(["-opt", *map(str, FILES), "--read-only", "--page"]) == 0
    text = (logs / "benchmark" / "page.html").read_text(encoding="utf-8")
    assert text.count("<tr>") == 1 + 1 + 3 and text.count("data:image/png") == 1 + 2 + 2
    assert "equal" in text and "no image" in text and "24.0" not in text.split("equal")[0]
    assert f"{section['name']}: baby" in text and "https://" not in text
    shown = most_structure(truth)
    assert 10 <= shown.top <= 14 and 40 <= shown.left <= 44 and (shown.height, shown.width) == (96, 96)
    assert (heat_map(truth, truth) == heat_map(truth, truth)[0, 0]).all()
    assert heat_map(truth, 255 - truth).std() > heat_map(truth, truth).std()
