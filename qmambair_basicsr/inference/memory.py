"""How large a tile may be, and what running out of memory looks like."""

from __future__ import annotations

import errno
import gc
import math
from pathlib import Path

import torch
from torch import nn

__all__ = ["ended", "free", "tile_side"]

_LARGEST_CPU, _LARGEST_GPU = 256, 768  # pixels; larger tiles are hardly faster
_SMALLEST = 64
_BUDGET_CPU = 640 << 20  # bytes for one tile, however much is free
_COPIES = 16  # maps as wide as the widest layer that are alive at once, about, in a scan over four directions
_MEMINFO = Path("/proc/meminfo")


def tile_side(net: nn.Module, device: torch.device) -> int:
    """Side of the largest square tile that memory is certainly enough for, in pixels.

    Counted as ``_COPIES`` float32 maps as wide as the widest layer; a network that needs more runs into :func:`ended`.
    """
    widest = max((max(_width(module)) for module in net.modules() if _width(module)), default=64)
    if device.type == "cuda":
        budget, largest = torch.cuda.mem_get_info(device)[0] // 2, _LARGEST_GPU
    else:
        budget, largest = min(_BUDGET_CPU, available() // 3), _LARGEST_CPU
    side = math.isqrt(budget // (4 * widest * _COPIES))
    return max(_SMALLEST, min(largest, side // 8 * 8))


def _width(module: nn.Module) -> tuple[int, ...]:
    """Channels that a layer reads and writes at each pixel; of others nothing."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return (module.in_channels, module.out_channels) if isinstance(module, nn.Conv2d) else ()


def available(meminfo: Path = _MEMINFO) -> int:
    """Bytes that can be used before the machine swaps, by the kernel's estimate; 4 GiB where there is none."""
    try:
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return 4 << 30


def ended(err: BaseException) -> bool:
    """Whether an error says that there is no more memory, on the CPU or a GPU."""
    if isinstance(err, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    if isinstance(err, OSError):
        return err.errno == errno.ENOMEM
    text = str(err).lower()
    return any(words in text for words in ("out of memory", "can't allocate memory", "cannot allocate memory"))


def free(device: torch.device) -> None:
    """Give back what can be given back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
