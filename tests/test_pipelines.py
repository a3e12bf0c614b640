"""The shipped option files run: through this package's entry points and through BasicSR's own, unmodified scripts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import basicsr
import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from devices import python_path

ROOT = Path(__file__).resolve().parents[1]
SMALL_NET = {"depths": [1], "embed_dim": 30, "d_state": 2}
TRAIN_FILE = ROOT / "options" / "train_QMambaIR_lightSRx2_w2a2.yml"
TEST_FILE = ROOT / "options" / "test_QMambaIR_lightSRx2_w2a2.yml"
SMALL = [f"network_g:{key}={value}".replace(" ", "") for key, value in SMALL_NET.items()] + ["num_gpu=0"]
TWO_STEPS = [
    *SMALL,
    "datasets:train:gt_size=16",
    "datasets:train:batch_size_per_gpu=1",
    "datasets:train:num_worker_per_gpu=0",
    "quant_train:calibration:batches=1",
    "train:total_iter=2",
    "val:val_freq=2",
    "logger:print_freq=1",
]


def make_data(root: Path) -> None:
    """Two noise images for every set the files name, and full-precision weights of the small network."""
    rng = np.random.default_rng(0)
    for name in ("DF2K", "Set5", "Set14", "B100", "Urban100", "Manga109"):
        for folder, side, stem in (("HR", 32, "{}"), ("LR_bicubic/X2", 16, "{}x2")):
            target = root / "datasets" / name / folder
            target.mkdir(parents=True)
            for image in ("a", "b"):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                cv2.imwrite(str(target / f"{stem.format(image)}.png"), pixels)
    torch.manual_seed(0)
    net = build_network(
        {"type": "MambaIR", "upscale": 2, "mlp_ratio": 1.2, "upsampler": "pixelshuffledirect", **SMALL_NET}
    )
    weights = root / "experiments" / "pretrained_models" / "MambaIR_lightSRx2.pth"
    weights.parent.mkdir(parents=True)
    torch.save({"params": net.state_dict()}, weights)


def run(command: list[str], cwd: Path, forced: list[str] = ()) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    forced = ["--force_yml", *forced] if forced else []
    return subprocess.run([*command, *forced], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def command_of_the_readme(script: str) -> list[str]:
    """The line that runs a BasicSR checkout's script, as the README prints it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = re.search(r'^    python (-c "import qmambair_basicsr\.compat, .*") -opt FILE$', readme, re.MULTILINE).group(
        1
    )
    return [sys.executable, *shlex.split(line.replace("basicsr/train.py", f"basicsr/{script}"))]


@pytest.fixture(scope="module", params=["this package", "BasicSR's own scripts"])
def trained(request, tmp_path_factory):
    """A working folder after two training steps; for the own scripts it holds unmodified copies of them."""
    root = tmp_path_factory.mktemp("work")
    make_data(root)
    if request.param == "this package":
        commands = {name: [sys.executable, "-m", f"qmambair_basicsr.{name}"] for name in ("train", "test")}
    else:
        (root / "basicsr").mkdir()
        for name in ("train", "test"):
            shutil.copyfile(Path(basicsr.__file__).parent / f"{name}.py", root / "basicsr" / f"{name}.py")
        commands = {name: command_of_the_readme(f"{name}.py") for name in ("train", "test")}
    return root, commands, run([*commands["train"], "-opt", str(TRAIN_FILE)], root, TWO_STEPS)


def test_two_training_steps(trained):
    root, _, done = trained
    assert done.returncode == 0, done.stderr[-3000:]
    models = root / "experiments" / TRAIN_FILE.stem / "models"
    before = torch.load(root / "experiments/pretrained_models/MambaIR_lightSRx2.pth", weights_only=True)["params"]
    after = torch.load(models / "net_g_latest.pth", weights_only=True)["params"]
    assert before.keys() < after.keys()
    assert not torch.equal(before["conv_first.weight"], after["conv_first.weight"])
    assert re.search(r"iter: +2,.*l_pix: \d", done.stderr), "the loop reports its progress"
    assert re.search(r"# psnr: \d+\.\d+", done.stderr), "validation reports PSNR"


def test_test_file_tests_what_training_left(trained):
    root, commands, _ = trained
    done = run([*commands["test"], "-opt", str(TEST_FILE)], root, SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("# psnr:") == done.stderr.count("# ssim:") == 5
    images = root / "results" / TEST_FILE.stem / "visualization" / "Urban100"
    assert sorted(p.name for p in images.iterdir()) == [f"{i}_{TEST_FILE.stem}.png" for i in ("ax2", "bx2")]


def test_missing_folder_stops_with_one_message_before_anything_is_made(trained):
    root, commands, _ = trained
    before = sorted((root / "experiments").iterdir())
    done = run(
        [*commands["train"], "-opt", str(TRAIN_FILE)], root, [*TWO_STEPS, "datasets:train:dataroot_gt=datasets/gone/HR"]
    )
    assert done.returncode != 0
    assert 'datasets.train.dataroot_gt: folder datasets/gone/HR does not exist; README, section "Data"' in done.stderr
    assert sorted((root / "experiments").iterdir()) == before
    if "qmambair_basicsr.train" in commands["train"]:
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path):
    done = run([sys.executable, "-m", "qmambair_basicsr.test", "-opt", "gone.yml", "--debug"], tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr and "there is no file gone.yml" in done.stderr
