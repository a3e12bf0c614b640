"""The bench of integer layers: figures only where sums are exact."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from qmambair_basicsr.ops import native_library

pytestmark = pytest.mark.skipif(not native_library.is_available()[0], reason="the CPU kernels are not built")


@pytest.fixture
def bench(script, monkeypatch):
    """The script as a module, with small maps."""
    module = script("bench_integer")
    monkeypatch.setattr(module, "SIDE", 5)
    monkeypatch.setattr(sys, "argv", ["bench_integer.py", "--rounds", "1", "--repeats", "1"])
    before = torch.get_num_threads()
    yield module
    torch.set_num_threads(before)


def test_one_line_for_each_layer(bench, capsys):
    assert bench.main() == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len(bench.CASES)
    assert all(
        re.fullmatch(r".+: float32 [\d.]+ ms, integer [\d.]+ ms, [\d.]+ times, sums equal", line) for line in lines
    )


def test_wrong_sums_get_no_figures(bench, monkeypatch, capsys):
    right = bench.Pair.integer
    monkeypatch.setattr(bench.Pair, "integer", lambda pair: right(pair) + 1e-4)
    assert bench.main() == 1
    said = capsys.readouterr().out
    assert "NOT EQUAL" in said and "times" not in said
