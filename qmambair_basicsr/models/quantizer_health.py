"""Health figures of every quantizer of a network, for TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from os import path as osp

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from ..quantizers.base import Quantizer


@contextlib.contextmanager
def recorded(net: nn.Module) -> Iterator[dict[str, dict[str, float]]]:
    """Inside, every forward of ``net`` fills the yielded mapping: quantizer name to its ``health``.

    The figures are those of the last input a quantizer has seen.
    """
    health: dict[str, dict[str, float]] = {}

    def watch(name: str):
        def hook(module: Quantizer, inputs: tuple[Tensor, ...]) -> None:
            with torch.no_grad():
                health[name] = module.health(inputs[0].detach())

        return hook

    handles = [m.register_forward_pre_hook(watch(n)) for n, m in net.named_modules() if isinstance(m, Quantizer)]
    try:
        yield health
    finally:
        for handle in handles:
            handle.remove()


class HealthWriter:
    """Writes health records beside the loop's own TensorBoard events and sums them up in the log.

    Args:
        opt: options of the run; nothing goes to TensorBoard where the loop writes none.
    """

    def __init__(self, opt: dict) -> None:
        self._folder = None
        if opt.get("logger", {}).get("use_tb_logger") and "debug" not in opt["name"]:
            self._folder = osp.join(opt["root_path"], "tb_logger", opt["name"])
        self._writer = None

    def write(self, health: dict[str, dict[str, float]], iteration: int) -> None:
        """Record one step: ``health/FIGURE/LAYER`` in TensorBoard, the two worst layers in the log."""
        if self._folder is not None:
            if self._writer is None:
                # the loop keeps its writer to itself; a second one in the same folder is shown as the same run
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(log_dir=self._folder)
            for layer, figures in health.items():
                for figure, value in figures.items():
                    self._writer.add_scalar(f"health/{figure}/{layer}", value, iteration)
            self._writer.flush()
        worst = []
        for figure, unit in (("clipped", "of values clipped"), ("dead_levels", "dead levels")):
            ranked = [(figures[figure], layer) for layer, figures in health.items() if figure in figures]
            if ranked:
                value, layer = max(ranked)
                worst.append(f"at most {value:.1%} {unit}" if figure == "clipped" else f"at most {value:.0f} {unit}")
                worst[-1] += f" ({layer})"
        if worst:
            get_root_logger().info(f"Quantizer health at iteration {iteration}: {'; '.join(worst)}")
