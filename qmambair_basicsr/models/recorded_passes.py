"""Tests on a GPU: passes over tiles of a size that comes again are recorded as CUDA graphs and replayed.

Launching the thousands of kernels of a quantized network takes longer than computing a tile. Every tile is still run by
itself, by the same kernels, so results do not depend on what is recorded.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..archs.routing import EvaluationTapes, evaluation_noise_on
from .cuda_graph import RECORDERS, reason_of

__all__ = ["RecordedPasses", "recorded", "recorded_passes"]

OFTEN = 2  # eager passes over a shape before it is worth a recording
MOST = 4  # recordings kept: each holds the memory of a pass

logger = logging.getLogger(__name__)
_networks: ContextVar[WeakKeyDictionary | None] = ContextVar("recorded_networks", default=None)


@contextlib.contextmanager
def recorded_passes() -> Iterator[None]:
    """Inside, models test with recorded passes where the device has them; a network must not change meanwhile."""
    token = _networks.set(WeakKeyDictionary())
    try:
        yield
    finally:
        _networks.reset(token)


def recorded(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """What runs a network in evaluation without gradients: itself, or inside :func:`recorded_passes` its recordings."""
    known = _networks.get()
    if known is None or torch.is_grad_enabled():
        return net
    if net not in known:
        known[net] = RecordedPasses()
    passes = known[net]
    return lambda x: passes(net, x)


class RecordedPasses:
    """Recordings of one network, one for each shape that comes often; the last few are kept."""

    def __init__(self) -> None:
        self.seen: Counter = Counter()
        self.kept: OrderedDict[tuple, tuple] = OrderedDict()
        self.reason = ""

    def __call__(self, net: nn.Module, x: Tensor) -> Tensor:
        """The network's result; (B, C, H, W)."""
        kind, key = RECORDERS.get(x.device.type), (*x.shape, x.dtype)
        self.seen[key] += 1
        if kind is None or self.reason or self.seen[key] <= OFTEN:
            return net(x)
        if key not in self.kept and not self._record(net, x, key, kind):
            return net(x)
        self.kept.move_to_end(key)
        given, recorder, results = self.kept[key]
        given.copy_(x)
        recorder.replay()
        return results[0].clone()

    def _record(self, net: nn.Module, x: Tensor, key: tuple, kind: type) -> bool:
        while len(self.kept) >= MOST:
            self.kept.popitem(last=False)
        given, recorder, tapes, results = x.clone(), kind(x.device), EvaluationTapes(), []
        try:
            with evaluation_noise_on(tapes):
                with recorder.warm_up():
                    net(given)
                recorder.record(lambda: results.append(net(given)))
        except Exception as error:  # whatever it is, the same pass can be run eagerly
            self.reason = reason_of(error, {"net": net})
            traceback.clear_frames(error.__traceback__)
            logger.warning("passes run eagerly, one kernel after the other: %s", self.reason)
            return False
        self.kept[key] = given, recorder, results
        return True
