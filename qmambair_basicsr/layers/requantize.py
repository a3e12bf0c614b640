"""Training that keeps no quantized activations between the forward and the backward pass: a hook around a network."""

from __future__ import annotations

from contextlib import ExitStack

from torch import nn

from ..ops.again import not_kept
from .sites import quantizers_of


def requantize(net: nn.Module) -> None:
    """Have quantized activations of a network computed again in the backward pass (``ops/again.py``).

    Raises:
        ValueError: a network without quantizers.
    """
    if not quantizers_of(net):
        raise ValueError(f"{type(net).__name__} has no quantizers")
    passes = _Passes()
    net.register_forward_pre_hook(passes.begin)
    net.register_forward_hook(passes.end, always_call=True)


class _Passes:
    """Forward passes in progress, the outermost first."""

    def __init__(self) -> None:
        self._stacks: list[ExitStack] = []

    def __deepcopy__(self, memo: dict) -> _Passes:
        return _Passes()

    def begin(self, net: nn.Module, inputs: tuple) -> None:
        """The hook in front of ``net.forward``."""
        stack = ExitStack()
        if net.training:
            stack.enter_context(not_kept())
        self._stacks.append(stack)

    def end(self, net: nn.Module, inputs: tuple, output: object) -> None:
        """The hook behind it, called after an error too."""
        self._stacks.pop().close()
