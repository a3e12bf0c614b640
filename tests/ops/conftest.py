"""Fixtures of the operator tests: one run per backend, outputs that start as NaN."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from instruction_sets import in_use

from qmambair_basicsr.ops.backend import ENV, Backend


@pytest.fixture
def use_backend(monkeypatch):
    """``use_backend(op, name)`` forces a backend for this test, or skips it with the reason it is not available.

    ``native-avx2`` and the like are the native kernels for an instruction set.
    """
    stack = ExitStack()

    def force(op: str, name: str) -> None:
        name, _, instructions = name.partition("-")
        stack.close()
        if instructions:
            stack.enter_context(in_use(instructions))
        available, reason = Backend(op, name).is_available()
        if not available:
            pytest.skip(f"{op} on {name}: {reason}")
        monkeypatch.setenv(ENV, name)

    with stack:
        yield force


@pytest.fixture
def nan_memory():
    """Memory from ``torch.empty`` holds NaN, so that a value a kernel forgets to write is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
