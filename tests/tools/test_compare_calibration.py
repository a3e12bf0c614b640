"""The calibration comparison runs on the shipped network and shows what statistics per sample are for."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from qmambair_basicsr.studies import calibration_study as study
from qmambair_basicsr.tools import compare_calibration as tool

ROOT = Path(__file__).resolve().parents[2]
OPTION = ROOT / "options" / "train_QMambaIR_tinySRx2_w4a4.yml"


@pytest.fixture
def photographs(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(2):
        coarse = generator.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (40, 36), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    return tmp_path


def test_table(photographs, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    kept = {name: study.SETTINGS[name] for name in ("stable", "official")}
    monkeypatch.setattr(study, "SETTINGS", kept)
    arguments = ["-opt", str(OPTION), "--truth", str(photographs), "--calibration", str(photographs)]
    assert tool.main([*arguments, "--bits", "4", "--middle", "32", "--count", "2", "--markdown"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| 4")]
    assert [row[2].strip() for row in rows] == list(kept)
    changes = [float(row[5]) for row in rows]
    assert changes[0] < 0.5 < changes[1]
    assert all(10 < float(row[3]) < 60 for row in rows)


def test_pairs_and_psnr(photographs):
    low, high = study.load_pairs(photographs, 32, 2, 1)
    assert low.shape == (1, 3, 16, 16)
    assert high.shape == (1, 3, 32, 32)
    assert study.mean_psnr(high, high, 2) == float("inf")
    noisy = high + 0.05 * torch.randn_like(high)
    assert study.mean_psnr(noisy, high, 2) < 40
    with pytest.raises(ValueError, match="at least 400 pixels"):
        study.load_pairs(photographs, 400, 2, 1)


def test_mistakes_are_one_line(photographs, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    folders = ["--truth", str(photographs), "--calibration", str(photographs), "--middle", "32"]
    for arguments, message in (
        (["-opt", "options/test_MambaIR_tinySRx2.yml"], "network_g has no quant block"),
        (["-opt", str(OPTION), "--checkpoint", "none.pth"], "checkpoint none.pth does not exist"),
    ):
        assert tool.main([*arguments, *folders]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
