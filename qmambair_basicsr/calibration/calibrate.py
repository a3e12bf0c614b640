"""Setting the initial parameters of all quantizers from data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..layers.sites import quantizers_of, uncalibrated
from ..quantizers import UncalibratedError


@contextmanager
def evaluation(net: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it was in. Kept values of weights are forgotten."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        net.eval()
        for module, mode in modes.items():
            module.training = mode


def calibrate(
    net: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] | None = None,
    only: Collection[str] | None = None,
) -> nn.Module:
    """Run batches through the network in evaluation mode and set the initial values of every quantizer from them.

    Quantizers that start from a mean (DLS, LSQ ...) quantize from the first batch on, with the values so far, so that the
    layers behind them see what they will see later. Activations whose range is that of all batches (MinMax, DoReFa) are
    collected first and quantized afterwards: the result does not depend on how the images are cut into batches.

    Statistics start anew; training flags are restored afterwards. Run it on one process and broadcast, before the
    optimizer, the EMA copy and DDP exist.

    Args:
        net (nn.Module): Network made by ``prepare``.
        batches (Iterable): Calibration batches, at least one.
        forward (Callable | None): ``forward(net, batch)``; default ``net(batch)``.
        only (Collection[str] | None): Names of the quantizers to initialise; the others quantize as they are. None: all.

    Returns:
        nn.Module: The same object.

    Raises:
        ValueError: No batches, or a batch that leads to NaN or infinity at a quantizer.
        UncalibratedError: A quantizer that no batch reached.
    """
    quantizers = {name: q for name, q in quantizers_of(net).items() if only is None or name in only}
    count = 0
    for quantizer in quantizers.values():
        quantizer.observed.zero_()
        quantizer.calibrating = True
    try:
        with evaluation(net), torch.no_grad():
            for batch in batches:
                net(batch) if forward is None else forward(net, batch)
                count += 1
    finally:
        for quantizer in quantizers.values():
            quantizer.calibrating = False
    if count == 0:
        raise ValueError("calibrate: there was no batch; give at least one.")
    missed = uncalibrated(net)
    if missed:
        raise UncalibratedError(f"calibrate: {len(missed)} quantizers were never reached: {', '.join(missed[:10])}.")
    return net
