"""What changes in the course of a quantization-aware training: widths, weights of losses, what is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from basicsr.archs import build_network
from basicsr.utils import get_root_logger
from torch import Tensor

from .. import checkpoints
from ..layers.sites import quantizer_keys, quantizers_of
from . import progressive
from .correction import Correction
from .mambair_model import MambaIRModel
from .oscillation import Oscillation
from .quant_options import QuantTrainOptions


class PhasedTraining(MambaIRModel):
    """A model that carries out ``quant_train: progressive``, ``oscillation`` and ``correction``.

    Each is switched on by its section alone, and a resumed run goes on within it to the same bits.

    Attributes:
        quant: options, set before this class is constructed.
        stage_bits: width of the stage that the network is in; None where it has its own widths.
    """

    quant: QuantTrainOptions
    oscillation: Oscillation | None = None
    correction: Correction | None = None

    def __init__(self, opt: dict) -> None:
        if opt["is_train"] and self.quant.progressive:
            progressive.check(self.quant.progressive, int(opt["train"]["total_iter"]))
            self._own_network = opt["network_g"]
            state = opt["path"].get("resume_state")
            done = checkpoints.load_training_state(state)["iter"] if state else 1
            self.stage_bits = progressive.width_at(self.quant.progressive, done)
            opt = {**opt, "network_g": progressive.widened(opt["network_g"], self.stage_bits)}
        super().__init__(opt)

    def calibrate(self) -> None:
        """Give every quantizer of the bare network its starting values."""
        raise NotImplementedError

    # -- set-up ---------------------------------------------------------------------------------------------------

    def init_training_settings(self) -> None:
        train, options = self.opt["train"], self.quant
        total = int(train["total_iter"])
        if options.correction is not None:
            if not train.get("ema_decay"):
                raise ValueError("quant_train: correction starts from averaged weights; set train: ema_decay")
            self.correction = Correction(options.correction, train["optim_g"]["lr"], options.lr_factor, total)
        if options.oscillation is not None:
            self.oscillation = Oscillation(self.get_bare_model(self.net_g), options.oscillation, total)
        super().init_training_settings()

    def parameter_groups(self) -> list[dict]:
        """Weights, and quantizers with their own learning rate and without weight decay; biases apart for a correction."""
        net = self.get_bare_model(self.net_g)
        quantizers = {id(p) for q in quantizers_of(net).values() for p in q.parameters()}
        biases = {id(p) for name, p in net.named_parameters() if name.endswith("bias")} - quantizers
        (group,) = super().parameter_groups()
        own = [p for p in group["params"] if id(p) in quantizers]
        lr = self.opt["train"]["optim_g"]["lr"] * self.quant.lr_factor
        rest = [p for p in group["params"] if id(p) not in quantizers]
        last = {"params": own, "lr": lr, "weight_decay": 0.0}
        if self.correction is None:
            return [{"params": rest}, last]
        weights = [p for p in rest if id(p) not in biases]
        return [{"params": weights}, {"params": [p for p in rest if id(p) in biases]}, last]

    def setup_schedulers(self) -> None:
        """As BasicSR, which takes the type out of the options, where the next stage looks for it."""
        given = dict(self.opt["train"]["scheduler"])
        super().setup_schedulers()
        self.opt["train"]["scheduler"] = given

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """The schedule's rates, or those of the correction."""
        super().update_learning_rate(current_iter, warmup_iter)
        if self.correction is not None and self.correction.running(current_iter):
            self.correction.set_rates(self.optimizer_g, current_iter)

    # -- steps ----------------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Enter the stage or the correction that begins with this iteration."""
        bits = progressive.width_at(self.quant.progressive, self._iteration)
        if bits != self.stage_bits:
            self.enter_stage(bits)
        super().begin_step()
        if self.correction is not None and self.correction.begins(self._iteration):
            self.check_steps()
            get_root_logger().info(
                f"Iteration {self._iteration}: averaged weights; quantizers and biases alone are trained from here on"
            )
            with torch.no_grad():
                own, averages = (list(n.parameters()) for n in (self.get_bare_model(self.net_g), self.net_g_ema))
                torch._foreach_copy_(own, averages)
        if self.oscillation is not None:
            self.oscillation.begin(self._iteration, self._correcting())

    def end_step(self) -> None:
        super().end_step()
        if self.oscillation is not None and not self._correcting():
            self.oscillation.end(self._iteration)

    def _correcting(self) -> bool:
        return self.correction is not None and self.correction.running(self._iteration)

    def damping(self) -> dict[str, Tensor]:
        """``l_damping``, where it counts."""
        counts = self.oscillation is not None and self.oscillation.active
        return {"l_damping": self.oscillation.damping()} if counts else {}

    def model_ema(self, decay: float = 0.999) -> None:
        """As in every training; in the correction the average is the network itself."""
        super().model_ema(0.0 if self._correcting() else decay)

    def enter_stage(self, bits: int | None) -> None:
        """Build the network anew with other widths: its weights stay, everything else begins as in a new training.

        Quantizers are calibrated; the average starts at the network; the optimizer has no moments; the schedule is where it
        would be.

        Args:
            bits: of the stage; None for the network's own widths.
        """
        self.check_steps()
        self.close_losses()
        before = self.get_bare_model(self.net_g)
        skipped = quantizer_keys(before)
        state = {key: value for key, value in before.state_dict().items() if key not in skipped}
        network = progressive.widened(self._own_network, bits)
        # nothing of this network is in the checkpoint that a resumed run has begun with
        path = {**self.opt["path"], "resume_state": None}
        self.opt, self.stage_bits = {**self.opt, "network_g": network, "path": path}, bits
        shown = "the widths of network_g: quant" if bits is None else f"{bits} bits"
        get_root_logger().info(f"Iteration {self._iteration}: training goes on with {shown}")
        self.net_g = build_network(network).to(self.device)
        self.net_g.load_state_dict({**self.net_g.state_dict(), **state})  # transforms too: they are trained
        self.calibrate()
        self.net_g = self.model_to_device(self.net_g)
        self.optimizers, self.schedulers, self.step_graph = [], [], None
        self.renew_scaler()
        PhasedTraining.init_training_settings(self)
        self.replay_schedule(self._iteration)

    def close_losses(self) -> None:
        """Take hooks off the network that is about to be replaced."""

    # -- files ----------------------------------------------------------------------------------------------------

    def marks(self) -> dict:
        """In an earlier stage a network says so: its grids mean nothing at other widths."""
        return {} if self.stage_bits is None else {"stage_bits": self.stage_bits}

    def _write_state(self, path: str, state: dict) -> None:
        if self.oscillation is not None and "oscillation" not in state:
            state["oscillation"] = self.oscillation.state()
            if state["oscillation"]:
                share = self.oscillation.frozen_share()
                get_root_logger().info(f"Iteration {self._iteration}: {share:.2%} of the watched weights are frozen")
        super()._write_state(path, state)

    def resume_training(self, resume_state: Mapping) -> None:
        if self.oscillation is not None:
            self.oscillation.load_state(resume_state.get("oscillation") or {})
        super().resume_training(resume_state)
