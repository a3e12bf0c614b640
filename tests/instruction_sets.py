"""The CPU kernels for every instruction set of this machine, side by side in one process.

The library chooses its instruction set once, when it is first asked. A second copy of the file is a library of its own
to the loader, and chooses again. One machine so vouches for those that have less.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from qmambair_basicsr.ops import native_library

NAMES = ("avx512", "avx2", "portable")
SEPARATOR = "-"


@functools.cache
def libraries(names: tuple[str, ...] = NAMES, tells: str = "qm_isa") -> dict[str, ctypes.CDLL]:
    """Library for each instruction set that this machine has, the widest first; empty where it is not built.

    Args:
        names: sets to ask for.
        tells: the function that says which one was chosen.
    """
    found: dict[str, ctypes.CDLL] = {}
    if not native_library.is_available()[0]:
        return found
    before = os.environ.get("QMAMBAIR_ISA")
    source = Path(native_library.__file__).with_name(native_library.LIBRARY)
    try:
        for name in names:
            os.environ["QMAMBAIR_ISA"] = name
            with tempfile.TemporaryDirectory() as folder:
                copy = shutil.copy2(source, Path(folder) / f"{name}{source.suffix}")
                library = native_library.opened(copy)
                told = getattr(library, tells)
                told.restype = ctypes.c_char_p
                if told().decode() == name:
                    found[name] = library
    finally:
        os.environ.pop("QMAMBAIR_ISA", None)
        if before is not None:
            os.environ["QMAMBAIR_ISA"] = before
    return found


def with_instruction_sets(backends: list[str]) -> list[str]:
    """Names of backends, ``native`` once for each instruction set: ``native-avx2`` and the like."""
    names = [f"native{SEPARATOR}{name}" for name in libraries()] or ["native"]
    return [each for backend in backends for each in (names if backend == "native" else [backend])]


@contextmanager
def in_use(name: str, library: ctypes.CDLL | None = None) -> Iterator[None]:
    """The native kernels run for one of these instruction sets inside the block, that of ``libraries()`` by default."""
    library = library or libraries()[name]
    native_library.function.cache_clear()
    try:
        with mock.patch.object(native_library, "load", lambda: (library, name)):
            yield
    finally:
        native_library.function.cache_clear()
