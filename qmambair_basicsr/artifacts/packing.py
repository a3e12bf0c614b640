"""Codes of 1 to 8 bits in bytes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes in [-2^(bits-1), 2^(bits-1) - 1] into bytes, uint8 (ceil(numel * bits / 8),).

    Raises:
        ValueError: a code outside that range, or a width outside 1 to 8.
    """
    _require_width(bits)
    if codes.numel() and (codes.min().item() < -(2 ** (bits - 1)) or codes.max().item() >= 2 ** (bits - 1)):
        raise ValueError(f"codes from {codes.min().item()} to {codes.max().item()} do not fit in {bits} bits")
    unsigned = (codes.flatten().to(torch.int16).cpu() + 2 ** (bits - 1)).numpy().astype(np.uint8)
    planes = (unsigned[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(planes, bitorder="little"))


def _require_width(bits: int) -> None:
    if type(bits) is not int or not 1 <= bits <= 8:
        raise ValueError(f"codes have 1 to 8 bits, got {bits!r}")


def unpack_codes(packed: Tensor, bits: int, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Inverse of :func:`pack_codes`: int8 codes of the given shape.

    Raises:
        ValueError: the number of bytes does not fit the shape, or a width outside 1 to 8.
    """
    _require_width(bits)
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() != -(-count * bits // 8):
        raise ValueError(f"{packed.numel()} bytes cannot hold {count} codes of {bits} bits")
    planes = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    unsigned = (planes << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.int16)
    return torch.from_numpy(unsigned - 2 ** (bits - 1)).to(torch.int8).view(shape)
