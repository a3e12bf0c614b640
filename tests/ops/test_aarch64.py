"""The library for AArch64, built with a cross compiler and run under qemu-user: integer operators with NEON."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from qmambair_basicsr.ops import build

COMPILER, EMULATOR, ROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", Path("/usr/aarch64-linux-gnu")


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """The driver of the integer operators, linked to a library for AArch64."""
    if build.sources_digest() is None:
        pytest.skip("no kernel sources here")
    missing = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
    if missing or not ROOT.is_dir():
        pytest.skip(f"needs {' and '.join(missing) or ROOT} (Debian: apt-get install qemu-user g++-aarch64-linux-gnu)")
    folder = tmp_path_factory.mktemp("aarch64")
    library = folder / build.LIBRARY
    build.build(library, compiler=COMPILER, machine="aarch64", extra=("-O1",))
    source, program = build.SOURCES / "sanitize" / "integer_driver.cpp", folder / "driver"
    subprocess.run([COMPILER, "-std=c++17", "-O1", str(source), str(library), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize(
    ("cpu", "forced", "used"),
    [("max", None, "dotprod"), ("max", "portable", "portable"), ("cortex-a53", None, "portable")],
)
def test_integer_operators(driver, cpu, forced, used):
    """Every result is compared with plain loops; the instruction set is the one that the processor has."""
    environment = {name: value for name, value in os.environ.items() if name != "QMAMBAIR_ISA"}
    if forced:
        environment["QMAMBAIR_ISA"] = forced
    command = [EMULATOR, "-L", str(ROOT), "-cpu", cpu, "-E", f"LD_LIBRARY_PATH={driver.parent}", str(driver)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, done.stdout) == (0, f"integer {used}: clean\n"), done.stderr
