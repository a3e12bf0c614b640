"""Option files, logs and folders of BasicSR hold any language and any key."""

from __future__ import annotations

import logging
import sys
from codecs import BOM_UTF8

import pytest
from basicsr import test, train
from basicsr.utils import logger, misc, options

from qmambair_basicsr import compat_files


def test_the_copied_option_file_is_the_file_below_its_command(tmp_path, monkeypatch):
    content = "# 中文\nname: größe\n".encode()
    (tmp_path / "run.yml").write_bytes(BOM_UTF8 + content)
    (tmp_path / "experiment").mkdir()
    monkeypatch.setattr(sys, "argv", ["train.py", "-opt", "run.yml", "--force_yml", "name=名\nx"])
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    train.copy_opt_file(str(tmp_path / "run.yml"), str(tmp_path / "experiment"))
    lines = (tmp_path / "experiment" / "run.yml").read_bytes().split(b"\n", 4)
    assert lines[0].startswith(b"# GENERATE TIME: ") and lines[4] == content
    assert lines[2] == "# train.py -opt run.yml --force_yml name=名 x".encode()
    assert options.copy_opt_file is train.copy_opt_file is compat_files.copy_opt_file
    assert compat_files.copy_options_as_utf8() is False


def test_the_log_file_is_utf8(tmp_path):
    handler = logger.logging.FileHandler(tmp_path / "run.log", "w")
    handler.close()
    assert handler.encoding == "utf-8"
    assert logger.logging.getLogger is logging.getLogger and logging.FileHandler is not logger.logging.FileHandler
    assert compat_files.log_as_utf8() is False


@pytest.mark.parametrize("training", [True, False])
def test_only_folders_of_the_run_are_made(tmp_path, monkeypatch, training):
    monkeypatch.chdir(tmp_path)
    root = "experiments_root" if training else "results_root"
    path = {root: str(tmp_path / "run"), "log": str(tmp_path / "run"), "skip_keys_g": ["upsample.*"], "root": None}
    path |= {"visualization": str(tmp_path / "run" / "visualization"), "pretrain_network_g": "w.pth", "other": "folder"}
    misc.make_exp_dirs({"is_train": training, "path": path})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["run", "visualization"]
    assert train.make_exp_dirs is test.make_exp_dirs is misc.make_exp_dirs
    assert compat_files.make_folders_of_the_run_only() is False
