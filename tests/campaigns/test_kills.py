"""SIGKILL at random moments of a training run: nothing that was saved is lost, and the end is that of an undisturbed run.

More than the suite's share: ``QMAMBAIR_KILLS=100 pytest tests/campaigns/test_kills.py``. ``QMAMBAIR_CAMPAIGN_SEED``
chooses other moments.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from qmambair_basicsr import checkpoints

KILLS = int(os.environ.get("QMAMBAIR_KILLS", "3"))
SEED = int(os.environ.get("QMAMBAIR_CAMPAIGN_SEED", "0"))
PSNR = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: this system has none")


def start(loop, options: dict) -> int:
    """Start (or go on with) a run in a process of its own that has everything imported; its process id."""
    command = loop.command(options, "--auto_resume")
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()  # a session of its own, by which its workers are found
        log = os.open(loop.folder / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        os.chdir(loop.folder)
        sys.argv = command[command.index("-m") + 1 :]
        torch.set_num_threads(1)
        from basicsr.train import train_pipeline

        train_pipeline(str(loop.folder))
        code = 0
    except BaseException as err:
        print(f"{type(err).__name__}: {err}")
    finally:
        sys.stdout.flush()
        os._exit(code)


def orphans(session: int) -> list[str]:
    """Command lines of the processes of a session that still live."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


def loadable(folder: Path) -> set[str]:
    """Names of all files of an experiment that hold weights or a training state; every one of them loads."""
    names = set()
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".pth":
            assert checkpoints.read_file(path)["params"]
        elif path.suffix == ".state":
            assert checkpoints.load_training_state(path)["iter"] == int(path.stem)
        else:
            continue
        names.add(path.name)
    return names


def results(folder: Path) -> dict:
    """Weights and training state at the end."""
    state = checkpoints.load_training_state(folder / "training_states" / "8.state")
    return {"weights": checkpoints.read_file(folder / "models" / "net_g_8.pth"), "state": state}


def assert_same(left, right, where: str = "") -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert left == right, where


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="looks for workers in /proc, which this system has not"
)
def test_killed_at_random_moments(loop, qat_options):
    options = {**qat_options, "logger": {**qat_options["logger"], "save_checkpoint_freq": 2}}
    data = options["datasets"]
    data["val"] = {key: data["train"][key] for key in ("name", "type", "dataroot_gt", "dataroot_lq", "io_backend")}
    options["val"] = {"val_freq": 4, "save_img": False, "metrics": {"psnr": PSNR}}
    began = time.monotonic()
    pid = start(loop, {**copy.deepcopy(options), "name": "whole"})
    assert os.waitpid(pid, 0)[1] == 0, (loop.folder / "output.log").read_text()[-3000:]
    duration = time.monotonic() - began
    expected = results(loop.folder / "experiments" / "whole")

    draw = random.Random(SEED)
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        name = f"run{runs}"
        folder = loop.folder / "experiments" / name
        saved: set[str] = set()
        while True:
            pid = start(loop, {**copy.deepcopy(options), "name": name})
            if kills < KILLS:
                # early moments and late ones, the second half more often: that is where files are written
                deadline = time.monotonic() + duration * draw.uniform(0.05, 1.05) ** 0.7
                while time.monotonic() < deadline and not (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    time.sleep(0.005)
                if not ended[0]:
                    os.kill(pid, signal.SIGKILL)
                    ended = os.waitpid(pid, 0)
            else:
                ended = os.waitpid(pid, 0)
            output = (loop.folder / "output.log").read_text()
            alive = time.monotonic() + 10
            while (left := orphans(pid)) and time.monotonic() < alive:
                time.sleep(0.05)
            assert not left, f"workers that live 10 s after their run was killed: {left}"
            # without a training state a run begins anew, and BasicSR moves the folder of the earlier one aside
            folders = [folder, *folder.parent.glob(f"{name}_archived_*")]
            now = set().union(*(loadable(each) for each in folders if each.exists()))
            assert saved <= now, f"lost: {saved - now}"
            saved = now
            if os.WIFEXITED(ended[1]):
                assert os.WEXITSTATUS(ended[1]) == 0, output[-3000:]
                break
            kills += 1
        assert_same(results(folder), expected, name)
        assert not list(folder.rglob(".*")), "half-written files are left"
