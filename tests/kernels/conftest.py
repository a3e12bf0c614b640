"""The benches of ``kernels/bench`` as modules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"


@pytest.fixture
def script(monkeypatch) -> Callable[[str], ModuleType]:
    """Gives a script of that name as a module, loaded anew; skips where there is none."""

    def load(name: str) -> ModuleType:
        path = BENCH / f"{name}.py"
        if not path.is_file():
            pytest.skip("no benches here")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load
