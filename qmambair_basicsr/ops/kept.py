"""Tensors that are made once and kept, also for as long as a CUDA graph may read them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

_recorded: dict[int, object] = {}


def kept(size: int) -> Callable[[Callable], Callable]:
    """``functools.lru_cache`` for functions of hashable arguments that make tensors.

    What is asked for while a CUDA graph is recorded is never dropped: the graph knows its address for ever.

    Args:
        size: results that are kept, the last ones asked for.
    """

    def decorate(function: Callable) -> Callable:
        cached = functools.lru_cache(size)(function)

        @functools.wraps(function)
        def found(*arguments):
            value = cached(*arguments)
            if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                _recorded[id(value)] = value
            return value

        return found

    return decorate
