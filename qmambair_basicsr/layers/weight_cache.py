"""Fake-quantized weights, computed once while nothing they depend on changes."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from ..quantizers.base import Quantizer


class Loan:
    """The fake-quantized value of a parameter for one forward pass of its network.

    It has a node in the graph of that pass, so it is used there and, where a part of the pass is repeated for its backward
    pass (``torch.utils.checkpoint``), in the repetition: but only if it was used with gradients the first time.

    Args:
        tensor: The value.
    """

    def __init__(self, tensor: torch.Tensor):
        self._tensor, self._used, self.open = tensor, False, True

    def value(self) -> torch.Tensor | None:
        """The tensor; None where it does not count."""
        if not torch.is_grad_enabled():
            return None
        if self.open:
            self._used = True
            return self._tensor
        return self._tensor if self._used and torch._C._current_graph_task_id() != -1 else None


class WeightCache:
    """The last fake-quantized value of one parameter.

    Evaluation calls a network once per tile with the same weights. The value is reused when gradients are off, the
    quantizer is in eval mode and not being calibrated, and neither the parameter nor the parameters and buffers of the
    quantizer, and of the transform in front of it, changed. A change is seen through storage address and torch's version counter; writing through
    ``tensor.data`` bypasses that counter, so the owner also calls :meth:`clear` whenever ``train()`` or ``eval()`` is
    called (BasicSR calls ``eval()`` before each test).
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Forget the value."""
        self._key, self._value, self._loan = None, None, None

    def lend(self, loan: Loan | None) -> None:
        """Have calls with gradients return a value that was worked out for them; None ends that."""
        self._loan = loan

    @property
    def lent(self) -> torch.Tensor | None:
        """The value that was lent, where it is the one to use."""
        return None if self._loan is None else self._loan.value()

    def __deepcopy__(self, memo: dict) -> WeightCache:
        return WeightCache()

    def __reduce__(self):
        return WeightCache, ()

    def __call__(
        self,
        quantizer: Quantizer,
        tensor: torch.Tensor,
        source: torch.Tensor | None = None,
        transform: nn.Module | None = None,
    ) -> torch.Tensor:
        """Quantize ``tensor``, or return the last result.

        Args:
            quantizer (Quantizer): What to apply.
            tensor (Tensor): Its input.
            source (Tensor | None): The parameter that ``tensor`` is computed from, if it is not ``tensor`` itself.
            transform (nn.Module | None): What ``tensor`` goes through first, see ``transforms.py``.

        Returns:
            Tensor: ``quantizer(tensor)``.
        """
        if torch.is_grad_enabled() or quantizer.training or quantizer.calibrating:
            lent = None if transform is not None or quantizer.calibrating else self.lent
            if lent is not None:
                return lent
            self._key, self._value = None, None
            return quantizer(tensor if transform is None else transform.on_weight(tensor))
        states = (tensor if source is None else source, *quantizer.parameters(), *quantizer.buffers())
        if transform is not None:
            states = (*states, *transform.parameters(), *transform.buffers())
        if any(t.is_inference() for t in states):  # these carry no version counter
            return quantizer(tensor if transform is None else transform.on_weight(tensor))
        key = tuple(itertools.chain.from_iterable((t.data_ptr(), t._version, t.dtype) for t in states))
        if key != self._key:
            self._key, self._value = key, quantizer(tensor if transform is None else transform.on_weight(tensor))
        return self._value
