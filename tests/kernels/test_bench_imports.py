"""The benches import the package before torch: only then do their threads wait as the package has them (``threads.py``)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"
ON_GPUS = ("gpu_",)
TORCH_FIRST = """
import torch
from qmambair_basicsr import ops
"""


def first_imports(body: list[ast.stmt]) -> list[str]:
    """Packages imported by these statements, in their order."""
    names = []
    for statement in body:
        if isinstance(statement, ast.Import):
            names += [alias.name.split(".")[0] for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            names.append((statement.module or "").split(".")[0])
    return names


def torch_first(source: str) -> list[str]:
    """The module (``""``) and its functions that import torch before the package is there."""
    tree, found = ast.parse(source), []
    places = {"": tree.body} | {n.name: n.body for n in tree.body if isinstance(n, ast.FunctionDef)}
    for name, body in places.items():
        names = first_imports(body)
        if "torch" in names and "qmambair_basicsr" not in names[: names.index("torch")]:
            found.append(name)
    return found


def commands() -> list[Path]:
    """The benches that are started on a CPU."""
    files = [p for p in sorted(BENCH.glob("*.py")) if not p.name.startswith(ON_GPUS)]
    return [p for p in files if "__main__" in p.read_text()]


@pytest.mark.skipif(not BENCH.is_dir(), reason="no benches here")
def test_benches_import_the_package_before_torch():
    assert len(commands()) > 5
    wrong = {path.name: torch_first(path.read_text()) for path in commands()}
    allowed = {
        "bench_networks.py": ["plain_scan"],  # called where both are loaded
        "bench_threads.py": ["child"],  # sets how threads wait itself
        "mambairv2_inference.py": ["main"],  # prints; its processes measure
    }
    assert {name: places for name, places in wrong.items() if places} == allowed


def test_an_import_of_torch_first_is_found():
    assert torch_first(TORCH_FIRST) == [""]
