"""Fixtures of the operator tests: one run per backend, outputs that start as NaN."""

from __future__ import annotations

import pytest
import torch

from qmambair_basicsr.ops.backend import ENV, Backend


@pytest.fixture
def use_backend(monkeypatch):
    """``use_backend(op, name)`` forces a backend for this test, or skips it with the reason it is not available."""

    def force(op: str, name: str) -> None:
        available, reason = Backend(op, name).is_available()
        if not available:
            pytest.skip(f"{op} on {name}: {reason}")
        monkeypatch.setenv(ENV, name)

    return force


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
