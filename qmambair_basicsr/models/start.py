"""``quant_train: start``: a post-training method (``ptq/``) that a quantization-aware training begins with."""

from __future__ import annotations

from collections.abc import Sequence

from basicsr.utils import get_root_logger
from torch import Tensor, nn

from ..ptq import build_method, quantize
from .quant_options import StartOptions

REPORTS = 20  # lines in the log


def apply_method(net: nn.Module, start: StartOptions, batches: Sequence[Tensor]) -> None:
    """Quantize a network with full-precision weights, in place; the log says how far it is.

    Args:
        net: bare network.
        start: see :class:`StartOptions`.
        batches: calibration images, (B, C, H, W) each.

    Raises:
        SpecError: quantizers that the method does not set.
        ValueError: too few iterations.
    """
    name = start.method["type"]
    logger = get_root_logger()

    def report(iteration: int, total: int, losses: dict[str, float]) -> None:
        if iteration % max(1, total // REPORTS) == 0 or iteration == total:
            shown = ", ".join(f"{key} {value:.4g}" for key, value in losses.items())
            logger.info(f"quant_train: start: {name}: {iteration} of {total}, {shown}")

    logger.info(f"quant_train: start: {name} on {len(batches)} batches")
    quantize(net, build_method(start.method, "quant_train.start.method"), batches, start.iterations, report)
