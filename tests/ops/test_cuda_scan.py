"""The scan's CUDA C++ kernels beyond what every backend is tested for: chunks, types, compiling, and doing without nvcc."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import torch
from scan_cases import DIRECTIONS, make, relative_error

from qmambair_basicsr.ops import backend, cuda_library
from qmambair_basicsr.ops.build import BuildError
from qmambair_basicsr.ops.ss2d_scan import cuda, ss2d_scan

DEVICE = "cpu" if cuda_library.SIMULATED else "cuda"
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc (CUDA toolkit)")


@pytest.fixture
def on_cuda(use_backend):
    use_backend("ss2d_scan", "cuda")


def gradients(inputs, weight, dtype=None, **options):
    device = "cpu" if dtype == torch.float64 else DEVICE
    leaves = {k: t.detach().to(device, dtype).requires_grad_() for k, t in inputs.items()}
    y = ss2d_scan(**leaves, **options)
    grads = torch.autograd.grad((y * weight.to(y)).sum(), list(leaves.values()))
    return dict(zip(("y", *leaves), (y.detach(), *grads), strict=True))


@pytest.mark.parametrize("chunk", [16, 64, 128])
def test_any_chunk_gives_the_same(chunk, on_cuda, nan_memory, monkeypatch):
    """Several tiles in a chunk, several chunks, the last ones short; channels in two blocks; a row of states not full."""
    monkeypatch.setattr(cuda, "chunk_of", lambda x, A: chunk)
    inputs = make(1, 11, 13, 2, 132, 3)
    weight = torch.randn(1, 11, 13, 132)
    got = gradients(inputs, weight, directions=("col", "row_rev"))
    want = gradients(inputs, weight, torch.float64, directions=("col", "row_rev"))
    for name in want:
        assert relative_error(got[name].cpu(), want[name]) < 2e-6, name


def test_results_repeat_bit_by_bit(on_cuda):
    inputs, weight = make(2, 5, 9, 3, 40, 4), torch.randn(2, 5, 9, 40)
    first, second = (gradients(inputs, weight, directions=DIRECTIONS[:3]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_maps_of_several_types_are_computed_in_float32(on_cuda):
    inputs = make(1, 3, 4, 4, 3, 2)
    mixed = {k: t.to(torch.bfloat16) if k in ("x", "B") else t for k, t in inputs.items()}
    weight = torch.randn(1, 3, 4, 3).to(torch.bfloat16)
    got = gradients(mixed, weight)
    want = gradients({k: t.float() for k, t in mixed.items()}, weight, torch.float64)
    assert got["y"].dtype == got["B"].dtype == torch.bfloat16 and got["delta"].dtype == torch.float32
    assert relative_error(got["delta"].cpu(), want["delta"]) < 1e-6
    assert relative_error(got["x"].cpu(), want["x"]) < 1e-2


def test_chunks_leave_a_gpu_enough_to_do():
    """Memory for states is the price of a chunk, so large inputs get long ones."""

    def chunk(batch, side, channels):
        x = torch.empty(batch, side, side, channels, device="meta")
        return cuda.chunk_of(x, torch.empty(4, channels, 16, device="meta"))

    sizes = (8, 64, 120), (2, 64, 120), (1, 64, 72), (2, 32, 72)
    assert [chunk(*size) for size in sizes] == [128, 64, 32, 16]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"A": -torch.ones(4, 5, 65), "B": torch.ones(1, 3, 4, 4, 65), "C": torch.ones(1, 3, 4, 4, 65)}, "at most 64"),
        ({"directions": ("row",) * 33}, "32 named directions"),
    ],
)
def test_what_the_kernels_do_not_take_is_named(change, words, on_cuda):
    inputs = make(1, 3, 4, len(change.get("directions", DIRECTIONS)), 5, 2)
    with pytest.raises(ValueError, match=words):
        ss2d_scan(**{k: t.to(DEVICE) if isinstance(t, torch.Tensor) else t for k, t in {**inputs, **change}.items()})


@needs_nvcc
@pytest.mark.parametrize(("states", "element", "arch"), [(16, 0, "90"), (12, 1, "80")])
def test_kernels_compile_and_keep_states_in_registers(tmp_path, states, element, arch):
    folder = cuda_library.sources()
    target = tmp_path / "scan.cubin"
    command = ["nvcc", "-O3", "-std=c++17", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas", "-v", "-cubin"]
    macros = [f"-DQM_STATES={states}", f"-DQM_ELEMENT={element}"]
    done = subprocess.run(
        [*command, *macros, str(folder / "scan.cu"), "-o", str(target)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kernels = done.stderr.split("Compiling entry function")[1:]
    assert len(kernels) == 7
    for text in kernels:
        stack = int(re.search(r"(\d+) bytes stack frame", text).group(1))
        assert stack <= 192, text  # of the gradient: addresses, kept once for each tile of 16 tokens


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cuda_library.library.cache_clear()
    yield tmp_path / "qmambair_basicsr"
    cuda_library.library.cache_clear()


@pytest.mark.skipif(not cuda_library.SIMULATED, reason="compiles for the host")
def test_a_library_is_compiled_once(empty_cache, monkeypatch):
    defines = ("QM_STATES", 4), ("QM_ELEMENT", 0)
    cuda_library.library(defines, "host")
    assert [path.suffix for path in empty_cache.iterdir()] == [".so"]
    cuda_library.library.cache_clear()
    monkeypatch.setattr(cuda_library.subprocess, "run", pytest.fail)  # the compiler is not asked again
    cuda_library.library(defines, "host")


def test_a_compiler_that_fails_is_quoted_and_passed_over(empty_cache, monkeypatch):
    script = [sys.executable, "-c", "import sys; sys.exit('scan.cu(1): error: no such luck')"]
    monkeypatch.setattr(cuda_library, "command", lambda *_: script)
    with pytest.raises(BuildError, match="no such luck"):
        cuda_library.library((("QM_STATES", 16), ("QM_ELEMENT", 0)), "host")
    assert not list(empty_cache.iterdir())
    monkeypatch.setitem(backend._PREFERENCE, "cpu", ("cuda", "reference"))
    monkeypatch.setattr(cuda, "_can_compile", lambda: (True, ""))
    monkeypatch.delenv(backend.ENV, raising=False)
    backend.forget()
    try:
        chosen = backend.choose("ss2d_scan", ("cuda", "reference"), torch.zeros(1))
        assert chosen.__name__.endswith("reference")
    finally:
        backend.forget()


def test_without_nvcc_it_says_so(monkeypatch):
    monkeypatch.setattr(cuda_library, "SIMULATED", False)
    monkeypatch.setattr(cuda_library, "compiler", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    usable, reason = cuda_library.is_available()
    assert not usable and "nvcc was not found" in reason
