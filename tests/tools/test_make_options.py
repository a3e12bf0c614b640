"""options/*.yml: one source, no drift, only registered types."""

from __future__ import annotations

import pytest
import yaml

import qmambair_basicsr
from qmambair_basicsr.recipes import option_contents
from qmambair_basicsr.recipes.option_table import ROWS
from qmambair_basicsr.tools import make_options

FILES = sorted(option_contents.OPTIONS.glob("*.yml"))


def read(path):
    """The file as BasicSR's own loader gives it."""
    from basicsr.utils.options import ordered_yaml

    return yaml.load(path.read_text(encoding="utf-8"), Loader=ordered_yaml()[0])


def leaves(node, path=()):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def test_every_row_has_its_files_and_none_has_drifted():
    assert len(FILES) == len(ROWS) == len(set(ROWS))
    assert option_contents.drifted() == []


def test_check_notices_a_changed_a_missing_and_an_extra_file(tmp_path, capsys):
    assert make_options.main(["--out", str(tmp_path)]) == 0
    assert make_options.main(["--out", str(tmp_path), "--check"]) == 0
    changed, missing = "train_MambaIR_SRx2.yml", "test_MambaIR_SRx2.yml"
    (tmp_path / changed).write_text("name: other\n")
    (tmp_path / missing).unlink()
    (tmp_path / "extra.yml").write_text("name: extra\n")
    assert option_contents.drifted(tmp_path) == sorted([changed, missing, "extra.yml"])
    capsys.readouterr()
    assert make_options.main(["--out", str(tmp_path), "--check"]) == 1
    assert changed in capsys.readouterr().err


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_file_is_named_registered_and_portable(path):
    opt = read(path)
    assert opt["name"] == path.stem
    assert opt["plugin"] == qmambair_basicsr.__version__
    for key, value in leaves(opt):
        assert value is None or isinstance(value, (str, int, float, bool, list)), key
        if key[-1].startswith("dataroot") or (key[0] == "path" and isinstance(value, str)):
            assert not value.startswith(("/", "~", ".")), f"{key}: {value} is not relative to the working directory"
        if key[-1] in {"lr", "eta_min", "gamma", "ema_decay"}:
            assert isinstance(value, float), f"{key}: {value!r} is text to a YAML 1.1 reader"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_rendering_loses_nothing(path):
    """What the reader sees is the table's dictionary, plus the plugin line."""
    phase, arch, task, width, method = [*path.stem.split("_", 4), "", ""][:5]
    bits = int(width.split("a")[1]) if width else 32
    family = arch if bits == 32 else arch.removeprefix("Q")
    build = option_contents.train_options if phase == "train" else option_contents.test_options
    opt = read(path)
    opt.pop("plugin")
    assert opt == build(family, option_contents.TASKS[task], bits, method)


def test_published_main_job_has_the_released_recipe():
    """Batch 16 x 2 GPUs, patches of 192, lr 1e-4 (classic) / 2e-4 (light), halved at four steps of 20 k."""
    for task, lr in (("SRx2", 1e-4), ("lightSRx2", 2e-4)):
        opt = read(option_contents.OPTIONS / f"train_QMambaIR_{task}_w2a2.yml")
        train = opt["datasets"]["train"]
        assert (train["batch_size_per_gpu"], train["gt_size"]) == (16, 192)
        assert (opt["train"]["optim_g"]["lr"], opt["train"]["total_iter"]) == (lr, 20_000)
        assert opt["train"]["scheduler"]["milestones"] == [10_000, 15_000, 17_500, 18_750]
        assert list(opt["network_g"]["quant"]["weight"].values()) == ["RFA", 2]
