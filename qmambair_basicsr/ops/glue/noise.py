"""The numbers of ``torch.rand`` on a CPU, bit by bit the same, several times as fast: torch makes them one by one."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..native_library import address, function

_WORDS = 627
"""64-bit words of a generator's state that the kernel knows: the layout that torch has kept since generators are saved."""


def uniform(generator: torch.Generator, out: Tensor) -> Tensor:
    """The next numbers of a generator, as ``torch.rand(out.shape, generator=generator)`` gives them.

    Args:
        generator: on the CPU; goes on behind them.
        out: contiguous float32, filled with numbers in [0, 1).

    Raises:
        ValueError: a generator or a tensor of another kind.
    """
    if generator.device.type != "cpu" or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(
            f"uniform: needs a generator on the CPU and contiguous float32, got {generator.device} and {out.dtype} "
            f"with strides {out.stride()}"
        )
    if not out.numel():
        return out
    if not knows_torch():
        return out.uniform_(generator=generator)
    _fill(generator, out)
    return out


def _fill(generator: torch.Generator, out: Tensor) -> None:
    state = generator.get_state()
    function("qm_glue_uniform", "ppi")(address(state), address(out), out.numel())
    generator.set_state(state)


@cache
def knows_torch() -> bool:
    """Whether this version of torch makes its numbers as the kernel does: tried once, over two states of the generator."""
    wanted, got = (torch.Generator().manual_seed(5) for _ in range(2))
    if wanted.get_state().numel() < 8 * _WORDS:
        return False
    for count in (3, 1301):
        out = torch.empty(count)
        try:
            _fill(got, out)
        except ValueError:
            return False
        if not torch.equal(torch.rand(count, generator=wanted), out):
            return False
    return torch.equal(wanted.get_state(), got.get_state())
