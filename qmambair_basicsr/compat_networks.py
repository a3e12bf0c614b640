"""Work-arounds for networks of BasicSR 1.4.2, part of :mod:`.compat`."""

from __future__ import annotations

import functools
import types


class _RatesOnCpu(types.ModuleType):
    """``torch`` as SwinIR's constructor sees it: ``linspace`` makes values on every default device."""

    def __getattr__(self, name: str):
        import torch

        return functools.partial(torch.linspace, device="cpu") if name == "linspace" else getattr(torch, name)


def swinir_without_values() -> bool:
    """Let SwinIR be built on torch's meta device, where tensors have shapes alone.

    Symptom: ``Tensor.item() cannot be called on meta tensors`` from the placement and complexity tables and from packed
    files of SwinIR, whose constructor reads its DropPath rates from a tensor.
    Delete when: a BasicSR release computes these rates without a tensor.

    Returns:
        True when the constructor was replaced, False when it had been before.
    """
    from basicsr.archs.swinir_arch import SwinIR

    init = SwinIR.__init__
    if isinstance(init.__globals__["torch"], _RatesOnCpu):
        return False
    seen = init.__globals__ | {"torch": _RatesOnCpu("torch")}
    new = types.FunctionType(init.__code__, seen, init.__name__, init.__defaults__, init.__closure__)
    SwinIR.__init__ = functools.update_wrapper(new, init)
    del new.__wrapped__  # it is the constructor, not something around it
    return True
