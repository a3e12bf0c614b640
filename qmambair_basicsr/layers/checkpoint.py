"""Loading full-precision weights into a quantized network, without room for silent mismatches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .calibrate import quantizers_of


class CheckpointMismatchError(ValueError):
    """A checkpoint does not fit the network; the message lists the keys."""


def quantizer_keys(net: nn.Module) -> set[str]:
    """Keys of the state_dict that belong to quantizers."""
    prefixes = tuple(f"{name}." for name in quantizers_of(net))
    return {key for key in net.state_dict() if key.startswith(prefixes)}


def load_fp_state(net: nn.Module, state: Mapping[str, torch.Tensor]) -> list[str]:
    """Load a full-precision state_dict into a network made by ``prepare``.

    Exactly the quantizer entries may be missing. Nothing is loaded if anything else is wrong.

    Args:
        net (nn.Module): Quantized (or full-precision) network.
        state (Mapping[str, Tensor]): state_dict of the full-precision network.

    Returns:
        list[str]: The missing quantizer keys, sorted.

    Raises:
        CheckpointMismatchError: Missing, unexpected (quantizer entries included) or mis-shaped keys, all listed.
    """
    own, ours = net.state_dict(), quantizer_keys(net)
    problems = []
    missing = sorted(own.keys() - state.keys() - ours)
    if missing:
        problems.append(f"missing: {', '.join(missing)}")
    unexpected = sorted(state.keys() - own.keys())
    if unexpected:
        problems.append(f"unexpected: {', '.join(unexpected)}")
    quantized = sorted(state.keys() & ours)
    if quantized:
        problems.append(f"quantizer entries (this is not a full-precision checkpoint): {', '.join(quantized)}")
    shapes = [
        f"{key} is {tuple(state[key].shape)} in the checkpoint, {tuple(own[key].shape)} in the network"
        for key in sorted((state.keys() & own.keys()) - ours)
        if state[key].shape != own[key].shape
    ]
    if shapes:
        problems.append(f"mis-shaped: {'; '.join(shapes)}")
    if problems:
        raise CheckpointMismatchError(f"the checkpoint does not fit {type(net).__name__}.\n  " + "\n  ".join(problems))
    net.load_state_dict(dict(state), strict=False)
    return sorted(ours)
