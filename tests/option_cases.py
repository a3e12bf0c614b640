"""A small working folder: images, and a training and a test file that have no mistake."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest

PLUGIN = "plugin: !!python/name:qmambair_basicsr.__version__\n"
PAIRS = {
    "type": "RestorationPairDataset",
    "dataroot_gt": "HR",
    "dataroot_lq": "LR",
    "filename_tmpl": "{}x2",
    "io_backend": {"type": "disk"},
}
COMMON = {
    "name": "small",
    "model_type": "MambaIRModel",
    "scale": 2,
    "num_gpu": 0,
    "manual_seed": 10,
    "network_g": {
        "type": "MambaIR",
        "upscale": 2,
        "depths": [1],
        "embed_dim": 32,
        "d_state": 4,
        "mlp_ratio": 1.2,
        "upsampler": "pixelshuffledirect",
    },
    "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
}
METRICS = {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}}
TRAIN = {
    **COMMON,
    "datasets": {
        "train": {
            "name": "Small",
            **PAIRS,
            "gt_size": 32,
            "use_hflip": True,
            "use_rot": True,
            "num_worker_per_gpu": 0,
            "batch_size_per_gpu": 2,
            "dataset_enlarge_ratio": 10,
            "prefetch_mode": None,
        },
        "val": {"name": "SmallVal", **PAIRS},
    },
    "train": {
        "ema_decay": 0.9,
        "optim_g": {"type": "Adam", "lr": 0.0005, "weight_decay": 0.0, "betas": [0.9, 0.99]},
        "scheduler": {"type": "MultiStepLR", "milestones": [20], "gamma": 0.5},
        "total_iter": 4,
        "warmup_iter": -1,
        "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
    },
    "val": {"val_freq": 4, "save_img": False, "pbar": False, "metrics": METRICS},
    "logger": {
        "print_freq": 1,
        "save_checkpoint_freq": 2,
        "use_tb_logger": False,
        "wandb": {"project": None, "resume_id": None},
    },
    "dist_params": {"backend": "nccl", "port": 29500},
}
TEST = {
    **COMMON,
    "datasets": {"test_1": {"name": "Small", **PAIRS}},
    "val": {"save_img": True, "suffix": None, "pbar": False, "metrics": METRICS},
}


@pytest.fixture(scope="session")
def small_images(tmp_path_factory):
    """A folder with four pairs, 48 x 48 and 24 x 24 pixels."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for folder, side, name in (("HR", 48, "p{}.png"), ("LR", 24, "p{}x2.png")):
        (root / folder).mkdir()
        for index in range(4):
            image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            assert cv2.imwrite(str(root / folder / name.format(index)), image)
    return root


@pytest.fixture
def work(small_images, tmp_path, monkeypatch):
    """The working folder of a run; the images are linked into it."""
    for name in ("HR", "LR"):
        (tmp_path / name).symlink_to(small_images / name, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train_options():
    """Options of a training run, to be changed."""
    return copy.deepcopy(TRAIN)


@pytest.fixture
def test_options():
    """Options of a test, to be changed."""
    return copy.deepcopy(TEST)
