"""Files of the deploy scripts: whole or not at all."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def whole_files():
    path = Path(__file__).resolve().parents[2] / "deploy" / "whole_files.py"
    spec = importlib.util.spec_from_file_location("whole_files", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_text_is_written_and_replaced(whole_files, tmp_path):
    for text in ("old", "Größe"):
        whole_files.write_text(tmp_path / "report.md", text)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "Größe"
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


def test_failure_keeps_the_old_file_and_nothing_else(whole_files, tmp_path):
    whole_files.write_text(tmp_path / "report.md", "old")
    with pytest.raises(UnicodeEncodeError):
        whole_files.write_text(tmp_path / "report.md", "\ud800")
    assert (tmp_path / "report.md").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]
