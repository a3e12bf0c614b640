"""The shared library of the CPU kernels, loaded once through ctypes.

ctypes releases the GIL during a call. The number of threads is torch's, so ``torch.set_num_threads`` and a DataLoader
worker's single thread hold here too.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from .build import LIBRARY, sources_digest

ABI = 14
_NO_MEMORY = 2  # of enum IntegerStatus in kernels/cpu/integer.h
_BUILD = "python -m qmambair_basicsr.ops.build"


def opened(path: Path) -> ctypes.CDLL:
    """A library file, loaded; what it tells about itself can be called.

    Raises:
        OSError: it does not load.
        AttributeError: it is another library.
    """
    library = ctypes.CDLL(str(path))
    for name in ("qm_sources", "qm_isa"):
        getattr(library, name).restype = ctypes.c_char_p
    for name in ("qm_abi", "qm_threaded"):
        getattr(library, name).restype = ctypes.c_int64
    return library


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library and a line about it; None and the reason when it cannot be used."""
    path = Path(__file__).with_name(LIBRARY)
    if not path.is_file():
        return None, f"not built; run: {_BUILD}"
    try:
        library = opened(path)
    except (OSError, AttributeError) as err:
        return None, f"{path.name} does not load ({err}); run: {_BUILD}"
    digest = sources_digest()
    if library.qm_abi() != ABI or (digest is not None and library.qm_sources().decode() != digest):
        return None, f"{path.name} was built from other sources; run: {_BUILD}"
    threads = "OpenMP" if library.qm_threaded() else "one thread"
    return library, f"{path.name}, {library.qm_isa().decode()}, {threads}"


def is_available() -> tuple[bool, str]:
    """Whether the library can be used, and what it is or why not."""
    library, reason = load()
    return library is not None, reason


def library() -> ctypes.CDLL:
    """The library; call only when :func:`is_available` says so."""
    return load()[0]


@functools.cache
def function(name: str, signature: str, status: bool = True):
    """A C function of the quantizers or the integer operators, which returns 0 where it did its work.

    Args:
        name: symbol.
        signature: one letter per argument: p pointer, i int64, f float, d double.
        status: False for a function that returns another number.

    Returns:
        A callable; it raises ValueError where the C function refuses its arguments, MemoryError where memory ran out.
    """
    kinds = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double}
    symbol = getattr(library(), name)
    symbol.argtypes = [kinds[letter] for letter in signature]
    symbol.restype = ctypes.c_int64
    if status:
        symbol.errcheck = refuse
    return symbol


def refuse(status: int, symbol, _: object = None) -> None:
    """Raise what a status other than 0 means: MemoryError or ValueError."""
    if status == _NO_MEMORY:
        raise MemoryError(f"{symbol.__name__}: no memory for the scratch of the CPU kernels")
    if status:
        raise ValueError(f"{symbol.__name__}: the CPU kernels refuse these sizes, levels or bounds of the codes")


def threads() -> int:
    """Threads a kernel may use."""
    return torch.get_num_threads()


def address(t: torch.Tensor | None) -> int | None:
    """Address of a tensor's first element, None for None.

    Raises:
        ValueError: the tensor is not in the CPU's memory.
    """
    if t is None:
        return None
    if t.device.type != "cpu":
        raise ValueError(f"the CPU kernels got a tensor on {t.device}, shape {tuple(t.shape)}; all must be on the CPU")
    return t.data_ptr()


def dense_last(t: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 with a contiguous last dimension; itself when it is that already."""
    t = t.to(torch.float32)
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def dense(t: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 and contiguous; itself when it is that already."""
    return t if t.dtype is torch.float32 and t.is_contiguous() else t.to(torch.float32).contiguous()


def add_in_order(parts) -> torch.Tensor:
    """Sum over the first dimension, one part after the other: the same bits for any number of threads."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
