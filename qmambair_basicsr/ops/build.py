"""Builds the CPU kernels (``kernels/cpu/*.cpp``) into a shared library next to this file.

``pip install`` runs it through setup.py; in a checkout, ``python -m qmambair_basicsr.ops.build`` builds in place. The
library has a C interface and links neither torch nor Python, so one build serves every version of both. This module
uses the standard library only: setup.py loads it before torch is there.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIBRARY = "libqmambair_cpu.so"
SOURCES = Path(__file__).resolve().parents[2] / "kernels" / "cpu"

_COMMON = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra")
_AVX512 = ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma")
_X86_FLAGS = {
    "kernels_avx2": ("-mavx2", "-mfma"),
    "kernels_avx512": _AVX512,
    "kernels_avx512vl": _AVX512,
    "integer_avx2": ("-mavx2", "-mfma"),
    "integer_avxvnni": ("-mavx2", "-mfma", "-mavxvnni"),
    "integer_avx512": (*_AVX512, "-mavx512bw", "-mavx512vnni"),
}
_ARM_FLAGS = {"integer_dotprod": ("-march=armv8.2-a+dotprod",)}
# units that are left out where the compiler does not know their flags, and what says that they are there
_OPTIONAL = {"integer_avxvnni": "QM_AVXVNNI"}


class BuildError(RuntimeError):
    """The library cannot be built here; the message is one line that says why."""


def sources_digest(folder: Path = SOURCES) -> str | None:
    """Digest of the kernel sources, None where they are not (an installed wheel)."""
    files = sorted(p for p in folder.glob("*") if p.suffix in (".cpp", ".h"))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def built_from(library: Path) -> str | None:
    """Digest of the sources a library was built from, None when it does not load."""
    try:
        digest = ctypes.CDLL(str(library)).qm_sources
    except (OSError, AttributeError):
        return None
    digest.restype = ctypes.c_char_p
    return digest().decode()


def find_compiler() -> str | None:
    """The C++ compiler: ``$CXX``, else g++, clang++ or c++ on the path; None when there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((found for found in map(shutil.which, names) if found), None)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{' '.join(command[:1] + command[-3:])} failed: {lines[0] if lines else 'no message'}")


def _accepts(compiler: str, flags: tuple[str, ...]) -> bool:
    """Whether the compiler knows these flags (GCC before 11 has no AVX-VNNI)."""
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder) / "empty.cpp"
        unit.touch()
        command = [compiler, *flags, "-c", str(unit), "-o", str(unit.with_suffix(".o"))]
        return subprocess.run(command, capture_output=True).returncode == 0


def _compile(compiler: str, folder: Path, out: Path, extra: tuple[str, ...], machine: str) -> None:
    """Compile and link all sources into the file ``out``."""
    x86 = machine.lower() in ("x86_64", "amd64")
    define = (f'-DQM_SOURCES="{sources_digest(folder)}"', *(("-DQM_X86",) if x86 else ()))
    flags = _X86_FLAGS if x86 else _ARM_FLAGS if machine.lower() in ("aarch64", "arm64") else {}
    skipped = {*_X86_FLAGS, *_ARM_FLAGS} - set(flags)
    for stem, name in _OPTIONAL.items():
        if stem in flags and _accepts(compiler, flags[stem]):
            define = (*define, f"-D{name}")
        else:
            skipped.add(stem)
    units = [p for p in sorted(folder.glob("*.cpp")) if p.stem not in skipped]
    objects = [out.with_name(f"{p.stem}.o") for p in units]

    def compile_one(unit: Path, target: Path) -> None:
        _run([compiler, *_COMMON, *define, *extra, *flags.get(unit.stem, ()), "-c", str(unit), "-o", str(target)])

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(compile_one, units, objects))
    _run([compiler, "-shared", *extra, *map(str, objects), "-o", str(out)])


def build(
    target: Path,
    *,
    sources: Path = SOURCES,
    compiler: str | None = None,
    extra: tuple[str, ...] = (),
    machine: str | None = None,
) -> str:
    """Build the library.

    Args:
        target: file to write; replaced in one step, so running processes keep the old one.
        sources: folder of the kernel sources.
        compiler: C++ compiler; :func:`find_compiler` by default.
        extra: more compiler flags (sanitizers).
        machine: architecture the compiler targets, as ``platform.machine()`` names it; this one by default.

    Returns:
        One line: what was built with what.

    Raises:
        BuildError: no sources, no compiler, or the compiler failed.
    """
    if sources_digest(sources) is None:
        raise BuildError(f"no kernel sources in {sources}")
    compiler = compiler or find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler found (set CXX, or install g++ or clang++)")
    machine = machine or platform.machine()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / target.name
        try:
            _compile(compiler, sources, out, (*extra, "-fopenmp"), machine)
            threads = "OpenMP"
        except BuildError:
            _compile(compiler, sources, out, extra, machine)
            threads = "one thread, the compiler has no OpenMP"
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy2(out, staged)
        os.replace(staged, target)
    return f"built {target.name} with {Path(compiler).name} ({threads})"


def main() -> None:
    """Command line: build in place."""
    from ..command_lines.ops_build import build_parser  # here: setup.py loads this file without the package

    args = build_parser().parse_args()
    args.output = args.output or Path(__file__).with_name(LIBRARY)
    if args.if_changed and args.output.is_file() and built_from(args.output) == sources_digest():
        sys.stdout.write(f"{args.output.name} is up to date\n")
        return
    try:
        sys.stdout.write(build(args.output) + "\n")
    except BuildError as err:
        sys.exit(f"CPU kernels not built: {err}")


if __name__ == "__main__":
    main()
