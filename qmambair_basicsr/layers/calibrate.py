"""Setting the initial parameters of all quantizers from data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..quantizers import Quantizer, UncalibratedError


def quantizers_of(net: nn.Module) -> dict[str, Quantizer]:
    """Name -> quantizer, for all quantizers of a network."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Quantizer)}


def quantizer_keys(net: nn.Module) -> set[str]:
    """Keys of the state_dict that belong to quantizers."""
    prefixes = tuple(f"{name}." for name in quantizers_of(net))
    return {key for key in net.state_dict() if key.startswith(prefixes)}


def uncalibrated(net: nn.Module) -> list[str]:
    """Names of the quantizers whose parameters mean nothing yet."""
    return [name for name, quantizer in quantizers_of(net).items() if not quantizer.is_initialized()]


def calibrate(
    net: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> nn.Module:
    """Run batches through the network in evaluation mode and let every quantizer average its initial values.

    Statistics start anew; training flags are restored afterwards. Run it on one process and broadcast, before the
    optimizer, the EMA copy and DDP exist.

    Args:
        net (nn.Module): Network made by ``prepare``.
        batches (Iterable): Calibration batches, at least one.
        forward (Callable | None): ``forward(net, batch)``; default ``net(batch)``.

    Returns:
        nn.Module: The same object.

    Raises:
        ValueError: No batches, or a batch that leads to NaN or infinity at a quantizer.
        UncalibratedError: A quantizer that no batch reached.
    """
    quantizers = quantizers_of(net)
    modes = {module: module.training for module in net.modules()}
    count = 0
    net.eval()
    for quantizer in quantizers.values():
        quantizer.observed.zero_()
        quantizer.calibrating = True
    try:
        with torch.no_grad():
            for batch in batches:
                net(batch) if forward is None else forward(net, batch)
                count += 1
    finally:
        for quantizer in quantizers.values():
            quantizer.calibrating = False
        for module, mode in modes.items():
            module.training = mode
    if count == 0:
        raise ValueError("calibrate: there was no batch; give at least one.")
    missed = uncalibrated(net)
    if missed:
        raise UncalibratedError(f"calibrate: {len(missed)} quantizers were never reached: {', '.join(missed[:10])}.")
    return net
