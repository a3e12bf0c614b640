"""A pretended second device: which operations would mix tensors of two devices, found out on a CPU.

Tensors that lie on the device are marked at their storage. Whatever is computed from one lies there as well, and so does
what is moved or made with a device named: on the networks under test nothing names another one.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch
from torch.utils._pytree import tree_leaves

from qmambair_basicsr.layers.hadamard import hadamard

# moves between devices, and indices, may be on the CPU
_FREE = ("copy_", "_to_copy", "index", "index_put", "index_put_", "set_", "_local_scalar_dense")


def put(tensor: torch.Tensor) -> torch.Tensor:
    """Mark a tensor as one on the device."""
    tensor.untyped_storage().elsewhere = True
    return tensor


def is_there(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies on the device."""
    return getattr(tensor.untyped_storage(), "elsewhere", False)


class _Named(TorchFunctionMode):
    """What is made or moved with a device named is on the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "quantile":  # makes tensors of its own where its input lies
            assert all(is_there(x) for x in args if isinstance(x, torch.Tensor)) or not is_there(args[0])
            with _python_dispatch._disable_current_modes():
                result = func(*args, **kwargs)
            return put(result) if is_there(args[0]) else result
        result = func(*args, **kwargs)
        if name == "cpu":
            with _python_dispatch._disable_current_modes():
                return result.clone()
        to_tensor = name in ("to", "type_as") and any(isinstance(a, torch.Tensor) and is_there(a) for a in args[1:])
        moved = name in ("to", "type_as") and any(isinstance(a, torch.device) for a in args[1:])
        named = to_tensor or moved or kwargs.get("device") is not None
        if named and isinstance(result, torch.Tensor) and not is_there(result):
            result = put(result.clone() if args and result is args[0] else result)
        return result


class _Checked(_python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if is_there(x)]
        name = func.overloadpacket.__name__
        if torch._C._current_graph_task_id() != -1:  # gradients: autograd sees to their devices
            result = func(*args, **(kwargs or {}))
            for x in tree_leaves(result):
                if isinstance(x, torch.Tensor):
                    put(x)
            return result
        if there and name not in _FREE:
            away = [tuple(x.shape) for x in tensors if not is_there(x) and x.ndim]
            assert not away, f"{func}: a tensor {away[0]} on the CPU meets one on the device"
        result = func(*args, **(kwargs or {}))
        if there and not name.startswith("_local_scalar"):
            to_target = name == "copy_" and not is_there(args[0])
            for x in tree_leaves(result):
                if isinstance(x, torch.Tensor) and not to_target:
                    put(x)
        return result


@contextmanager
def elsewhere(*modules: torch.nn.Module):
    """Inside, the states of some modules lie on the device, and tensors of two devices may not meet."""
    forget_constants()
    for order in range(1, 65):
        hadamard(order)  # which says that it is on the CPU, whatever the device; that looks like any device named
    for module in modules:
        for state in (*module.parameters(), *module.buffers()):
            put(state.data)
    try:
        with _Named(), _Checked():
            yield
    finally:
        forget_constants()


def forget_constants() -> None:
    """Empty the caches of the package: what they keep was made on one of the two devices."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "qmambair_basicsr":
            for value in vars(module).values():
                if callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()
