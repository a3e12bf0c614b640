"""Tests that run on every backend put their tensors where that backend runs."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
import torch
from devices import ROOT, device_for, python_path

TESTS = Path(__file__).parent
ELSEWHERE = {"test_window_attention.py"}  # a fixture makes all tensors of a test where its backend runs


def test_the_device_of_a_backend(monkeypatch):
    for gpu, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert {device_for(name) for name in ("cuda", "triton", "mamba_ssm")} == {expected}
        assert {device_for(name) for name in ("native", "native-avx2", "reference")} == {"cpu"}


@pytest.mark.parametrize("given", [None, "elsewhere"])
def test_a_subprocess_finds_what_this_process_was_given(given, monkeypatch):
    if given is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", given)
    assert python_path().split(os.pathsep) == [str(ROOT), *filter(None, [given])]


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _forced(function: ast.FunctionDef) -> bool:
    """Whether a test forces the backend that it is parametrized with."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return any("backend" in _names(call) for call in calls if getattr(call.func, "id", "") == "use_backend")


@pytest.mark.parametrize("path", sorted(TESTS.glob("ops/test_*.py")), ids=lambda path: path.name)
def test_what_forces_a_backend_asks_where_it_runs(path):
    """The kernels of a GPU refuse tensors of the CPU, which only a machine with a GPU would show."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    asking = {f.name for f in functions if "device_for" in _names(f)}
    silent = [f.name for f in functions if _forced(f) and f.name not in asking and not _names(f) & asking]
    assert path.name in ELSEWHERE or not silent
