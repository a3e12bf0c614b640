"""The bench of large pictures: what it measures is the command's own result."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def bench(script):
    return script("bench_photo")


def test_a_line_for_each_picture_and_a_limit(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_photo.py", "--sizes", "40x24", "--most", "0.001"])
    assert bench.main() == 1  # more than a megabyte
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "40 x 24" in line]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[:2] == ["40 x 24", "80 x 48"]
    wall, cpu, memory = map(float, cells[2:])
    assert cpu > 0 and 0 < wall < 600 and 0.1 < memory < 1.5


def test_a_command_that_fails_gives_no_figure(bench, tmp_path):
    args = bench.build_parser().parse_args(["--sizes", "16x16", "--tile", "all"])
    with pytest.raises(SystemExit, match="ended with 2"):
        bench.measure((16, 16), args, tmp_path)


@pytest.mark.parametrize("text", ["3000", "0x4", "axb", "1x2x3"])
def test_what_is_no_size_is_refused(bench, text):
    with pytest.raises(bench.argparse.ArgumentTypeError, match="is no size"):
        bench.size_of(text)
