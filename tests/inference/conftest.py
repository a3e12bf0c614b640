"""Packed files of very small networks."""

from __future__ import annotations

import pytest
from tiny_restorers import write_packed


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """Random weights."""
    return write_packed(tmp_path_factory.mktemp("packed") / "sr_x2.safetensors")


@pytest.fixture(scope="session")
def echo(tmp_path_factory):
    """Doubles every pixel."""
    return write_packed(tmp_path_factory.mktemp("echo") / "echo.safetensors", echo=True)
