"""The demo: every step runs and its table is measured, on fewer photographs and iterations."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from rich.console import Console

from qmambair_basicsr.data.image_files import read_image
from qmambair_basicsr.studies import demo, demo_photos, demo_report

SMALL = (
    ("PhotosTest", "astronaut", 96, 1),
    ("PhotosTest", "chelsea", 96, 1),
    ("Photos", "camera", 96, 2),
)


def test_squares_keep_the_structure_and_the_order():
    img = np.zeros((8, 12, 3), np.uint8)
    img[::2, 4:8], img[1, 8:12] = 255, 255  # the middle column of squares is busiest, then the right one
    top, right, bottom = demo_photos.squares(img, 4, 3)
    assert np.array_equal(top, img[:4, 4:8]) and np.array_equal(right, img[:4, 8:12])
    assert np.array_equal(bottom, img[4:, 4:8])
    (centre,) = demo_photos.squares(img, 4, 1)
    assert np.array_equal(centre, img[2:6, 4:8])


def test_photographs_ship_with_scikit_image_and_sets_do_not_overlap():
    assert {name for name, *_ in demo_photos.PHOTOS} == {"Photos", "PhotosTest"}
    loaders = [loader for _, loader, *_ in demo_photos.PHOTOS]
    assert len(set(loaders)) == len(loaders)


def test_size_counts_quantized_parameters_at_their_bits():
    full = build_network(demo.shipped("test_MambaIR_demoSRx2")["network_g"])
    quantized = build_network(demo.shipped("test_QMambaIR_demoSRx2_w2a2")["network_g"])
    parameters = sum(p.numel() for p in full.parameters())
    assert demo_report.stored_kib(full) == pytest.approx(parameters * 4 / 1024)
    assert demo_report.stored_kib(full) / 16 < demo_report.stored_kib(quantized) < demo_report.stored_kib(full) / 4


def test_all_steps(tmp_path, monkeypatch):
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    net = build_network(demo.shipped("test_MambaIR_demoSRx2")["network_g"])
    torch.save({"params": net.state_dict()}, weights)
    monkeypatch.setattr(demo, "WEIGHTS", weights)
    monkeypatch.setattr(demo_photos, "PHOTOS", SMALL)
    monkeypatch.setenv("PYTHONPATH", str(demo.OPTIONS.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shown = io.StringIO()
    monkeypatch.setattr(demo, "console", Console(file=shown, width=100))

    results = demo.demo(tmp_path, bits=2, iterations=10)

    assert [r.name for r in results] == ["bicubic", "full precision", "calibrated only", "after training"]
    assert results[0].psnr > 25, "bicubic of a photograph"
    assert results[-1].psnr > results[-2].psnr, "training an untrained network helps"
    assert results[2].kib == results[3].kib < results[1].kib
    for text in ("1/5", "10 iterations", "full precision", "training gained", "PSNR"):
        assert text in shown.getvalue()
    assert read_image(tmp_path / "side_by_side.png").shape[1] > 5 * 96
    assert len(list((tmp_path / "restored").glob("*.png"))) == 2
    assert (tmp_path / "restored" / "page.html").read_text(encoding="utf-8").count("PSNR") == 2
    assert read_image(tmp_path / "before_after.jpg").shape[:2] == (
        4 * 72,
        2 * 4 * 72 + 4,
    )  # one of the two is not there


def test_failed_run_shows_the_end_of_its_output(tmp_path):
    with pytest.raises(demo.DemoError, match="boom"):
        demo.run("step", tmp_path, ["-c", "raise SystemExit('boom')"], "x", 1)
