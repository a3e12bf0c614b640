"""What Python decides about a training step: a recording of the step holds while all of it stays as it is."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, type(None))
_HELD = ("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks")
_RATES = (
    "lr",
    "initial_lr",
    "params",
    "capturable",
)  # of optimizer groups: what a recording reads from tensors, or sets


class StepSettings:
    """A snapshot to compare with later: shapes of the batch, settings of the optimizer, switches of all modules.

    Of every module: the values of its plain attributes (numbers, flags, words), which modules, parameters,
    buffers and hooks it has, and which of its parameters are trained. What lives in a tensor is not part of it: a recording reads that anew.

    Args:
        modules: roots by name: the network, teacher and losses.
        batch: tensors by name.
        optimizer: its settings but the learning rate, and whether its moments were loaded anew.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        self._optimizer = optimizer
        self._batch, self._groups = _shapes(batch), _settings(optimizer)
        self._moments = _moments(optimizer)
        self._modules = [(f"{root}.{name}", m) for root, net in modules.items() for name, m in net.named_modules()]
        self._own = [vars(module) for _, module in self._modules]
        self._readers = [(_plain(own), own) for own in self._own]
        self._keys, self._values = [set(own) for own in self._own], self._attributes()
        self._held = [vars(module)[kind] for _, module in self._modules for kind in _HELD]
        self._holding = self._parts()
        parameters = (module._parameters.values() for _, module in self._modules)
        self._parameters = [p for p in itertools.chain.from_iterable(parameters) if p is not None]
        self._trained = self._which_trained()

    def difference(self, batch: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> str | None:
        """What is not as it was, in words; None where nothing changed."""
        if _shapes(batch) != self._batch:
            return f"the batch was {self._batch}, now {_shapes(batch)}"
        if optimizer is not self._optimizer or _settings(optimizer) != self._groups:
            return "settings of the optimizer"
        if _moments(optimizer) is not self._moments:
            return "the optimizer's state was made or loaded"
        same_keys = list(map(operator.eq, map(dict.keys, self._own), self._keys))
        if not all(same_keys):
            return f"attributes of {self._modules[same_keys.index(False)][0]}"
        if (values := self._attributes()) != self._values:
            changed = next(i for i, pair in enumerate(zip(values, self._values, strict=True)) if operator.ne(*pair))
            return f"attributes of {self._modules[changed][0]}"
        held = self._parts()
        if len(held) != len(self._holding) or not all(map(operator.is_, held, self._holding)):
            return "modules, parameters, buffers or hooks"
        return None if self._which_trained() == self._trained else "which parameters are trained"

    # thousands of modules before each replay: loops in Python would cost too much

    def _attributes(self) -> list:
        """Values of the plain attributes of every module."""
        return [read(own) for read, own in self._readers]

    def _parts(self) -> list[object]:
        """Which objects the modules hold."""
        return list(itertools.chain.from_iterable(map(dict.values, self._held)))

    def _which_trained(self) -> list[bool]:
        return list(map(operator.attrgetter("requires_grad"), self._parameters))


def _shapes(batch: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{tuple(t.shape)} {t.dtype}" for name, t in batch.items()}


def _settings(optimizer: torch.optim.Optimizer) -> list[dict]:
    return [{k: v for k, v in group.items() if k not in _RATES} for group in optimizer.param_groups]


def _moments(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """A tensor of the state that is another one once a state was loaded."""
    first = next(iter(optimizer.state.values()), {})
    return next((value for value in first.values() if isinstance(value, Tensor)), None)


def _plain(own: dict) -> operator.itemgetter:
    """What reads a module's plain attributes from its ``vars``."""
    return operator.itemgetter(*(key for key, value in own.items() if isinstance(value, _PLAIN)))
