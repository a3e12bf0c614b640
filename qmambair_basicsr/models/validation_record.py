"""Which validation sets have been through at which iteration, so that a resumed run makes up for the one it lost.

BasicSR saves at iteration N, then validates, and resumes at N + 1. A run that is killed in between never validates N, and
the training state of N, written before, knows nothing of N's metrics even when the validation did end. Here the state is
written once more when the last set of its iteration is through, with the metrics and the names of the sets; a resumed
run validates those that are missing before it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from os import path as osp

from basicsr.data import build_dataloader, build_dataset
from basicsr.utils import init_tb_logger
from torch.utils.data import DataLoader


class ValidationRecord:
    """The validation sets of a run, and those that are through at the latest iteration.

    Args:
        opt: the run's options.
    """

    def __init__(self, opt: dict) -> None:
        self.opt = opt
        sections = opt["datasets"].items() if opt.get("val") and "val_freq" in opt["val"] else ()
        self.sections = {section["name"]: section for phase, section in sections if phase.split("_")[0] == "val"}
        self._iteration, self._through = -1, set()

    def add(self, iteration: int, *names: str) -> None:
        """Sets that are through at an iteration."""
        if iteration != self._iteration:
            self._iteration, self._through = iteration, set()
        self._through.update(names)

    def through(self, iteration: int) -> list[str]:
        """Names of the sets that are through at an iteration."""
        return sorted(self._through) if iteration == self._iteration else []

    def missing(self, iteration: int) -> list[str]:
        """Names of the sets that the loop validates at an iteration and that are not through."""
        if not self.sections or iteration % self.opt["val"]["val_freq"]:
            return []
        return [name for name in self.sections if name not in self.through(iteration)]

    def loaders(self, names: list[str]) -> Iterator[DataLoader]:
        """Loaders of these sets, as BasicSR's loop builds them."""
        for name in names:
            section = self.sections[name]
            yield build_dataloader(
                build_dataset(section),
                section,
                num_gpu=self.opt["num_gpu"],
                dist=self.opt["dist"],
                sampler=None,
                seed=self.opt["manual_seed"],
            )

    def tb_logger(self):
        """A TensorBoard writer into the run's folder beside the loop's own; None where the run has none."""
        if not self.opt["logger"].get("use_tb_logger") or "debug" in self.opt["name"]:
            return None
        return init_tb_logger(log_dir=osp.join(self.opt["root_path"], "tb_logger", self.opt["name"]))
