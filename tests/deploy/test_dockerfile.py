"""deploy/Dockerfile names files and variables that exist, and installs what the scripts import."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
INSTRUCTIONS = [line for line in TEXT.splitlines() if line and not line.startswith("#")]


def test_copied_folders_hold_what_is_run():
    copied = [line.split()[1] for line in INSTRUCTIONS if line.startswith("COPY ")]
    assert copied == ["deploy", "kernels/tensorrt"]
    assert all((ROOT / folder).is_dir() for folder in copied)
    for name in ("build_engine.sh", "benchmark_jetson.py"):
        assert (ROOT / "deploy" / name).is_file()


def test_variables_exist():
    makefile = (ROOT / "kernels" / "tensorrt" / "Makefile").read_text()
    for folder, variable in re.findall(r"make -C (\S+) (\w+)=", TEXT):
        assert (ROOT / folder / "Makefile").is_file()
        assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE)
    declared = re.findall(r"^ARG (\w+)", TEXT, re.MULTILINE)
    assert "BASE" in declared and set(re.findall(r"\$\{(\w+)\}", TEXT)) <= {*declared, "PATH"}
    assert INSTRUCTIONS.index("FROM ${BASE}") == 1, "the base is chosen by the first ARG"


def test_what_the_scripts_import_is_installed():
    """Beside the standard library and the folder's own modules; TensorRT itself comes with the base image."""
    folder = ROOT / "deploy"
    imported = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    imported -= set(sys.stdlib_module_names) | {file.stem for file in folder.glob("*.py")}
    packages = {"numpy": "numpy", "onnx": "onnx", "pycuda": "pycuda", "cuda": "cuda-python", "jtop": "jetson-stats"}
    assert imported == {*packages, "tensorrt"}
    for package in packages.values():
        assert re.search(rf'[" ]{package}[">= ]', TEXT), package
