"""Every command answers ``--help`` and mistakes in its arguments at once: before torch and BasicSR are imported."""

from __future__ import annotations

import importlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from devices import python_path

import qmambair_basicsr
from qmambair_basicsr import command_lines
from qmambair_basicsr.command_lines import parser_of
from qmambair_basicsr.recipes.reduced_table import REDUCED

ROOT = Path(qmambair_basicsr.__file__).parents[1]
TOOLS = sorted(p.stem for p in (ROOT / "qmambair_basicsr" / "tools").glob("*.py") if p.stem != "__init__")
COMMANDS = ["train", "test", "ops", "ops.build", *(f"tools.{tool}" for tool in TOOLS)]
SCRIPTS = sorted(
    p.relative_to(ROOT).as_posix() for p in (ROOT / "deploy").glob("*.py") if "ArgumentParser(" in p.read_text("utf-8")
)
HEAVY = re.compile(r"\| +(torch|basicsr|torchvision|lmdb|scipy|matplotlib|onnx|tensorrt)\s*$", re.MULTILINE)
CPU_SECONDS = 1.0


def answer(words: list[str]) -> tuple[subprocess.CompletedProcess, float]:
    """A command's answer with the list of what it imported, and the CPU time it took."""
    env = {**os.environ, "PYTHONPATH": python_path(), "PYTHONPROFILEIMPORTTIME": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, cwd=ROOT, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("command", COMMANDS + SCRIPTS)
def test_help_and_mistakes_are_answered_at_once(command):
    start = [command] if command.endswith(".py") else ["-m", f"qmambair_basicsr.{command}"]
    for words, code in ((["--help"], 0), (["--no-such-flag"], 2)):
        done, seconds = answer([*start, *words])
        assert done.returncode == code, done.stderr[-2000:]
        assert "usage: " in (done.stdout if code == 0 else done.stderr)
        assert not HEAVY.search(done.stderr), HEAVY.findall(done.stderr)
        assert seconds < CPU_SECONDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_uses_the_arguments_that_are_answered(command):
    parser = parser_of(command)
    assert parser.prog == f"python -m qmambair_basicsr.{command}"
    module = "ops.__main__" if command == "ops" else command
    if command.startswith("tools."):
        tool = importlib.import_module(f"qmambair_basicsr.{module}")
        assert (
            tool.build_parser
            is importlib.import_module(f"qmambair_basicsr.command_lines.{tool.__name__.split('.')[-1]}").build_parser
        )
        assert parser.description == tool.__doc__.strip() or parser.description in tool.__doc__


def test_what_is_no_command_is_left_to_python(monkeypatch):
    assert parser_of("tools.gone") is None and parser_of("cli") is None
    for orig, argv in (
        ([sys.executable, "-m", "pytest"], ["/somewhere/pytest"]),
        ([sys.executable, "-m", "qmambair_basicsr.cli"], ["-m"]),
        ([sys.executable, "-m", "another.package", "--help"], ["-m", "--help"]),
    ):
        monkeypatch.setattr(sys, "orig_argv", orig)
        monkeypatch.setattr(sys, "argv", argv)
        command_lines.answer_at_once()
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-mqmambair_basicsr.train", "--help"])
    monkeypatch.setattr(sys, "argv", ["-m", "--help"])
    with pytest.raises(SystemExit):
        command_lines.answer_at_once()


def test_names_that_the_arguments_repeat_are_those_of_the_libraries():
    from qmambair_basicsr.command_lines import ablation, benchmark, plot
    from qmambair_basicsr.studies import benchmark as benchmark_study
    from qmambair_basicsr.studies import plot_data, reduced_tasks
    from qmambair_basicsr.studies.ablation_studies import studies

    assert tuple(studies()) == ablation.STUDIES
    assert tuple(benchmark_study._EXTRA_METRICS) == benchmark.EXTRA_METRICS
    assert plot_data.SAMPLES == plot.SAMPLES
    assert reduced_tasks.REDUCED is REDUCED
