"""A tiny data set and option file, and runs of the stock loop in processes of their own."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import basicsr.train
import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.models import build_model
from devices import python_path

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Ten pairs of 24 x 24 (lq) and 48 x 48 (gt) smooth random images."""
    random = np.random.RandomState(0)
    for folder in ("gt", "lq"):
        (tmp_path / folder).mkdir()
    for index in range(10):
        coarse = random.randint(0, 256, (8, 8, 3), dtype=np.uint8)
        gt = cv2.resize(coarse, (48, 48), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / "gt" / f"{index}.png"), gt)
        cv2.imwrite(str(tmp_path / "lq" / f"{index}.png"), cv2.resize(gt, (24, 24), interpolation=cv2.INTER_AREA))
    return tmp_path


@pytest.fixture
def train_options(pairs) -> dict:
    """Options of a run that takes about a second: MambaIR with much DropPath, average, two workers, no validation."""
    data = {
        "name": "pairs",
        "type": "PairedImageDataset",
        "dataroot_gt": str(pairs / "gt"),
        "dataroot_lq": str(pairs / "lq"),
        "io_backend": {"type": "disk"},
    }
    return {
        "name": "run",
        "model_type": "MambaIRModel",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 3,
        "datasets": {
            "train": {
                **data,
                "gt_size": 24,
                "use_hflip": True,
                "use_rot": True,
                "num_worker_per_gpu": 2,
                "batch_size_per_gpu": 2,
            },
        },
        "network_g": {
            "type": "MambaIR",
            "upscale": 2,
            "embed_dim": 30,
            "depths": [2],
            "d_state": 2,
            "drop_path_rate": 0.5,
            "mlp_ratio": 1.2,
            "upsampler": "pixelshuffledirect",
        },
        "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
        "train": {
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]},
            "scheduler": {"type": "MultiStepLR", "milestones": [5], "gamma": 0.5},
            "total_iter": 8,
            "warmup_iter": -1,
            "pixel_opt": {"type": "L1Loss"},
        },
        "logger": {"print_freq": 1, "save_checkpoint_freq": 4, "use_tb_logger": False},
        "dist_params": {"backend": "nccl", "port": 29500},
    }


@pytest.fixture
def fp_checkpoint(train_options, tmp_path) -> Path:
    """Random full-precision weights for the network of ``train_options``."""
    path = tmp_path / "fp.pth"
    torch.save({"params": build_network(train_options["network_g"]).state_dict()}, path)
    return path


@pytest.fixture
def qat_options(train_options, fp_checkpoint) -> dict:
    """``train_options`` for ``QATModel`` with the quantizers of Q-MambaIR at two bits."""
    quant = {
        "weight": {"type": "RFA", "bits": 2},
        "act": {"type": "LSQOffset", "bits": 2},
        "scan": {"type": "DLS", "bits": 2},
    }
    options = copy.deepcopy(train_options)
    options["model_type"] = "QATModel"
    options["network_g"] |= {"type": "QMambaIR", "quant": quant}
    options["path"]["pretrain_network_g"] = str(fp_checkpoint)
    options["quant_train"] = {"calibration": {"batches": 2}, "lr_factor": 0.5, "health_freq": 0}
    return options


@pytest.fixture
def parsed(tmp_path):
    """Function: options as ``parse_options`` leaves them, for building a model without the loop."""

    def parse(options: dict, is_train: bool = True) -> dict:
        opt = copy.deepcopy(options)
        opt |= {"dist": False, "rank": 0, "world_size": 1, "is_train": is_train, "root_path": str(tmp_path)}
        opt["datasets"]["train"] |= {"phase": "train", "scale": opt["scale"]}
        for folder in ("models", "training_states"):
            path = tmp_path / "experiments" / opt["name"] / folder
            path.mkdir(parents=True, exist_ok=True)
            opt["path"][folder] = str(path)
        return opt

    return parse


class LoopRunner:
    """Runs the stock loop in a folder: in this process, or as ``python -m qmambair_basicsr.train`` where that counts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        threads = str(torch.get_num_threads())  # as in this process: sums over threads depend on how many there are
        self.environment = {
            **os.environ,
            "PYTHONPATH": python_path(),
            "OMP_NUM_THREADS": threads,
            "CUDA_VISIBLE_DEVICES": "",
        }

    def models(self, name: str = "run") -> Path:
        """Folder of a run's networks."""
        return self.folder / "experiments" / name / "models"

    def command(self, options: dict, *arguments: str) -> list[str]:
        """The command line that trains with ``options``, which are written to a file."""
        path = self.folder / f"{options['name']}.yml"
        path.write_text(yaml.safe_dump(options, sort_keys=False))
        return [sys.executable, "-W", "ignore", "-m", "qmambair_basicsr.train", "-opt", str(path), *arguments]

    def here(self, options: dict, *arguments: str) -> None:
        """Run to the end in this process, which saves the seconds that imports take."""
        command = self.command(options, *arguments)
        with self.monkeypatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", command[command.index("-m") + 1 :])
            basicsr.train.train_pipeline(str(self.folder))

    def execute(self, command: list[str], fails: bool = False) -> str:
        """Run a command to its end; the output of both streams."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert (done.returncode != 0) == fails, done.stdout[-4000:]
        return done.stdout

    def run_until(self, options: dict, text: str, *arguments: str) -> None:
        """Run until a line of the output holds ``text``, then kill -9 the process and its workers."""
        process = subprocess.Popen(
            self.command(options, *arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 180
        seen = []
        for line in process.stdout:
            seen.append(line)
            if text in line or time.monotonic() > deadline:
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert text in seen[-1], "".join(seen)[-4000:]


@pytest.fixture
def loop(pairs, monkeypatch) -> LoopRunner:
    return LoopRunner(pairs, monkeypatch)


def built(parsed, options, **train):
    """A model of the options, with other entries under ``train:``."""
    options = copy.deepcopy(options)
    options["train"] |= train
    torch.manual_seed(0)
    return build_model(parsed(options))


def batch(iteration: int) -> dict:
    """Random images, which the iteration's number decides about."""
    generator = torch.Generator().manual_seed(iteration)
    return {"lq": torch.rand(2, 3, 12, 12, generator=generator), "gt": torch.rand(2, 3, 24, 24, generator=generator)}


def run(model, iterations, change=None) -> list[dict]:
    """Training steps outside the loop; the losses of each. ``change(model, iteration)`` runs in front of one."""
    logs = []
    for iteration in iterations:
        if change is not None:
            change(model, iteration)
        model.update_learning_rate(iteration, warmup_iter=model.opt["train"].get("warmup_iter", -1))
        model.feed_data(batch(iteration))
        model.optimize_parameters(iteration)
        logs.append(dict(model.get_current_log()))
    return logs


def equal_states(one, other) -> bool:
    """Whether networks, averages and moments of two models are the same bits."""
    states = [
        [*m.net_g.state_dict().values(), *(m.net_g_ema.state_dict().values() if m.ema_decay else ())]
        for m in (one, other)
    ]
    for m, state in zip((one, other), states, strict=True):
        for moments in m.optimizer_g.state_dict()["state"].values():
            state += [moments[key] for key in ("step", "exp_avg", "exp_avg_sq")]
    return all(torch.equal(a, b) for a, b in zip(*states, strict=True))
