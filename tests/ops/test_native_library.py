"""The library itself: build, staleness, sanitizers, and that bits do not depend on threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from qmambair_basicsr.ops import build, native_library
from qmambair_basicsr.ops.backend import BackendError, backends, choose
from qmambair_basicsr.ops.dls import dls
from qmambair_basicsr.ops.lsq import lsq
from qmambair_basicsr.ops.rfa import rfa

SOURCES = build.SOURCES
needs_sources = pytest.mark.skipif(build.sources_digest() is None, reason="kernel sources are not installed")
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler")


def test_no_compiler_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler found") as error:
        build.build(tmp_path / build.LIBRARY)
    assert "\n" not in str(error.value)


@needs_sources
@needs_compiler
def test_a_compiler_error_is_one_clear_line(tmp_path):
    (tmp_path / "broken.cpp").write_text("int f( {")
    with pytest.raises(build.BuildError, match="error") as error:
        build.build(tmp_path / "out" / build.LIBRARY, sources=tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_library_of_other_sources_is_refused(monkeypatch):
    if not native_library.is_available()[0]:
        pytest.skip(native_library.is_available()[1])
    monkeypatch.setattr(native_library, "sources_digest", lambda: "0" * 16)
    library, reason = native_library.load.__wrapped__()
    assert library is None
    assert "other sources" in reason


@pytest.fixture
def native(instruction_set):
    """Its name; the test is skipped where the library is not built."""
    if instruction_set is None:
        pytest.skip(native_library.is_available()[1])
    return instruction_set


def test_every_instruction_set_runs_in_one_process(native):
    assert native_library.library().qm_isa().decode() == native
    assert native_library.is_available() == (True, native)


def test_forced_backend_errors(monkeypatch):
    x = torch.zeros(2)
    monkeypatch.setenv("QMAMBAIR_BACKEND", "fastest")
    with pytest.raises(BackendError, match="reference, native, cuda, triton, mamba_ssm"):
        choose("lsq", ("reference",), x)
    monkeypatch.setenv("QMAMBAIR_BACKEND", "mamba_ssm")  # lsq has none: the default choice stays
    assert choose("lsq", ("reference",), x).__name__.endswith("lsq.reference")
    monkeypatch.setenv("QMAMBAIR_BACKEND", "native")
    assert choose("lsq", ("native", "reference"), x.double()).__name__.endswith("lsq.reference")


def test_every_backend_states_a_reason():
    for op in ("ss2d_scan", "lsq", "dls", "rfa", "window_attention"):
        assert "reference" in [backend.name for backend in backends(op)]
        for backend in backends(op):
            available, reason = backend.is_available()
            assert isinstance(available, bool)
            assert reason


def test_table_of_backends():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "qmambair_basicsr.ops"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "ss2d_scan        reference  yes     plain PyTorch" in done.stdout


def _quantize(x, upstream):
    leaf = x.clone().requires_grad_()
    thresholds = torch.arange(-8.0, 8.0) + 0.01 * torch.arange(16)
    w, v = torch.tensor([0.1, 0.4, 0.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0, 0.0])
    parameters = [t.requires_grad_() for t in (thresholds, w, v, torch.tensor([0.3]), torch.tensor([0.1]))]
    step, offset = parameters[3:]
    outputs = [
        lsq(leaf, step, offset, qmin=-8, qmax=7),
        dls(leaf, w, v, qmin=-8, qmax=7, cap_share=1 / 16)[0],
        rfa(leaf, step, offset, thresholds, qmin=-8),
    ]
    grads = [torch.autograd.grad(y, [leaf, *parameters], upstream, allow_unused=True) for y in outputs]
    return [*outputs, *(g for many in grads for g in many if g is not None)]


def test_quantizer_bits_do_not_depend_on_threads(monkeypatch, native):
    monkeypatch.setenv("QMAMBAIR_BACKEND", "native")
    x, upstream, before = torch.randn(2, 70001), torch.randn(2, 70001), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = _quantize(x, upstream)
        torch.set_num_threads(5)
        got = _quantize(x, upstream)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@needs_sources
@needs_compiler
def test_sanitizers(tmp_path):
    """Every kernel under AddressSanitizer and UBSan, with buffers of exactly the size it may touch."""
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}")
    command = [build.find_compiler(), "-fsanitize=address,undefined", str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers")
    environment = {**os.environ, "CXX": build.find_compiler()}
    script = [str(SOURCES / "sanitize.sh"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    # two programs for each instruction set; the integer operators have a set more
    assert done.stdout.count("clean") == 2 * 3 + 4
