"""Outputs of inner modules of a network, chosen by name patterns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..layers.info import blocks_of, match_modules


class FeatureCapture:
    """Keeps what chosen modules return, from forward to :meth:`take`.

    Args:
        net: bare network (not its DDP wrapper).
        patterns: see :func:`match_modules`; None for the network's own blocks.

    Raises:
        ValueError: a pattern matches nothing.
    """

    def __init__(self, net: nn.Module, patterns: Sequence[str] | None) -> None:
        self.names = list(blocks_of(net)) if patterns is None else match_modules(net, patterns)
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
