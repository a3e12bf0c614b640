"""Tables in device memory of what a launch for several tensors needs to know of each; made once for each combination.

A table holds sizes and constants, never addresses: a launch that a CUDA graph recorded finds its tensors whatever else the
process does, and a table that a graph may know is kept for as long as the process lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .kept import kept

SLOTS = 4  # tensors that a launch takes as they are; more are copied side by side first
remembered = kept(4096)  # decorates a function of hashable arguments that makes a table


class Table(NamedTuple):
    """What kernels read of the items of a launch.

    Attributes:
        ints: (items, n) int64.
        floats: (items, m) float32.
        tiles: item of every program, for each of the launches that share the table, int32.
        aligned: whether all rows of all items begin and end at multiples of four values.
    """

    ints: Tensor
    floats: Tensor
    tiles: tuple[Tensor, ...]
    aligned: bool


def table(
    ints: Sequence[tuple[int, ...]],
    floats: Sequence[tuple[float, ...]],
    tiles: Sequence[Sequence[int]],
    device: torch.device,
    aligned: bool = False,
) -> Table:
    """A table on a device.

    Args:
        ints, floats: of every item.
        tiles: for each launch, how many programs every item has.
        device: where.
        aligned: as in :class:`Table`.
    """
    maps = (torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).int() for counts in tiles)
    return Table(
        torch.tensor(ints, dtype=torch.int64).to(device),
        torch.tensor(floats, dtype=torch.float32).to(device),
        tuple(t.to(device) for t in maps),
        aligned,
    )


def side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """All values of contiguous tensors, one after the other; a view where there is only one."""
    return tensors[0].reshape(-1) if len(tensors) == 1 else torch._utils._flatten_dense_tensors(tensors)
