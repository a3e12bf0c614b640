"""Steps of post-training methods that train end to end, recorded once and replayed: thousands of launches become one.

The recording reads images and rates from tensors that stay where they are. Steps run eagerly until one has passed with the
same settings (:class:`StepSettings`), so that kernels are built and moments made; and again after a change, such as the
beginning of SPR2Q's routing, from which on a new recording is made.
"""

from __future__ import annotations

import logging
import traceback

import torch
from torch import Tensor

from ..archs.routing import EvaluationTapes, evaluation_noise_on
from ..ptq.training import OptimizedMethod
from .cuda_graph import RECORDERS, reason_of
from .step_settings import StepSettings
from .turns import ALONE, Turn

LOOK_EVERY = 10  # replays of one stage: modules are looked at that often

logger = logging.getLogger(__name__)


class RecordedSteps:
    """The iterations of a method, replayed where a recording holds, else eager.

    Args:
        method: opened and planned; its optimizer is Adam or AdamW, which becomes the fused one: the others keep numbers on the CPU.
        device: of its network.
        turn: of this thread, which others have while replays run.

    Attributes:
        reason: why all steps are eager; empty where they need not be.
    """

    def __init__(self, method: OptimizedMethod, device: torch.device, turn: Turn = ALONE) -> None:
        self.method, self.device, self.turn, self.reason = method, device, turn, ""
        self._settings: StepSettings | None = None
        self._stage: object = None
        self._unseen = 0  # replays since all settings were looked at
        self._recorded = False
        self._tapes = EvaluationTapes()
        self._losses: dict[str, Tensor] = {}
        kind = RECORDERS.get(device.type)
        own = () if turn.recording is None else (turn.recording,)
        self._recorder = None if kind is None else kind(device, *own)
        if kind is None:
            self._give_up(f"{device.type} devices have no graphs")
        elif len(method.optimizers) != 1 or "fused" not in method.optimizers[0].defaults:
            self._give_up("the method has not one optimizer that can be fused")
        else:
            for group in method.optimizers[0].param_groups:
                group["fused"] = True

    def step(self, iteration: int, images: Tensor) -> dict[str, Tensor]:
        """One iteration.

        Args:
            iteration: from 0 on.
            images: (B, C, H, W), on the device.

        Returns:
            Name -> loss, on the device, which has not been waited for.
        """
        self.method.schedule(iteration)
        if not self.reason and self._holds(self.method.stage(iteration), images):
            if not self._recorded:
                self.turn.take()
                self._record(iteration, images)
            if self._recorded:
                self.turn.give()
                return self._replay(images)
        self.turn.take()
        if self.reason:
            return self.method.update(iteration, images)
        with self._recorder.warm_up(), evaluation_noise_on(self._tapes):
            return self.method.update(iteration, images)

    def _holds(self, stage: object, images: Tensor) -> bool:
        """Whether a step with these settings has been made.

        Looking at thousands of modules takes as long as launching a recording: within a stage that is done now and then.
        """
        if self._recorded and stage is not None and stage == self._stage and images.shape == self._images.shape:
            self._unseen += 1
            if self._unseen < LOOK_EVERY:
                return True
        batch, (optimizer,) = {"images": images}, self.method.optimizers
        self._stage, self._unseen = stage, 0
        if self._settings is not None and self._settings.difference(batch, optimizer) is None:
            return True
        modules = {"net": self.method.net, "full": self.method.full}
        self._settings, self._recorded = StepSettings(modules, batch, optimizer), False
        return False

    def _record(self, iteration: int, images: Tensor) -> None:
        (optimizer,) = self.method.optimizers
        self._images = images.clone()
        # float32 is what CUDA's fused optimizers read; that of CPUs reads the float64 that Python has
        kind = torch.float32 if self.device.type == "cuda" else torch.float64
        self._rates = [torch.zeros((), dtype=kind, device=self.device) for _ in optimizer.param_groups]
        optimizer.zero_grad()
        kept = [(group["lr"], group.get("capturable", False)) for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"], group["capturable"] = rate, True
        try:
            with evaluation_noise_on(self._tapes):
                self._recorder.record(lambda: self._compute(iteration))
        except Exception as error:  # whatever it is, the same step can be run eagerly
            self._give_up(reason_of(error, {"net": self.method.net, "full": self.method.full}))
            traceback.clear_frames(error.__traceback__)  # they hold its memory, and nodes that belong to its stream
            optimizer.zero_grad()
        finally:
            for group, (rate, capturable) in zip(optimizer.param_groups, kept, strict=True):
                group["lr"], group["capturable"] = rate, capturable
        self._recorded = not self.reason

    def _compute(self, iteration: int) -> None:
        self._losses = self.method.update(iteration, self._images)

    def _replay(self, images: Tensor) -> dict[str, Tensor]:
        self._images.copy_(images, non_blocking=True)
        for rate, group in zip(self._rates, self.method.optimizers[0].param_groups, strict=True):
            rate.fill_(group["lr"])
        self._recorder.replay()
        return {name: loss.clone() for name, loss in self._losses.items()}

    def _give_up(self, reason: str) -> None:
        self.reason, self._recorded = reason, False
        logger.warning("steps run eagerly, one kernel after the other: %s", reason)
