"""Checks of operators, before numbers become addresses: devices, whole numbers, and the values of index tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_WIDEST = 2**24  # codes are whole numbers in float32

# index tensor -> (its version, what it was found good for)
_known = WeakIdKeyDictionary()


def same_device(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors are on the device of the first; kernels take addresses as they are.

    Args:
        op: operator, for the message.
        tensors: by the names of the operator's arguments; None where an argument is left out.
    """
    devices = {t.device for t in tensors.values() if t is not None}
    if len(devices) > 1:
        given = {name: t.device for name, t in tensors.items() if t is not None}
        listed = ", ".join(f"{name} on {device}" for name, device in given.items())
        raise ValueError(f"{op}: all tensors must be on one device, got {listed}")


def code_bounds(op: str, qmin: int, qmax: int) -> None:
    """Raise ValueError unless these are the smallest and the largest of some whole numbers that float32 holds."""
    if type(qmin) is int and type(qmax) is int and -_WIDEST <= qmin <= qmax <= _WIDEST:
        return
    whole = all(isinstance(q, int) and not isinstance(q, bool) and abs(q) <= _WIDEST for q in (qmin, qmax))
    if not whole or qmin > qmax:
        raise ValueError(
            f"{op}: codes must run from one whole number to another that is not smaller, both within "
            f"+-{_WIDEST}; got qmin {qmin!r} and qmax {qmax!r}"
        )


def integers(op: str, name: str, t: Tensor) -> None:
    """Raise ValueError unless a tensor holds int32 or int64."""
    if t.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{op}: {name} must be int32 or int64, got {t.dtype}")


def readable(t: Tensor) -> bool:
    """Whether a tensor has values to look at: not while torch traces, and not on the meta device."""
    return not (torch.compiler.is_compiling() or t.is_meta or torch._subclasses.fake_tensor.is_fake(t))


def rows_of(op: str, name: str, index: Tensor, rows: int, of: str) -> None:
    """Raise ValueError unless every value of ``index`` is in range(rows); the first that is not is named.

    A tensor that was found good is not looked at again until it is written to.

    Args:
        op, name: operator and argument, for the message.
        index: int32 or int64.
        rows: number of rows.
        of: what has so many rows, for the message.
    """
    if not readable(index) or _remembers(index, rows):
        return
    outside = (index < 0) | (index >= rows)
    if bool(outside.any()):
        place = outside.nonzero()[0].tolist()
        raise ValueError(
            f"{op}: {name}{place} is {index[tuple(place)].item()}, but {of} has {rows} rows, 0 to {rows - 1} "
            f"({int(outside.sum())} of {index.numel()} values are outside)"
        )
    _remember(index, rows)


def permutation(op: str, name: str, order: Tensor) -> None:
    """Raise ValueError unless the values of ``order``, of any shape, are a permutation of range(order.numel()).

    As :func:`rows_of`.
    """
    if not readable(order) or _remembers(order, "permutation"):
        return
    fault = permutation_fault(order.reshape(1, -1))
    if fault is not None:
        _, at, value = fault
        words = f"{at} is missing, another is there twice" if value is None else f"entry {at} is {value}"
        raise ValueError(f"{op}: {name} must be a permutation of range({order.numel()}), but {words}")
    _remember(order, "permutation")


def permutation_fault(rows: Tensor) -> tuple[int, int, int | None] | None:
    """First reason why the rows of (K, L) integers are not permutations of range(L).

    Returns:
        None if they are; (row, column, value) of the first value outside; (row, a value that is missing, None)
        when all are inside.
    """
    length = rows.shape[1]
    outside = (rows < 0) | (rows >= length)
    visited = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    visited.scatter_(1, rows.clamp(0, max(length - 1, 0)).long(), True)
    if bool(visited.all() & ~outside.any()):
        return None
    if bool(outside.any()):
        row, column = outside.nonzero()[0].tolist()
        return row, column, int(rows[row, column])
    row, missing = visited.logical_not().nonzero()[0].tolist()
    return row, missing, None


def _remembers(t: Tensor, fact: object) -> bool:
    return not t.is_inference() and _known.get(t) == (t._version, fact)


def _remember(t: Tensor, fact: object) -> None:
    if not t.is_inference():  # inference tensors do not count how often they were written to
        _known[t] = t._version, fact
