"""``PTQModel``: post-training quantization in the stock BasicSR loop."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from .. import checkpoints
from ..inference.tiling import run_tiled
from ..layers.info import size_multiple
from ..layers.transforms import LowRank
from ..ptq.method import require_ordinary
from ..ptq.training import TrainedMethod
from . import non_finite
from .calibration_data import calibration_batches
from .ptq_options import PTQOptions
from .qat_model import QATModel


@MODEL_REGISTRY.register()
class PTQModel(QATModel):
    """Quantizes a full-precision network by the method that ``ptq: method`` names, from a few images.

    A method that has iterations trains in BasicSR's: ``train: total_iter`` says how many. One that has none is done before
    the first; ``total_iter`` must then be 1. What is saved and validated is always an ordinary quantized network, made from
    a copy of the one in training; the training state holds everything else, so a run that was killed goes on to the same bits.
    A test with this model is one with ``QATModel``.

    Args:
        opt: options as BasicSR's ``parse_options`` returns them.

    Raises:
        SpecError: an unknown or impossible option under ``ptq``, named.
        ValueError: a number of iterations that the method cannot have, several processes, weights that are quantized.
        checkpoints.CheckpointError: weights that cannot be loaded.
    """

    trains_itself = True  # the option file has no optimizer, schedule or losses

    def __init__(self, opt: dict) -> None:
        if opt["is_train"]:
            if opt["dist"] or opt["num_gpu"] > 1:
                raise ValueError(
                    "model_type: PTQModel quantizes in one process; run it without --launcher, num_gpu 0 or 1"
                )
            self.options = PTQOptions.from_dict(opt.get("ptq"))
            self.method = self.options.build()
        self._done: tuple[int, nn.Module] | None = None
        super().__init__(opt)

    # -- set-up ---------------------------------------------------------------------------------------------------

    def load_initial_weights(self) -> None:
        """Load full-precision weights and apply the method, or what of it comes before its iterations."""
        if not self.is_train:
            super().load_initial_weights()
            return
        if any(isinstance(module, LowRank) for module in self.net_g.modules()):
            raise ValueError(
                "network_g: quant: transforms: LowRank is trained by QATModel; leave it out (ptq: method: SPR2Q has its own)"
            )
        self.shapes = {key: tensor.shape for key, tensor in self.net_g.state_dict().items()}
        total, name = int(self.opt["train"]["total_iter"]), type(self.method).__name__
        if not self.method.trains and total != 1:
            raise ValueError(f"train: total_iter: {name} has no iterations; write 1, not {total}")
        if self.resumes():
            if self.method.trains:
                self.method.open(self.net_g)
                self.method.plan(total)
            else:
                self.load_network(self.net_g, self.opt["path"]["pretrain_network_g"])
            return
        path = self.opt["path"].get("pretrain_network_g")
        if path is None:
            raise ValueError("path: pretrain_network_g must name the full-precision weights that are to be quantized")
        state = checkpoints.select_params(
            checkpoints.read_file(path), path, self.opt["path"].get("param_key_g", "params")
        )
        get_root_logger().info(f"Loading full-precision weights from {path}")
        checkpoints.load_fp_state(self.net_g, state, path)
        batches = list(self._calibration())
        get_root_logger().info(f"{name}: {len(batches)} batches of {len(batches[0])} images")
        if self.method.trains:
            self.method.open(self.net_g)
            self.method.plan(total)
            self.method.calibrate(batches)
        else:
            self.method.apply(self.net_g.eval(), batches)
            require_ordinary(self.net_g, name, self.shapes)
        self.save_network(self.net_g, "net_g", "calibrated")

    def _calibration(self):
        options, data = self.options.calibration, self.opt["datasets"]["train"]
        size = options.batch_size or data["batch_size_per_gpu"]
        seed = options.seed if options.seed >= 0 else self.seed
        for batch in calibration_batches(data, options.batches, size, seed):
            yield batch.to(self.device)

    def init_training_settings(self) -> None:
        """Nothing but the method trains."""
        self.net_g.eval()
        self.ema_decay, self.teacher, self.health = 0, None, None

    # -- iterations -----------------------------------------------------------------------------------------------

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration of the method.

        Raises:
            non_finite.NonFiniteError: a loss is NaN or infinite.
        """
        self._iteration, self._state, self._done = current_iter, None, None
        self.log_dict = OrderedDict()
        if not self.method.trains:
            return
        with self.step_randomness():
            losses = self.method.step(current_iter - 1, self.lq)
        self.log_dict.update(losses)
        bad = [name for name, loss in losses.items() if loss != loss or loss in (float("inf"), float("-inf"))]
        if bad:
            raise non_finite.NonFiniteError(
                f"quantization stopped at iteration {current_iter}: {bad[0]} is {losses[bad[0]]}. "
                f"{non_finite.last_checkpoint(self.opt['path'].get('models'))}"
            )

    def get_current_learning_rate(self) -> list[float]:
        """Rates of the method's optimizers, for the log."""
        return self.method.learning_rates() if self.method.trains else [0.0]

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """The method has its own schedule."""

    def ordinary(self) -> nn.Module:
        """The quantized network as it is now, without anything of the method; made once an iteration."""
        if not (self.is_train and self.method.trains):
            return self.net_g
        if self._done is None or self._done[0] != self._iteration:
            net = copy.deepcopy(self.net_g)
            self.method.finish(net)
            require_ordinary(net, type(self.method).__name__, self.shapes)
            self._done = self._iteration, net
        return self._done[1]

    def test(self) -> None:
        """Restore ``self.lq`` tile by tile into ``self.output`` with the network that would be saved."""
        net = self.ordinary().eval()
        with torch.no_grad():
            self.output = run_tiled(net, self.lq, self.tile_plan, size_multiple(net))

    # -- files ----------------------------------------------------------------------------------------------------

    def save_network(self, net, net_label: str, current_iter: int, param_key="params") -> None:
        """Write the ordinary quantized network."""
        super().save_network(self.ordinary(), net_label, current_iter, param_key)

    def _write_state(self, path: str, state: dict) -> None:
        if self.method.trains and "ptq" not in state:
            state["ptq"] = {
                "full": cpu_state(self.method.full),
                "network": cpu_state(self.net_g),
                "method": self.method.training_state(),
                "made_by": self._made_by(),
            }
        super()._write_state(path, state)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Go on with the network, and with what the method keeps, of a training state.

        Raises:
            checkpoints.CheckpointError: the state is of another method, network or ``quant:`` block.
        """
        kept, where = resume_state.get("ptq"), f"the training state of iteration {resume_state['iter']}"
        self._require_same(kept or {}, where)
        if self.method.trains:
            if kept is None:
                raise checkpoints.CheckpointError("the training state was not written by PTQModel; start the run anew")
            checkpoints.load_state(self.method.full, kept["full"], where)
            checkpoints.load_state(self.net_g, kept["network"], where)
            method: TrainedMethod = self.method
            method.load_training_state(kept["method"])
        super().resume_training(resume_state)

    def _made_by(self) -> dict[str, Any]:
        """What a training state belongs to, as plain data."""
        method = {"type": type(self.method).__name__, **self.method.settings}
        # through JSON: the reader's mappings have an order, which means nothing
        return json.loads(json.dumps({"method": method, "quant": self.opt["network_g"]["quant"]}))

    def _require_same(self, kept: Mapping[str, Any], where: str) -> None:
        """Refuse a state of another method or of other quantizers, and say which options of the method are others."""
        before, now = kept.get("made_by"), self._made_by()
        if kept and not self.method.trains:
            raise checkpoints.CheckpointError(f"{where} is of a method that trains, {now['method']['type']} does not")
        if before is None:
            return
        if before["method"]["type"] != now["method"]["type"]:
            raise checkpoints.CheckpointError(
                f"{where} is of {before['method']['type']}, not of {now['method']['type']}; start the run anew"
            )
        if before["quant"] != now["quant"]:
            raise checkpoints.CheckpointError(f"{where} is of a network with another quant: block; start the run anew")
        changed = [key for key, value in now["method"].items() if before["method"].get(key) != value]
        for key in changed:
            get_root_logger().warning(
                f"ptq: method: {key} is now {now['method'][key]!r}, and was {before['method'].get(key)!r} up to here"
            )


def cpu_state(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, detached, on the CPU."""
    return {key: tensor.detach().cpu().clone() for key, tensor in net.state_dict().items()}
