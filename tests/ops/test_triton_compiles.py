"""The Triton kernels compile for real GPUs, and keep what they must keep in registers; no GPU is needed for this."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from devices import python_path

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the compiler says about every kernel, from a process in which Triton does not interpret."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    cache = tmp_path_factory.mktemp("triton_cache")
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": python_path()}
    script = Path(__file__).with_name("aot_compile.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, "90", "80"], capture_output=True, text=True, env=env, timeout=600
    )
    if done.returncode == 3:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_every_kernel_compiles(report):
    assert {label.split()[-1] for label in report} == {"sm_90", "sm_80"}
    for label, entry in report.items():
        products = "tokens" in label  # window attention: operands of matrix products
        assert entry["shared"] <= (99 * 1024 if products else 16384), (label, entry)


def test_recurrences_stay_in_registers(report):
    """Shared memory in these would mean that columns of a state tile are spread over threads."""
    for label, entry in report.items():
        if label.startswith(("forward_chunk", "adjoint_chunk", "carry")):
            assert entry["shared"] == 0, label
        if label.startswith("gradient_chunk"):
            assert entry["shared"] <= 256, label  # dB and dC of 16 tokens, summed over the channels of a warp


def test_nothing_spills_but_addresses_of_a_tile(report):
    for label, entry in report.items():
        if entry["registers"] is None:
            pytest.skip("this Triton has no cuobjdump")
        limit = 256 if label.startswith("gradient_chunk") else 0  # written once per 16 tokens, outside the loop over N
        assert entry["local"] <= limit, (label, entry)
