"""CUDA C++ kernels (``kernels/cuda``), compiled by nvcc when they are first needed and kept in a cache folder.

A library has a C interface and is loaded through ctypes: it needs nvcc, but no headers of torch. It is built for one GPU
architecture and one set of macros; its name in the cache (``$XDG_CACHE_HOME/qmambair_basicsr``, by default in
``~/.cache``) holds a digest of everything that it depends on. Nothing depends on nvcc: without it other backends run.

``QMAMBAIR_CUDA_SIMULATE=1`` compiles the same kernels with g++ for the host, where every GPU thread is a fiber
(``kernels/cuda/simulate.h``): for tests on machines without a GPU, slow.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

from ..files import replaced
from .build import BuildError

SIMULATED = os.environ.get("QMAMBAIR_CUDA_SIMULATE", "0") == "1"
DEVICES = ("cpu",) if SIMULATED else ("cuda",)
_OLDEST = (8, 0)  # compute capability: shared memory of a block, bfloat16
_PLACES = (Path(__file__).resolve().parents[2] / "kernels" / "cuda", Path(__file__).with_name("cuda_sources"))


def sources() -> Path | None:
    """Folder of the kernel sources: those of the checkout, or those an installation carries."""
    return next((place for place in _PLACES if (place / "scan.cu").is_file()), None)


def compiler() -> str | None:
    """nvcc (``$CUDA_HOME``, the path, ``/usr/local/cuda``), or g++ for the simulation; None where there is none."""
    if SIMULATED:
        return shutil.which(os.environ.get("CXX") or "g++")
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [os.path.join(home, "bin", "nvcc") for home in homes]
    found = (shutil.which(place) for place in (*places, "nvcc", "/usr/local/cuda/bin/nvcc"))
    return next((place for place in found if place), None)


def is_available() -> tuple[bool, str]:
    """Whether the kernels can be compiled and run here, and why (not)."""
    if sources() is None:
        return False, "the sources of the CUDA kernels are not installed"
    if SIMULATED:
        found = compiler()
        return found is not None, "simulated on the CPU, for tests" if found else "no C++ compiler to simulate with"
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return False, "no CUDA device"
    if torch.cuda.get_device_capability() < _OLDEST:
        return False, f"{torch.cuda.get_device_name()} is older than compute capability {_OLDEST[0]}.{_OLDEST[1]}"
    if compiler() is None:
        return False, "nvcc was not found (CUDA toolkit; set CUDA_HOME), the CUDA kernels cannot be compiled"
    return True, f"CUDA kernels on {torch.cuda.get_device_name()}, compiled by {compiler()}"


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmambair_basicsr"


def command(unit: Path, target: Path, defines: tuple[tuple[str, int], ...], architecture: str) -> list[str]:
    """The compiler's command line.

    Args:
        unit: source file.
        target: library to write.
        defines: macros and their values.
        architecture: compute capability without its point, ``"90"``.

    Raises:
        BuildError: there is no compiler.
    """
    program = compiler()
    if program is None:
        raise BuildError("no compiler for the CUDA kernels")
    macros = [f"-D{name}={number}" for name, number in defines]
    common = ["-std=c++17", "-shared", *macros, "-o", str(target)]
    if SIMULATED:
        quiet = ["-Wno-unknown-pragmas"]
        return [
            program,
            "-O2",
            "-fPIC",
            "-fvisibility=hidden",
            *quiet,
            "-DQM_SIMULATE",
            *common,
            "-x",
            "c++",
            str(unit),
        ]
    target_flag = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    return [program, "-O3", target_flag, "-Xcompiler", "-fPIC,-fvisibility=hidden", *common, str(unit)]


@functools.cache
def _identity(program: str) -> str:
    """What a compiler says about itself."""
    return subprocess.run([program, "--version"], capture_output=True, text=True).stdout


@functools.cache
def library(defines: tuple[tuple[str, int], ...], architecture: str) -> ctypes.CDLL:
    """The kernels for these macros, compiled unless the cache has them.

    Raises:
        BuildError: they cannot be compiled; the message is the compiler's first error.
    """
    folder = sources()
    if folder is None:
        raise BuildError("the sources of the CUDA kernels are not installed")
    line = command(folder / "scan.cu", Path("library"), defines, architecture)
    digest = hashlib.sha256(_identity(line[0]).encode())
    digest.update(" ".join(line[1:]).replace(str(folder), "").encode())
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".cu", ".h")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    target = cache_folder() / f"scan-{digest.hexdigest()[:20]}.so"
    if not target.is_file():
        with replaced(target) as part:
            line = command(folder / "scan.cu", part, defines, architecture)
            done = subprocess.run(line, capture_output=True, text=True)
            if done.returncode:
                lines = [text for text in done.stderr.splitlines() if "error" in text] or done.stderr.splitlines()
                raise BuildError(f"{Path(line[0]).name} failed: {lines[0] if lines else 'no message'}")
    return ctypes.CDLL(str(target))
