"""Outputs of inner modules of a network, chosen by name patterns."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ..strict import nearest


def match_modules(net: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the modules that match any pattern, in the network's order.

    Args:
        net: network.
        patterns: dotted names; ``*``, ``?`` and ``[...]`` match within one part, so ``layers.*`` means the modules
            directly in ``layers`` and none inside these.

    Raises:
        ValueError: a pattern matches nothing.
    """
    names = [name for name, _ in net.named_modules() if name]
    found: set[str] = set()
    for pattern in patterns:
        parts = pattern.split(".")
        hits = [
            name
            for name in names
            if len(split := name.split(".")) == len(parts) and all(map(fnmatchcase, split, parts))
        ]
        if not hits:
            close = nearest(pattern, names, 3, 0.3)
            raise ValueError(
                f"layers: {pattern!r} matches no module of {type(net).__name__}; similar names: "
                f"{', '.join(close) or ', '.join(names[:5])}"
            )
        found.update(hits)
    return [name for name in names if name in found]


class FeatureCapture:
    """Keeps what chosen modules return, from forward to :meth:`take`.

    Args:
        net: bare network (not its DDP wrapper).
        patterns: see :func:`match_modules`.

    Raises:
        ValueError: a pattern matches nothing.
    """

    def __init__(self, net: nn.Module, patterns: Sequence[str]) -> None:
        self.names = match_modules(net, patterns)
        self._features: dict[str, Tensor] = {}
        modules = dict(net.named_modules())
        self._handles = [modules[name].register_forward_hook(self._keep(name)) for name in self.names]

    def _keep(self, name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"layers: {name} returns a {type(output).__name__}; choose modules that return a tensor"
                )
            self._features[name] = output

        return hook

    def take(self) -> list[Tensor]:
        """The features of the last forward, in the network's order, and forget them.

        Raises:
            RuntimeError: a module has not run since the last call.
        """
        idle = [name for name in self.names if name not in self._features]
        if idle:
            raise RuntimeError(f"layers: {idle[0]} did not run in the last forward; choose modules that always do")
        features = [self._features[name] for name in self.names]
        self._features.clear()
        return features

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._features.clear()
