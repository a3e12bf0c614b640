"""Stand-ins for packages become them when something in them is asked for, and are nowhere in the way before."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap

import pytest
from devices import python_path

from qmambair_basicsr import lazy_packages
from qmambair_basicsr.lazy_packages import LazyPackage


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """``toypack``, whose ``heavy`` part counts how often it is run."""
    files = {
        "toypack/__init__.py": "from toypack import heavy\nfrom . import light\n",
        "toypack/light.py": "NAME = 'light'\n",
        "toypack/heavy/__init__.py": "import builtins\nbuiltins.toy_runs += 1\nfrom . import part\nVALUE = part.VALUE\n",
        "toypack/heavy/part.py": "VALUE = 5\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.toy_runs", 0, raising=False)
    importlib.invalidate_caches()
    yield ("toypack.heavy", "toypack.heavy.part")
    for name in [n for n in sys.modules if n.split(".")[0] == "toypack"]:
        del sys.modules[name]


def runs() -> int:
    import builtins

    return builtins.toy_runs


def test_it_is_imported_when_a_name_is_read_and_once(toy):
    assert lazy_packages.install(toy) is True
    import toypack
    from toypack.heavy import part

    assert isinstance(part, LazyPackage) and runs() == 0
    assert toypack.heavy.VALUE == 5 and part.VALUE == 5 and runs() == 1
    assert not isinstance(sys.modules["toypack.heavy"], LazyPackage)
    with pytest.raises(AttributeError, match="gone"):
        toypack.heavy.gone  # noqa: B018
    assert lazy_packages.install(toy) is False  # imported already


def test_withdrawn_stand_ins_leave_the_real_package_to_others(toy):
    lazy_packages.install(toy)
    import toypack

    lazy_packages.withdraw(toy)
    assert not any(name in sys.modules for name in toy)
    kept = toypack.heavy
    from toypack.heavy.part import VALUE

    assert VALUE == kept.VALUE == 5 and runs() == 1


def test_what_is_not_there_is_left_alone():
    assert lazy_packages.install(("no_such_package.part",)) is False


def test_importing_the_package_leaves_out_what_it_does_not_use():
    """And all of it works when it is used."""
    code = """
    import sys
    import qmambair_basicsr
    heavy = [n for n in ("torchvision.models", "torchvision.ops", "torch._dynamo", "lmdb", "torch.onnx") if n in sys.modules]
    assert not heavy, heavy
    from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
    assert "QMambaIR" in ARCH_REGISTRY and "QATModel" in MODEL_REGISTRY
    from basicsr.archs.vgg_arch import VGGFeatureExtractor, vgg
    assert VGGFeatureExtractor.__module__ == "basicsr.archs.vgg_arch" and callable(vgg.vgg19)
    import torchvision
    from torchvision.models.resnet import resnet18
    assert callable(torchvision.ops.box_area) and torchvision.models.resnet18 is resnet18
    """
    env = {**os.environ, "PYTHONPATH": python_path()}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
