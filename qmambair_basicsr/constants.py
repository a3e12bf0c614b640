"""Buffers that a constructor computes and a file only repeats: compared when loaded, never taken over.

Official checkpoints hold such tensors (the index of relative positions, for one). Their values are addresses to the
operators, so a file must not choose them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class ConstantBuffers:
    """Mixin of modules with constant persistent buffers; goes before ``nn.Module`` among the bases.

    ``load_state_dict`` reports a file that holds other values as it reports a wrong shape, strict or not, and the
    module keeps its own.
    """

    def constant_buffers(self) -> dict[str, Tensor]:
        """Name of each constant buffer -> its value, computed anew from the constructor's arguments."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        error_messages = rest[-1]
        for name, wanted in self.constant_buffers().items():
            key = prefix + name
            held = state_dict.get(key)
            if held is None or held.is_meta:
                continue
            fault = difference(key, held, wanted)
            if fault:
                error_messages.append(fault)
            state_dict[key] = wanted.to(held.device)  # load_state_dict works on a copy of the caller's mapping
        super()._load_from_state_dict(state_dict, prefix, *rest)


def constants_of(net: nn.Module) -> dict[str, Tensor]:
    """Every constant of a network by its key in the state_dict, computed anew."""
    return {
        f"{name}.{key}" if name else key: value
        for name, module in net.named_modules()
        if isinstance(module, ConstantBuffers)
        for key, value in module.constant_buffers().items()
    }


def differences(net: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Constants of the network that a state_dict has with other values, in words; missing keys do not count."""
    found = (difference(key, state[key], wanted) for key, wanted in constants_of(net).items() if key in state)
    return [fault for fault in found if fault]


def difference(key: str, held: Tensor, wanted: Tensor) -> str | None:
    """How a tensor differs from a constant: key, position and both values; None where it does not."""
    if held.shape != wanted.shape:
        return f"{key} is a constant of shape {tuple(wanted.shape)}, the file holds {tuple(held.shape)}"
    other = held.detach().cpu() != wanted.cpu()
    if not bool(other.any()):
        return None
    place = other.nonzero()[0].tolist()
    values = [t[tuple(place)].item() for t in (wanted, held)]
    count = f"; {int(other.sum())} of {other.numel()} values differ" if other.numel() > 1 else ""
    return f"{key}{place} is the constant {values[0]}, the file holds {values[1]}{count}"
