"""Mistakes end in a message and exit code 2; defects keep their traceback."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qmambair_basicsr import cli
from qmambair_basicsr.preflight import OptionError
from qmambair_basicsr.quantizers import QuantSpec


def test_success_is_zero_and_the_root_is_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roots = []
    assert cli.run_pipeline(roots.append) == 0
    assert roots == [str(tmp_path)]


def raise_option_error(root):
    raise OptionError("name: missing")


def raise_builtin_from_package(root):
    QuantSpec.from_dict({"wieght": {}})


@pytest.mark.parametrize("pipeline", [raise_option_error, raise_builtin_from_package])
def test_mistake_is_one_message(pipeline, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(logging.getLogger("basicsr"), "handlers", [])
    assert cli.run_pipeline(pipeline) == cli.EXIT_MISTAKE
    text = capsys.readouterr().err
    assert text.startswith("error: ") and "Traceback" not in text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (IsADirectoryError(21, "Is a directory", "d"), "d: Is a directory; give a file's name"),
        (
            OSError(28, "No space left on device", "o/q.onnx"),
            "o/q.onnx: No space left on device; free space on its disk",
        ),
        (OSError(5, "Input/output error", "q"), "q: Input/output error"),
        (FileNotFoundError("no such option file: a.yml"), "no such option file: a.yml"),
    ],
)
def test_an_error_of_the_system_says_where_what_and_what_to_do(error, told, monkeypatch):
    monkeypatch.setattr(cli, "is_mistake", lambda err: True)
    assert cli.message_of(error) == told


def test_debug_prints_the_traceback(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--debug"])
    assert cli.run_pipeline(raise_option_error) == cli.EXIT_MISTAKE
    assert "Traceback" in capsys.readouterr().err


def test_defect_is_not_swallowed():
    def defect(root):
        torch.zeros(2, 3) @ torch.zeros(2, 3)

    with pytest.raises(RuntimeError, match="shapes"):
        cli.run_pipeline(defect)

    def foreign(root):
        int("x")

    with pytest.raises(ValueError, match="invalid literal"):
        cli.run_pipeline(foreign)


def test_mistake_in_the_module_that_python_runs_is_one_message():
    command = [sys.executable, "-W", "ignore", "-m", "qmambair_basicsr.tools.complexity", "-opt", "missing.yml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == cli.EXIT_MISTAKE
    assert "missing.yml" in done.stderr and "Traceback" not in done.stderr


class Incomplete(torch.utils.data.Dataset):
    """A data set of another plugin with an option that nothing documents."""

    def __init__(self, opt):
        self.window = opt["window"]


def test_what_cannot_be_built_is_named(monkeypatch, capsys):
    from basicsr.data import build_dataset
    from basicsr.utils.registry import DATASET_REGISTRY

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Incomplete", Incomplete)
    assert cli.run_tool(lambda: build_dataset({"type": "Incomplete", "name": "x"})) == cli.EXIT_MISTAKE
    expected = "error: the data set Incomplete cannot be built with these options: 'window' is missing\n"
    assert capsys.readouterr().err == expected


class Broken(torch.utils.data.Dataset):
    """Samples that cannot be read."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise OptionError("a.png: truncated\n  second line")


def test_an_error_in_a_worker_is_its_message_alone(capsys):
    loader = torch.utils.data.DataLoader(Broken(), num_workers=1)
    assert cli.run_tool(lambda: list(loader)) == cli.EXIT_MISTAKE
    assert capsys.readouterr().err == "error: a.png: truncated\n  second line\n"
