"""kernels/tensorrt: the plugin's arithmetic on the host against the reference scan, and compile checks with nvcc."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from qmambair_basicsr.ops.ss2d_scan import ss2d_scan

PLUGIN = Path(__file__).resolve().parents[2] / "kernels" / "tensorrt"
DECLARATIONS = Path(__file__).parent / "nvinfer_declarations"
ORDERS = {"row": 0, "col": 1, "row_rev": 2, "col_rev": 3}

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc (CUDA toolkit)")


@pytest.fixture(scope="module")
def host_library(tmp_path_factory):
    """The plugin's kernel body compiled for the CPU."""
    target = tmp_path_factory.mktemp("host") / "libhost.so"
    sources = ["g++", "-O2", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o", target]
    subprocess.run([*sources, PLUGIN / "ss2d_scan_host.cpp"], check=True)
    return ctypes.CDLL(str(target))


def inputs(batch, height, width, channels, directions, states, dtype=torch.float32):
    """Random tensors of the scan; delta covers both branches of softplus."""
    g = torch.Generator().manual_seed(height * 100 + width)
    k = directions
    return {
        "x": torch.randn(batch, height, width, channels, generator=g, dtype=dtype),
        "delta": torch.randn(batch, height, width, k, channels, generator=g, dtype=dtype) * 3,
        "A": -torch.rand(k, channels, states, generator=g, dtype=dtype) * 16 - 1e-3,
        "B": torch.randn(batch, height, width, k, states, generator=g, dtype=dtype),
        "C": torch.randn(batch, height, width, k, states, generator=g, dtype=dtype),
        "D": torch.randn(k, channels, generator=g, dtype=dtype),
        "delta_bias": torch.randn(k, channels, generator=g, dtype=dtype),
    }


def run_host(library, t, names, chunk, softplus=1, skip=True, grid=None):
    """Call the host library; the output starts as NaN so that a hole shows. ``grid``: step, shift, lowest and highest code."""
    batch, height, width, channels = t["x"].shape
    y = np.full((batch, height, width, channels), np.nan, np.float32)
    arrays = {n: np.ascontiguousarray(v.numpy(), np.float32) for n, v in t.items()}
    pointers = [
        arrays[n].ctypes.data_as(ctypes.c_void_p) if skip or n not in ("D", "delta_bias") else None
        for n in ("x", "delta", "A", "B", "C", "D", "delta_bias")
    ]
    order = (ctypes.c_int32 * len(names))(*(ORDERS.get(n, n) for n in names))
    sizes = (batch, height, width, channels, len(names), t["A"].shape[-1], chunk, softplus)
    status = library.qmambair_ss2d_scan_host(
        *pointers, y.ctypes.data_as(ctypes.c_void_p), *map(ctypes.c_int32, sizes), order,
        None if grid is None else (ctypes.c_float * 4)(*grid),
    )  # fmt: skip
    return status, torch.from_numpy(y)


@needs_gxx
@pytest.mark.parametrize("chunk", [1, 7, 128])
@pytest.mark.parametrize(
    ("height", "width", "channels", "states", "batch"), [(1, 1, 1, 1, 1), (9, 7, 5, 4, 2), (20, 25, 3, 16, 1)]
)
def test_host_kernel_equals_the_reference(host_library, height, width, channels, states, batch, chunk):
    names = ("row", "col", "row_rev", "col_rev")
    t = inputs(batch, height, width, channels, 4, states)
    status, y = run_host(host_library, t, names, chunk)
    expected = ss2d_scan(**{n: v.double() for n, v in t.items()}, delta_softplus=True, directions=names)
    assert status == 0
    assert (y.double() - expected).abs().max() / expected.abs().max() < 1e-5


@needs_gxx
@pytest.mark.parametrize("names", [("row",), ("col_rev", "row")])
def test_host_kernel_other_directions_and_absent_terms(host_library, names):
    t = inputs(1, 6, 11, 4, len(names), 8)
    t["delta"] = t["delta"].abs() * 0.1
    _, y = run_host(host_library, t, names, 16, softplus=0, skip=False)
    given = {n: v.double() for n, v in t.items() if n not in ("D", "delta_bias")}
    expected = ss2d_scan(**given, delta_softplus=False, directions=names)
    assert (y.double() - expected).abs().max() / expected.abs().max() < 1e-5


@needs_gxx
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("lowest", "highest", "softplus"), [(-8, 7, 1), (-2, 1, 1), (0, 15, 0)])
def test_host_kernel_looks_decays_up_where_delta_lies_on_a_grid(host_library, lowest, highest, softplus, half):
    """Values of FP16 are next to the grid; the plugin takes the code they stand for."""
    names, (step, shift) = ("row", "col_rev"), (0.25, 0.6 if softplus else 0.0)
    t = inputs(2, 5, 7, 4, 2, 9)
    t["delta_bias"] = t["delta_bias"] if softplus else t["delta_bias"] * 0
    t["delta"] = torch.randint(lowest, highest + 1, t["delta"].shape) * step - shift
    exact = {n: v.double() for n, v in t.items()}
    if half:
        t["delta"] = t["delta"].half().float()
    status, y = run_host(host_library, t, names, 8, softplus, grid=(step, shift, lowest, highest))
    expected = ss2d_scan(**exact, delta_softplus=bool(softplus), directions=names)
    assert status == 0
    assert (y.double() - expected).abs().max() / expected.abs().max() < 2e-6


@needs_gxx
def test_host_kernel_values_off_the_grid_stay_within_the_tables(host_library):
    t = inputs(1, 3, 4, 2, 1, 3)
    t["delta"][0, 0] = torch.tensor([1e30, -1e30])
    t["delta"][0, 1, 0] = float("nan")
    status, y = run_host(host_library, t, ("row",), 8, grid=(0.5, 0.0, -8, 7))
    assert status == 0 and y.isfinite().all()
    for wrong in ((0.0, 0, -8, 7), (-1.0, 0, -8, 7), (1.0, 0, 7, -8), (1.0, 0, -200, 200), (1.0, 0, float("nan"), 7)):
        assert run_host(host_library, t, ("row",), 8, grid=wrong)[0] == 1


@needs_gxx
def test_host_kernel_refuses_what_does_not_fit(host_library):
    assert run_host(host_library, inputs(1, 2, 2, 1, 1, 65), ("row",), 8)[0] == 1
    assert run_host(host_library, inputs(1, 2, 2, 1, 9, 1), ("row",) * 9, 8)[0] == 1
    t = inputs(1, 2, 2, 1, 1, 1)
    for chunk in (0, -1, -(2**31), 2**31 - 1):
        assert run_host(host_library, t, ("row",), chunk)[0] == 1
    for code in (-1, 4, 7, 2**31 - 1, -(2**31)):  # of a direction
        status, y = run_host(host_library, t, (code,), 8)
        assert status == 1 and y.isnan().all()


def nvcc(target, *arguments):
    """Compile with the plugin Makefile's flags; returns the finished process."""
    command = ["nvcc", "-O1", "-std=c++17", *arguments, "-o", str(target)]
    return subprocess.run(command, capture_output=True, text=True, cwd=PLUGIN)


@needs_nvcc
@pytest.mark.parametrize("arch", ["87", "110"])
def test_kernels_compile_for_orin_and_thor(tmp_path, arch):
    listed = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True).stdout
    if f"sm_{arch}" not in listed.split():
        pytest.skip(f"this nvcc does not know sm_{arch}")
    done = nvcc(tmp_path / "k.cubin", f"-arch=sm_{arch}", "-cubin", "ss2d_scan.cu")
    assert done.returncode == 0, done.stderr


@needs_nvcc
def test_plugin_compiles_and_exports_what_tensorrt_looks_for(tmp_path):
    """With TensorRT's own headers where TENSORRT_INCLUDE names them, else with the declarations beside this test."""
    include = os.environ.get("TENSORRT_INCLUDE", str(DECLARATIONS))
    target = tmp_path / "libqmambair_trt.so"
    flags = ("-arch=sm_87", f"-I{include}", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Werror", "-shared")
    done = nvcc(target, *flags, "ss2d_scan.cu", "ss2d_scan_plugin.cpp")
    assert done.returncode == 0, done.stderr
    symbols = subprocess.run(["nm", "-D", "--defined-only", str(target)], capture_output=True, text=True).stdout
    assert " T getCreators" in symbols and " T setLoggerFinder" in symbols
