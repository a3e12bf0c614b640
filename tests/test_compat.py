"""Every work-around of compat.py: the symptom appears without it, is gone with it, and it stays out of the way."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import qmambair_basicsr
from qmambair_basicsr import compat
from qmambair_basicsr.checkpoints import CheckpointError, UnsafeCheckpointError

COMPAT = Path(compat.__file__)


def run_alone(code: str, path: Path) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter in which ``path`` is searched first; ``compat`` is loaded, not applied."""
    preamble = f"""
    import sys, types
    sys.path.insert(0, {str(path)!r})
    sys.modules["qmambair_basicsr"] = package = types.ModuleType("qmambair_basicsr")
    package.__path__ = [{str(COMPAT.parent)!r}]  # the package without what importing it does
    from qmambair_basicsr import compat
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(preamble) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def broken_torchvision(tmp_path):
    """A torchvision that, like a CUDA build beside a CPU torch, registers shapes for an operator nobody defined."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import torch\n"
        "@torch.library.register_fake('torchvision::nms')\n"
        "def _nms(dets, scores, iou_threshold):\n"
        "    return dets\n"
    )
    return tmp_path


def test_torchvision_built_for_cuda_imports_beside_a_cpu_torch(broken_torchvision):
    without = run_alone("import torchvision", broken_torchvision)
    assert "torchvision::nms does not exist" in without.stderr
    done = run_alone(
        """
        assert compat.declare_torchvision_ops() is True
        import torch, torchvision
        assert torchvision.__file__.startswith(sys.path[0])
        torch.ops.torchvision.nms, torch.ops.torchvision.qnms
        assert compat.declare_torchvision_ops() is False
        """,
        broken_torchvision,
    )
    assert done.returncode == 0, done.stderr


def test_other_failures_of_torchvision_are_not_hidden(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('something else')\n")
    done = run_alone("compat.declare_torchvision_ops()", tmp_path)
    assert done.returncode != 0 and "something else" in done.stderr


def hide(monkeypatch, *names):
    """Make modules look as if they were not installed; whatever is put in their place is undone afterwards."""
    find_spec = importlib.util.find_spec
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))  # remembered, so that it comes back
        del sys.modules[name]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: None if name in names else find_spec(name, package)
    )


def test_functional_tensor_is_provided_only_where_it_is_gone(monkeypatch):
    name = "torchvision.transforms.functional_tensor"
    hide(monkeypatch, name)
    assert compat.alias_functional_tensor() is True
    from torchvision.transforms.functional_tensor import rgb_to_grayscale

    grey = rgb_to_grayscale(torch.tensor([1.0, 1.0, 1.0]).view(3, 1, 1))
    torch.testing.assert_close(grey, torch.ones(1, 1, 1), atol=1e-3, rtol=0)
    assert compat.alias_functional_tensor() is False


def test_loose_version_is_provided_only_where_distutils_is_gone(monkeypatch):
    hide(monkeypatch, "distutils", "distutils.version")
    assert compat.provide_loose_version() is True
    from distutils.version import LooseVersion

    assert LooseVersion("0.28.0+cpu") >= LooseVersion("0.9.0")
    assert not LooseVersion("0.8.2") >= LooseVersion("0.9.0")
    assert compat.provide_loose_version() is False


def test_scipy_filters_are_provided_only_where_they_are_gone(monkeypatch):
    from scipy import ndimage

    monkeypatch.setattr(ndimage, "filters", None, raising=False)
    hide(monkeypatch, "scipy.ndimage.filters")
    assert compat.alias_scipy_filters() is True
    from scipy.ndimage.filters import convolve

    assert convolve is ndimage.convolve
    assert compat.alias_scipy_filters() is False


def test_jpeg_noise_of_basicsr_runs(monkeypatch):
    from basicsr.data import degradations

    wrapped = degradations.add_jpg_compression
    assert wrapped.__wrapped__.__module__ == "basicsr.data.degradations"
    assert compat.whole_jpeg_quality() is False
    seen = []
    monkeypatch.setattr(degradations, "add_jpg_compression", lambda img, quality=90: seen.append(quality) or img)
    assert compat.whole_jpeg_quality() is True
    img = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    degradations.random_add_jpg_compression(img, (30, 95))
    assert isinstance(seen[0], int) and 30 <= seen[0] <= 95
    monkeypatch.setattr(degradations, "add_jpg_compression", wrapped)
    assert degradations.random_add_jpg_compression(img, (30, 95)).shape == img.shape


def test_fid_runs_with_a_matrix_root_that_knows_no_disp(monkeypatch):
    from basicsr.metrics import fid
    from scipy import linalg

    stock = linalg.sqrtm
    monkeypatch.setattr(fid, "linalg", linalg)
    monkeypatch.setattr(linalg, "sqrtm", lambda matrix: stock(matrix))
    cov = np.diag([1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="disp"):
        fid.calculate_fid(np.zeros(3), cov, np.ones(3), cov)
    assert compat.sqrtm_without_disp() is True
    assert fid.calculate_fid(np.zeros(3), cov, np.ones(3), cov) == pytest.approx(3.0)
    assert compat.sqrtm_without_disp() is False


def test_quality_metric_of_basicsr_runs_on_this_numpy_and_scipy():
    """NIQE reaches the corners of BasicSR that old numpy aliases would break; its value is a positive number."""
    from basicsr.metrics import calculate_niqe

    img = np.random.default_rng(0).integers(0, 256, (192, 192, 3)).astype(np.uint8)
    assert np.isfinite(calculate_niqe(img, crop_border=0))


@pytest.mark.parametrize(("cuda", "backend"), [(False, "gloo"), (True, "stock nccl")])
def test_process_group_fits_the_machine(monkeypatch, cuda, backend):
    from basicsr.utils import dist_util

    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **kw: used.append(backend))
    monkeypatch.setattr(dist_util, "_init_dist_pytorch", lambda backend, **kw: used.append(f"stock {backend}"))
    assert compat.gloo_without_cuda() is True
    dist_util.init_dist("pytorch")
    assert used == [backend]
    assert compat.gloo_without_cuda() is False


class TestResume:
    """``load_resume_state``: finds the newest state, reads it on the CPU, refuses code."""

    @pytest.fixture
    def opt(self, tmp_path):
        states = tmp_path / "training_states"
        states.mkdir()
        path = {"training_states": str(states), "models": str(tmp_path / "models"), "pretrain_network_g": "fp.pth"}
        return {"auto_resume": True, "network_g": {}, "path": {**path, "param_key_g": "params_ema"}}

    def save(self, opt, iteration, **extra):
        state = {"epoch": 0, "iter": iteration, "optimizers": [], "schedulers": [{"milestones": Counter([3])}]}
        torch.save(state | extra, Path(opt["path"]["training_states"]) / f"{iteration}.state")

    def test_is_what_the_stock_loop_calls(self):
        from basicsr import train

        assert train.load_resume_state is compat.load_resume_state
        assert compat.resume_without_cuda() is False

    def test_newest_state_and_its_network(self, opt):
        for iteration in (900, 1000, 20):
            self.save(opt, iteration)
        (Path(opt["path"]["training_states"]) / "notes.state").write_text("not a state")
        state = compat.load_resume_state(opt)
        assert state["iter"] == 1000
        assert opt["path"]["resume_state"].endswith("1000.state")
        assert opt["path"]["pretrain_network_g"].endswith("net_g_1000.pth")
        assert opt["path"]["param_key_g"] == "params"

    def test_nothing_to_resume_from(self, opt):
        assert compat.load_resume_state(opt) is None
        assert compat.load_resume_state({"auto_resume": False, "path": {}}) is None

    def test_named_state(self, opt):
        self.save(opt, 5)
        opt["auto_resume"] = False
        opt["path"]["resume_state"] = str(Path(opt["path"]["training_states"]) / "5.state")
        assert compat.load_resume_state(opt)["iter"] == 5

    def test_missing_state_is_named(self, opt):
        opt["auto_resume"] = False
        opt["path"]["resume_state"] = "gone/7.state"
        with pytest.raises(CheckpointError, match=r"gone/7\.state"):
            compat.load_resume_state(opt)

    def test_code_in_a_state_does_not_run(self, opt, tmp_path):
        marker = tmp_path / "ran"
        self.save(opt, 1, trap=Trap(str(marker)))
        with pytest.raises(UnsafeCheckpointError, match=r"1\.state"):
            compat.load_resume_state(opt)
        assert not marker.exists()


class Trap:
    """Unpickling this with pickle creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_missing_basicsr_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(compat, "_absent", lambda name: name == "basicsr")
    with pytest.raises(ImportError, match="pip install --no-build-isolation basicsr"):
        compat.apply()


def test_every_work_around_states_symptom_and_end():
    for cure in (*compat.BEFORE, *compat.AFTER):
        assert "Symptom:" in cure.__doc__ or "removed in" in cure.__doc__, cure.__name__
        assert "Delete when:" in cure.__doc__, cure.__name__
    assert qmambair_basicsr.compat is compat
