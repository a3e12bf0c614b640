"""``train: cuda_graph``: the training step recorded once, then replayed with one launch instead of thousands.

The recording holds forward, backward, the norm and clipping of gradients, the check for NaN and the optimizer. It reads what
differs from step to step from tensors that stay where they are: the batch, the learning rates, the number of the iteration and
the noise that a teacher shares. Other draws come from the device's generator, which a replay starts from the seed of its
step as it does eagerly. Average, schedule and validation stay outside.

Steps run eagerly until what Python decides (:class:`StepSettings`) has been the same for a few of them, so that quantizers
are initialised and every kernel is built; and again after a change, from which on a new recording is made.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from basicsr.utils import get_root_logger
from torch import Tensor

from ..archs.routing import NoiseTape, taped_noise
from . import non_finite
from .cuda_graph import RECORDERS, reason_of
from .step_settings import StepSettings

if TYPE_CHECKING:
    from .training_step import SteppedTraining

WARM_UP = 3  # eager steps with the same settings in front of a recording
CHECK_EVERY = 10  # steps after which the device is asked whether it met NaN or infinity
RESTLESS = 20  # eager steps in a row after which the settings are said to change too often


class StepGraph:
    """Runs a model's training steps, from a recording where one holds.

    NaN and infinity are looked for on the device in every step; the first one stops all updates of weights and moments, those
    of its own step included. :meth:`check` finds it at most ``CHECK_EVERY`` steps later and runs that step again eagerly, on
    the same weights and batch, which raises the error with its place.

    Args:
        model: whose ``eager_step`` and ``accumulated_gradients`` are used.
    """

    def __init__(self, model: SteppedTraining) -> None:
        self.model, self.device = model, model.device
        self._settings: StepSettings | None = None
        self._steady = self._eager_in_a_row = 0
        self._recorded = self._given_up = self._restless = False
        self._unchecked: OrderedDict[int, dict[str, Tensor]] = OrderedDict()  # iteration -> batch, of replayed steps
        self._tape = NoiseTape()
        self._inputs: dict[str, Tensor] = {}
        self._rates: list[Tensor] = []
        self._losses: OrderedDict[str, Tensor] = OrderedDict()
        self._iteration = torch.zeros((), dtype=torch.int64, device=self.device)
        self._first_bad = torch.zeros((), dtype=torch.int64, device=self.device)
        kind = RECORDERS.get(self.device.type)
        self._recorder = None if kind is None else kind(self.device)
        if kind is None:
            self._give_up(f"{self.device.type} devices have no graphs")

    def step(self) -> None:
        """One training step on the model's current batch.

        Raises:
            non_finite.NonFiniteError: a loss or a gradient of this step, or of one since the last check, is NaN or infinite.
        """
        model = self.model
        if self._given_up or model.watched_step():
            self._run_eagerly()
        elif self._holds() or self._record():
            self._replay()
        else:
            self._run_eagerly(warm_up=not self._given_up)

    def check(self) -> None:
        """Ask the device whether a replayed step met NaN or infinity; this waits for it.

        Raises:
            non_finite.NonFiniteError: naming the first such iteration; the weights are as before it.
        """
        if not self._unchecked:
            return
        bad, batches = int(self._first_bad), self._unchecked
        self._unchecked = OrderedDict()
        if not bad:
            return
        self._first_bad.zero_()
        model = self.model
        model.put_batch(batches[bad])
        model._iteration = bad
        model.eager_step()
        raise non_finite.NonFiniteError(
            f"training stopped at iteration {bad}: its recorded step met NaN or infinity, but the same step run again did "
            f"not. {non_finite.last_checkpoint(model.opt['path'].get('models'))}"
        )

    # -- which way --------------------------------------------------------------------------------------------------

    def _holds(self) -> bool:
        """Whether there is a recording and everything it took for constant still is."""
        model = self.model
        changed = None if self._settings is None else self._settings.difference(model.batch(), model.optimizer_g)
        if self._settings is not None and changed is None:
            return self._recorded
        if self._recorded:
            get_root_logger().info(
                f"train: cuda_graph: iteration {model._iteration}: recorded anew, changed: {changed}"
            )
        elif self._eager_in_a_row >= RESTLESS and not self._restless:
            self._restless = True
            get_root_logger().warning(
                f"train: cuda_graph: steps run eagerly as long as something changes from step to step: {changed}"
            )
        self._settings = StepSettings(model.step_modules(), model.batch(), model.optimizer_g)
        self._steady, self._recorded = 0, False
        return False

    def _run_eagerly(self, warm_up: bool = False) -> None:
        self.check()  # a stop that nobody has seen yet would not stop this step
        if not warm_up:
            self.model.eager_step()
            return
        with self._recorder.warm_up(), taped_noise(self._tape):
            self.model.eager_step()
        self._steady += 1
        self._eager_in_a_row += 1

    # -- recording --------------------------------------------------------------------------------------------------

    def _record(self) -> bool:
        """Record the step, if it is time to; whether that succeeded."""
        model = self.model
        if self._steady < WARM_UP:
            return False
        self.check()
        self._inputs = {name: tensor.clone() for name, tensor in model.batch().items()}
        # float32 is what CUDA's fused optimizers read; that of CPUs reads the float64 that Python has
        kind = torch.float32 if self.device.type == "cuda" else torch.float64
        self._rates = [torch.zeros((), dtype=kind, device=self.device) for _ in model.optimizer_g.param_groups]
        model.optimizer_g.zero_grad()
        model.output = None  # it holds the graph of the last step, with nodes that belong to another stream
        given, scaler = model.batch(), model.scaler.state_dict()
        model.put_batch(self._inputs)
        try:
            self._check_optimizer()
            with taped_noise(self._tape), model.step_randomness():
                self._recorder.record(self._computation)
        except Exception as error:  # whatever it is, the same step can be run eagerly
            self._give_up(reason_of(error, model.step_modules()))
            traceback.clear_frames(error.__traceback__)  # they hold its memory, and nodes that belong to its stream
            model.output = None
            model.renew_scaler(scaler)
            model.optimizer_g.zero_grad()
        finally:
            model.put_batch(given)
        if self._given_up:
            return False
        model.output = model.output.detach()
        self._recorded, self._eager_in_a_row = True, 0
        get_root_logger().info(f"train: cuda_graph: the step of iteration {model._iteration} is recorded")
        return True

    def _check_optimizer(self) -> None:
        if not all(group.get("fused") for group in self.model.optimizer_g.param_groups):
            raise RuntimeError("the optimizer's step is not a fused one (train: optim_g: fused: true)")

    def _computation(self) -> None:
        """What is recorded: from the batch in ``_inputs`` to the updated weights, without asking the device anything."""
        model, optimizer, scaler = self.model, self.model.optimizer_g, self.model.scaler
        losses = model.accumulated_gradients(check=False)
        bad = torch.isfinite(sum(losses.values())).logical_not()
        if scaler.is_enabled():  # it leaves out steps with a NaN among the gradients
            stopped = (self._first_bad > 0).logical_or(bad)
            gradient = next(p.grad for p in model.net_g.parameters() if p.grad is not None)
            gradient.add_(torch.where(stopped, torch.nan, 0.0))
        scaler.unscale_(optimizer)
        overflow = torch.isfinite(non_finite.total_norm(model.net_g.parameters())).logical_not()
        if scaler.is_enabled():
            overflow = overflow.logical_and(scaler.scale(torch.ones_like(overflow, dtype=torch.float32)) <= 1)
        bad = bad.logical_or(overflow).logical_and(self._first_bad == 0)
        self._first_bad.copy_(torch.where(bad, self._iteration, self._first_bad))
        model.clip_gradients()
        with self._optimizer_on_tensors():
            scaler.step(optimizer)
        scaler.update()
        self._losses = OrderedDict((name, value.detach()) for name, value in losses.items())

    @contextlib.contextmanager
    def _optimizer_on_tensors(self) -> Iterator[None]:
        """Inside, the optimizer reads its learning rates, and whether to do nothing, from tensors."""
        optimizer = self.model.optimizer_g
        kept = [(group["lr"], group.get("capturable", False)) for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"], group["capturable"] = rate, True
        if not self.model.scaler.is_enabled():  # which sets it itself
            optimizer.found_inf = (self._first_bad > 0).to(torch.float32)
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(optimizer.param_groups, kept, strict=True):
                group["lr"], group["capturable"] = rate, capturable
            vars(optimizer).pop("found_inf", None)

    def _replay(self) -> None:
        model = self.model
        batch = model.batch()
        for name, tensor in self._inputs.items():
            tensor.copy_(batch[name], non_blocking=True)
        for rate, group in zip(self._rates, model.optimizer_g.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._iteration.fill_(model._iteration)
        with taped_noise(self._tape), model.step_randomness():
            self._recorder.replay()
        model.set_losses(self._losses)
        self._unchecked[model._iteration] = batch
        if len(self._unchecked) >= CHECK_EVERY:
            self.check()

    def _give_up(self, reason: str) -> None:
        self._given_up, self._recorded = True, False
        get_root_logger().warning(f"train: cuda_graph: steps run eagerly, one kernel after the other: {reason}")
