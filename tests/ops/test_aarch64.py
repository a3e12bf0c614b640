"""The library for AArch64, built with a cross compiler and run under qemu-user: every kernel with NEON."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from qmambair_basicsr.ops import build

COMPILER, EMULATOR, ROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", Path("/usr/aarch64-linux-gnu")


@pytest.fixture(scope="module")
def drivers(tmp_path_factory) -> Path:
    """A folder with the drivers of the kernels, linked to a library for AArch64."""
    if build.sources_digest() is None:
        pytest.skip("no kernel sources here")
    missing = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
    if missing or not ROOT.is_dir():
        pytest.skip(f"needs {' and '.join(missing) or ROOT} (Debian: apt-get install qemu-user g++-aarch64-linux-gnu)")
    folder = tmp_path_factory.mktemp("aarch64")
    library = folder / build.LIBRARY
    build.build(library, compiler=COMPILER, machine="aarch64", extra=("-O1",))
    for name in ("driver", "glue_driver", "integer_driver"):
        source = build.SOURCES / "sanitize" / f"{name}.cpp"
        subprocess.run([COMPILER, "-std=c++17", "-O1", str(source), str(library), "-o", str(folder / name)], check=True)
    return folder


def run(program: Path, cpu: str, forced: str | None = None, words: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """A driver on a processor."""
    environment = {name: value for name, value in os.environ.items() if name != "QMAMBAIR_ISA"}
    if forced:
        environment["QMAMBAIR_ISA"] = forced
    command = [EMULATOR, "-L", str(ROOT), "-cpu", cpu, "-E", f"LD_LIBRARY_PATH={program.parent}", str(program), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize(
    ("cpu", "forced", "used"),
    [("max", None, "dotprod"), ("max", "portable", "portable"), ("cortex-a53", None, "portable")],
)
def test_integer_operators(drivers, cpu, forced, used):
    """Every result is compared with plain loops; the instruction set is the one that the processor has."""
    done = run(drivers / "integer_driver", cpu, forced)
    assert (done.returncode, done.stdout) == (0, f"integer {used}: clean\n"), done.stderr


@pytest.mark.parametrize(("name", "said"), [("driver", "portable: clean\n"), ("glue_driver", "portable: glue clean\n")])
def test_other_kernels(drivers, name, said):
    """Scans, quantizers and attention; the passes between integer operators: within their buffers, wrong input refused."""
    done = run(drivers / name, "cortex-a53", words=("few",))
    assert (done.returncode, done.stdout) == (0, said), done.stderr
