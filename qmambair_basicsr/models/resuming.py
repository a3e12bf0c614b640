"""Training states: what is written, what a resumed run takes from one, and the validation that a kill cut off."""

from __future__ import annotations

import warnings
from os import path as osp

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only

from .. import checkpoints
from . import data_order
from .resume_plan import ResumePlan, kinds
from .validation import CheckedValidation
from .validation_record import ValidationRecord


class ResumableTraining(CheckedValidation):
    """A model whose training goes on from a state as if it had never stopped."""

    seed: int
    rank: int
    order: data_order.TrainingOrder | None
    scaler: torch.amp.GradScaler

    def prepare_resuming(self) -> None:
        """Prepares the methods below; called when a model is built."""
        self.validations = ValidationRecord(self.opt) if self.is_train else None
        self._iteration = 0
        self._state: tuple[str, dict] | None = None  # file and content of this iteration's training state

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Write ``ITERATION.state`` atomically: optimizers, schedulers, place in the data, seed, validation."""
        if current_iter == -1:
            return
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "optimizer_kinds": kinds(self.optimizers),
            "scheduler_kinds": kinds(self.schedulers),
            "manual_seed": self.seed,
            "data_order": self.order.position(epoch, current_iter) if self.order else None,
        }
        if self.scaler.is_enabled():
            state["grad_scaler"] = self.scaler.state_dict()
        self._write_state(osp.join(self.opt["path"]["training_states"], f"{current_iter}.state"), state)

    @master_only
    def _write_state(self, path: str, state: dict) -> None:
        """Write a training state with what validation has found so far."""
        # plain numbers: metrics return NumPy scalars, which weights_only refuses
        state["best_metric_results"] = {
            dataset: {name: {**best, "val": float(best["val"])} for name, best in metrics.items()}
            for dataset, metrics in getattr(self, "best_metric_results", {}).items()
        }
        state["validated"] = self.validations.through(state["iter"])
        checkpoints.write_file(state, path)
        self._state = path, state

    def resume_training(self, resume_state: dict) -> None:
        """Continue optimizers, schedulers and the order of the data from a training state.

        Raises:
            checkpoints.CheckpointError: the state belongs to other parameters, or to another kind of optimizer.
        """
        iteration, logger = resume_state["iter"], get_root_logger()
        schedule = self.opt["path"].get("resume_schedule", "state")
        plan = ResumePlan(schedule, self.optimizers, self.schedulers, resume_state)
        differences, ignored = plan.differences(), []
        plan.load()
        if self.optimizers:
            self.optimizer_g = self.optimizers[0]
        if plan.by_option:
            self.replay_schedule(iteration)
            if differences:
                logger.info(f"Resuming at iteration {iteration}, as the option file says: {'; '.join(differences)}")
        else:
            ignored = differences
        self._iteration = iteration
        if self.scaler.is_enabled() and resume_state.get("grad_scaler"):
            self.scaler.load_state_dict(resume_state["grad_scaler"])
        if resume_state.get("manual_seed", self.seed) != self.seed:
            ignored = [*ignored, f"manual_seed: {self.seed} (state: {resume_state['manual_seed']})"]
            self.seed = resume_state["manual_seed"]
        if ignored:
            cure = "" if plan.by_option else "; `path: resume_schedule: option` takes the option file's schedule"
            logger.warning(f"Resuming at iteration {iteration}, these options are ignored: {'; '.join(ignored)}{cure}")
        if resume_state.get("best_metric_results"):
            self.best_metric_results = resume_state["best_metric_results"]
        if self.order is not None:
            reason = self.order.resume(resume_state["epoch"], resume_state["iter"], resume_state.get("data_order"))
            if reason is not None:
                logger.warning(f"The running epoch begins again from its first sample: {reason}")
        path = self.opt["path"].get("resume_state") or ""
        if osp.abspath(osp.dirname(path)) == osp.abspath(self.opt["path"]["training_states"]):
            self._state = path, resume_state
        self.validations.add(iteration, *resume_state.get("validated", ()))
        self.make_up_for_validation(iteration)

    def replay_schedule(self, iteration: int) -> None:
        """Take schedulers from their start to an iteration, warm-up included, as the loop would have."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for i in range(1, iteration + 1):
                self.update_learning_rate(i, warmup_iter=self.opt["train"].get("warmup_iter", -1))

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        """BasicSR's validation on rank 0; behind the last set of a saved iteration its training state is completed."""
        super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        if self.validations is None:
            return
        self.validations.add(current_iter, dataloader.dataset.opt["name"])
        if self._state and self._state[1]["iter"] == current_iter and not self.validations.missing(current_iter):
            self._write_state(*self._state)

    def make_up_for_validation(self, iteration: int) -> None:
        """Validate the sets that a killed run had not been through at the iteration it saved last."""
        missing = self.validations.missing(iteration)
        if not missing or self.rank != 0:
            return
        get_root_logger().info(f"Iteration {iteration} was saved but not validated on {', '.join(missing)}: done now")
        tb_logger = self.validations.tb_logger()
        for loader in self.validations.loaders(missing):
            self.validation(loader, iteration, tb_logger, self.opt["val"].get("save_img", False))
        if tb_logger is not None:
            tb_logger.close()
