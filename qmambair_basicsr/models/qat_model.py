"""``QATModel``: quantization-aware training in the stock BasicSR loop."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator

import torch
from basicsr.archs import build_network
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from .. import checkpoints
from ..archs.routing import shared_routing_noise
from ..calibration import calibrate
from ..layers.info import full_precision_twin
from ..layers.sites import quantizer_keys, quantizers_of, uncalibrated
from ..losses.feature_capture import FeatureCapture
from ..quantizers import UncalibratedError
from . import scheduled_loss
from .calibration_data import calibration_batches
from .phased_training import PhasedTraining
from .quant_options import QuantTrainOptions, StartOptions, TeacherOptions
from .quantizer_health import HealthWriter, recorded
from .start import apply_method


@MODEL_REGISTRY.register()
class QATModel(PhasedTraining):
    """Trains or tests a network that ``prepare`` has quantized.

    ``path: pretrain_network_g`` takes a full-precision checkpoint (exactly the quantizers' keys are missing) or one
    of the quantized network. From full precision, training begins by calibrating every quantizer on the first
    training batches, or by ``quant_train: start``: before optimizer, average and DDP exist, on rank 0, then broadcast. The
    calibrated network is saved as ``net_g_calibrated.pth``. Options: ``quant_train:``, see this folder's README.

    Args:
        opt: options as BasicSR's ``parse_options`` returns them.

    Raises:
        ValueError: an unknown or impossible option, named.
        checkpoints.CheckpointError: weights that cannot be loaded.
        UncalibratedError: a network is to be tested whose quantizers were never calibrated.
    """

    def __init__(self, opt: dict) -> None:
        self.quant = QuantTrainOptions.from_dict(opt.get("quant_train"))
        super().__init__(opt)

    # -- weights and calibration ----------------------------------------------------------------------------------

    def load_initial_weights(self) -> None:
        """Load full-precision or quantized weights, then calibrate what is not calibrated yet.

        Raises:
            UncalibratedError: in a test, naming the quantizers.
        """
        quantizers = quantizers_of(self.net_g)
        if not quantizers:
            kind = self.opt["network_g"]["type"]
            raise ValueError(f"model_type: QATModel needs a quantized network; {kind} has no quantizer (network_g)")
        super().load_initial_weights()
        names = uncalibrated(self.net_g)
        if not names:
            return
        if not self.is_train:
            listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise UncalibratedError(
                f"{len(names)} of {len(quantizers)} quantizers were never calibrated: {listed}. A full-precision "
                "checkpoint cannot be tested as a quantized network: train it first; the run's models folder then "
                "also holds net_g_calibrated.pth, the network after calibration only"
            )
        self.calibrate(self.quant.start)

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"):
        """As ``MambaIRModel``; all quantizer keys together may be missing, which a full-precision file shows."""
        net = self.get_bare_model(net)
        state = checkpoints.select_params(checkpoints.read_file(load_path), load_path, param_key, self.stage_bits)
        if quantizer_keys(net).isdisjoint(state):
            get_root_logger().info(f"Loading full-precision weights from {load_path}, key {param_key}")
            checkpoints.load_fp_state(net, state, load_path)
        else:
            super().load_network(net, load_path, strict, param_key)

    def matching_state(self, net: nn.Module, state: dict, load_path: str) -> dict:
        """A quantized file's state, for the sites whose quantizers are others now (``calibration: changed``).

        A resumed run has quantizers of its own kinds in its file; others there are a changed option file.
        """
        changes = self.is_train and self.quant.calibration.changed and not self.resumes()
        return checkpoints.with_own_quantizers(net, state, load_path) if changes else state

    def calibrate(self, start: StartOptions | None = None) -> None:
        """Initialise the quantizers on rank 0, save the result, and give it to the other ranks.

        Args:
            start: a post-training method that does it; None for the quantizers' own initial values.
        """
        options, data = self.quant.calibration, self.opt["datasets"]["train"]
        logger = get_root_logger()
        if self.rank == 0:
            size = options.batch_size or data["batch_size_per_gpu"]
            seed = options.seed if options.seed >= 0 else self.seed
            logger.info(f"Calibrating on {options.batches} batches of {size}, seed {seed}")
            batches = calibration_batches(data, options.batches, size, seed)
            batches = (batch.to(self.device) for batch in batches)
            if start is None:
                calibrate(self.net_g, batches, only=uncalibrated(self.net_g))
            else:
                apply_method(self.net_g, start, list(batches))
        if self.opt["dist"]:
            for tensor in (*self.net_g.parameters(), *self.net_g.buffers()):
                torch.distributed.broadcast(tensor.detach(), src=0)
        self.save_network(self.net_g, "net_g", "calibrated")

    # -- training -------------------------------------------------------------------------------------------------

    def init_training_settings(self) -> None:
        """As ``MambaIRModel``, with the teacher built first because losses need it."""
        self.teacher = None if self.quant.teacher is None else self.build_teacher(self.quant.teacher)
        self.health = HealthWriter(self.opt) if self.quant.health_freq and self.rank == 0 else None
        super().init_training_settings()

    def build_teacher(self, options: TeacherOptions) -> nn.Module:
        """The frozen full-precision network, in eval mode."""
        section = options.network
        if section is None:
            section = {key: value for key, value in self.opt["network_g"].items() if key != "quant"}
            section["type"] = full_precision_twin(section["type"])
            if section["type"] is None:
                raise ValueError(
                    f"quant_train: teacher: {self.opt['network_g']['type']} has no full-precision twin; give the "
                    "teacher's network under `network:`"
                )
        teacher = build_network(section).to(self.device)
        super().load_network(teacher, options.path, True, options.param_key)
        return teacher.requires_grad_(False).eval()

    def build_losses(self) -> None:
        """Losses against the ground truth (``pixel_opt``, ``perceptual_opt``) and against the teacher.

        Raises:
            ValueError: no loss at all, or a teacher loss without a teacher.
        """
        train = self.opt["train"]
        self.cri_distill = self.build_loss("distill_opt")
        self.cri_feature = self.build_loss("feature_opt")
        wanted = [key for key in ("distill_opt", "feature_opt") if train.get(key)]
        if wanted and self.teacher is None:
            raise ValueError(f"train: {wanted[0]} compares with a teacher; set quant_train: teacher: path")
        if self.teacher is not None and not wanted:
            raise ValueError("quant_train: teacher is set but train has neither distill_opt nor feature_opt")
        if self.cri_feature is not None:
            if not self.opt["dist"] and self.opt["num_gpu"] > 1:
                raise ValueError("train: feature_opt needs one process per GPU: start with --launcher pytorch")
            self.features = FeatureCapture(self.get_bare_model(self.net_g), self.cri_feature.layers)
            self.teacher_features = FeatureCapture(self.teacher, self.cri_feature.layers)
        super().build_losses()

    def has_loss(self) -> bool:
        """Teacher losses alone are enough."""
        return super().has_loss() or self.cri_distill is not None or self.cri_feature is not None

    @contextlib.contextmanager
    def step_randomness(self) -> Iterator[None]:
        """As ``MambaIRModel``; with a teacher, both networks also route MambaIRv2's tokens by the same noise."""
        with super().step_randomness(), contextlib.ExitStack() as stack:
            if self.teacher is not None:
                stack.enter_context(shared_routing_noise(int(torch.randint(2**31, ()))))
            yield

    def watched_step(self) -> bool:
        """Steps whose quantizers report their health."""
        return self.health is not None and self._iteration % self.quant.health_freq == 0

    def compute_losses(self) -> OrderedDict[str, Tensor]:
        """Ground-truth losses, ``l_distill`` and ``l_feature`` against the teacher, ``l_damping`` of oscillations."""
        if self.watched_step():
            with recorded(self.get_bare_model(self.net_g)) as health:
                losses = super().compute_losses()
            self.health.write(health, self._iteration)
        else:
            losses = super().compute_losses()
        if self.teacher is not None:
            losses.update(self.teacher_losses())
        losses.update(self.damping())
        return losses

    def teacher_losses(self) -> OrderedDict[str, Tensor]:
        """``l_distill`` and ``l_feature`` of the current output; the teacher runs where one of them counts."""
        losses: OrderedDict[str, Tensor] = OrderedDict()
        distill, feature = map(scheduled_loss.active, (self.cri_distill, self.cri_feature))
        if distill or feature:
            with torch.no_grad():
                target = self.teacher(self.lq)
        if distill:
            losses["l_distill"] = self.cri_distill(self.output, target)
        if feature:
            losses["l_feature"] = self.cri_feature(self.features.take(), self.teacher_features.take())
        return losses

    def close_losses(self) -> None:
        if self.cri_feature is not None:
            self.features.close()
            self.teacher_features.close()
