"""Which implementation of an operator runs: the choice by device, and the environment variable that forces one.

An operator package ``ops/<op>`` names its implementations in ``BACKENDS``; each is a module ``ops/<op>/<name>.py`` with

* ``is_available() -> (bool, reason)``: whether this machine can run it, and why (not),
* ``DEVICES``: the ``torch.device.type`` values it accepts,
* the functions of the operator (``forward``, ``backward``), with one signature for all backends.

The module is imported when it is first asked for, so a machine without Triton, mamba_ssm or a compiler loses nothing.

While a network is exported (:func:`exporting`) every operator takes its ONNX form instead, ``ops/<op>/onnx.py``: the
same result in operators that ONNX runtimes have. It runs on no device by itself and is not in ``BACKENDS``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType

import torch

ENV = "QMAMBAIR_BACKEND"
NAMES = ("reference", "native", "cuda", "triton", "mamba_ssm")

# fastest first, measured (kernels/README.md); a device that is not named here runs the reference. mamba_ssm comes after
# triton, since it needs permuted copies and does not hold the float32 parity bound at small steps
_PREFERENCE = {"cpu": ("native", "reference"), "cuda": ("cuda", "triton", "mamba_ssm", "reference")}


class BackendError(RuntimeError):
    """A backend was forced that this machine, this operator's input or this installation cannot run."""


@dataclass(frozen=True)
class Backend:
    """One implementation of one operator.

    Attributes:
        op: folder name under ``ops``.
        name: one of ``NAMES``.
    """

    op: str
    name: str

    @property
    def module(self) -> ModuleType:
        """The module that implements it (imported on first use)."""
        return _load(self.op, self.name)

    def is_available(self) -> tuple[bool, str]:
        """Whether this machine can run the backend, and the reason in words."""
        return _availability(self.op, self.name)


@dataclass(frozen=True)
class ExportTarget:
    """Target of an export: decides how operators are written.

    Attributes:
        maps: what the network computes its feature maps in: float32, float16 or float64.
        plugin: scans stay one node each, for the TensorRT plugin.
    """

    maps: torch.dtype = torch.float32
    plugin: bool = False


_target: ContextVar[ExportTarget | None] = ContextVar("export_target", default=None)


@contextmanager
def exporting(target: ExportTarget | None = None) -> Iterator[None]:
    """Have every operator called inside the block take its ONNX form.

    Args:
        target: what is exported; None for float32 in standard operators.
    """
    token = _target.set(target or ExportTarget())
    try:
        yield
    finally:
        _target.reset(token)


def export_target() -> ExportTarget | None:
    """The export in progress; None outside :func:`exporting`."""
    if torch.compiler.is_dynamo_compiling():  # torch.compile cannot look into a context variable, and exports nothing
        return None
    return _target.get()


@functools.cache
def _load(op: str, name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{op}.{name}")


@functools.cache
def _availability(op: str, name: str) -> tuple[bool, str]:
    return _load(op, name).is_available()


@functools.cache
def _warn_once(op: str, name: str) -> None:
    reason = _availability(op, name)[1]
    logging.getLogger("basicsr").warning("%s runs without its fast %s kernels: %s", op, name, reason)


def backends(op: str) -> tuple[Backend, ...]:
    """All implementations an operator has, available here or not.

    Args:
        op: folder name under ``ops``, e.g. ``"ss2d_scan"``.
    """
    names = importlib.import_module(f"{__package__}.{op}").BACKENDS
    return tuple(Backend(op, name) for name in names)


def forced() -> str | None:
    """The backend that the environment variable ``QMAMBAIR_BACKEND`` forces, None when it is unset or empty.

    Raises:
        BackendError: the variable holds a name that is not in ``NAMES``.
    """
    name = os.environ.get(ENV) or None
    if name is not None and name not in NAMES:
        raise BackendError(f"{ENV}={name} is not a backend; use one of {', '.join(NAMES)}, or unset it")
    return name


def choose(op: str, names: tuple[str, ...], tensor: torch.Tensor) -> ModuleType:
    """The module that runs an operator on a tensor.

    Inside :func:`exporting` that is the ONNX form. Otherwise float64 always goes to the reference (it is the precision
    the others are measured against). A forced backend that the operator does not have (mamba_ssm for a quantizer)
    leaves the default choice in place.

    Args:
        op: folder name under ``ops``.
        names: the operator's ``BACKENDS``.
        tensor: the operator's main input; its device and dtype decide.

    Raises:
        BackendError: a forced backend is not available, or does not run on the tensor's device; the operator has no
            ONNX form and is exported.
    """
    if export_target() is not None:
        if importlib.util.find_spec(f"{__package__}.{op}.onnx") is None:
            raise BackendError(f"{op} has no ONNX form (ops/{op}/onnx.py): a network that calls it cannot be exported")
        return _load(op, "onnx")
    return _chosen(op, names, tensor.device, tensor.dtype is torch.float64, os.environ.get(ENV))


@functools.lru_cache(256)
def _chosen(op: str, names: tuple[str, ...], device: torch.device, double: bool, given: str | None) -> ModuleType:
    """:func:`choose` outside of exports; asked in every call, so what was found is remembered."""
    if double:
        return _load(op, "reference")
    wanted = forced()
    if wanted in names:
        available, reason = _availability(op, wanted)
        if not available:
            raise BackendError(f"{ENV}={wanted}: {op} cannot use it here: {reason}")
        module = _load(op, wanted)
        if device.type not in module.DEVICES:
            raise BackendError(
                f"{ENV}={wanted}: {op} got a tensor on {device}, this backend runs on {', '.join(module.DEVICES)}"
            )
        return module
    for name in _PREFERENCE.get(device.type, ("reference",)):
        if name not in names:
            continue
        if _availability(op, name)[0]:
            return _load(op, name)
        if name in ("native", "cuda", "triton"):
            _warn_once(op, name)
    return _load(op, "reference")


def forget() -> None:
    """Ask every backend again whether it can run; for tests that change what it would say."""
    _availability.cache_clear()
    _chosen.cache_clear()
