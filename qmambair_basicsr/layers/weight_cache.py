"""Fake-quantized weights, computed once while nothing they depend on changes."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from ..quantizers.base import Quantizer


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
        self._key, self._value = None, None

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
            self.clear()
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
