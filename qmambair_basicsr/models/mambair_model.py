"""``MambaIRModel``: BasicSR's SR model with the published tiled test, safe files and exact resume."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from os import path as osp

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .. import checkpoints
from ..files import remove_leftovers
from ..inference.tiling import parse_tile_option, run_tiled
from ..layers.declared import ordinary_state
from ..layers.info import size_multiple
from ..layers.requantize import requantize
from . import data_order, non_finite, optimizers, scheduled_loss
from .random_stream import seeded
from .recorded_passes import recorded
from .resume_plan import IMPLEMENTATIONS
from .step_options import recompute_blocks
from .training_step import SteppedTraining


@MODEL_REGISTRY.register()
class MambaIRModel(SteppedTraining):
    """Trains and tests one restoration network (super-resolution, denoising, JPEG) in the stock BasicSR loop.

    Beyond ``SRModel``: tests tile by tile (``tiling``), loads files without running code from them
    (``checkpoints``), saves atomically and never a NaN, stops at a non-finite loss with its place, resumes
    bit-exactly (``data_order``, ``random_stream``), keeps buffers in the EMA, and trains with gloo on CPUs.
    Options: the table in this folder's README.

    Args:
        opt: options as BasicSR's ``parse_options`` returns them.

    Raises:
        ValueError: an option value that makes no sense, named.
        metrics.perceptual.MetricError: a metric that could not be computed.
        checkpoints.CheckpointError: weights that cannot be loaded.
    """

    stage_bits: int | None = None  # see ``phased_training``

    def __init__(self, opt: dict) -> None:
        # SRModel's constructor wraps the network for DDP before it loads weights; here weights, and what
        # subclasses derive from them, are in place first, so that DDP's first broadcast makes replicas equal
        super(SRModel, self).__init__(opt)
        if opt["num_gpu"] != 0 and not torch.cuda.is_available():
            raise ValueError(f"num_gpu: {opt['num_gpu']}, but torch sees no CUDA device; set num_gpu: 0 (or auto)")
        self.seed = opt.get("manual_seed") or 0
        self.rank = opt.get("rank", 0)
        self.tile_plan = parse_tile_option(_tile_option(opt))
        self.order = data_order.attach(opt) if self.is_train else None
        if self.is_train and self.rank == 0:
            for folder in ("models", "training_states"):
                remove_leftovers(opt["path"][folder])
        self.prepare_resuming()
        self.check_validation()
        self.prepare_steps()

        self.net_g = build_network(opt["network_g"]).to(self.device)
        self.print_network(self.net_g)
        self.load_initial_weights()
        self.net_g = self.model_to_device(self.net_g)
        if self.is_train:
            self.init_training_settings()

    # -- set-up ---------------------------------------------------------------------------------------------------

    def load_initial_weights(self) -> None:
        """Fill the bare network from ``path: pretrain_network_g`` where that is set."""
        path = self.opt["path"].get("pretrain_network_g")
        if self.resumes():  # BasicSR has put the run's own checkpoint in place of the option file's
            self.load_network(self.net_g, path)
        elif path is not None:
            strict = self.opt["path"].get("strict_load_g", True)
            self.load_network(self.net_g, path, strict, self.opt["path"].get("param_key_g", "params"))
        elif not self.is_train:
            get_root_logger().warning("path: pretrain_network_g is not set: a network with random weights is tested")

    def resumes(self) -> bool:
        """Whether the network continues from a checkpoint of its own run."""
        path = self.opt["path"]
        ignored = path.get("ignore_resume_networks") or ()
        return self.is_train and bool(path.get("resume_state")) and "network_g" not in ignored

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move the network to the run's device and wrap it for several processes (gloo on CPUs) or GPUs."""
        net = net.to(self.device)
        if self.opt["dist"]:
            return DistributedDataParallel(
                net,
                device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
                find_unused_parameters=self.opt.get("find_unused_parameters", False),
            )
        return DataParallel(net) if self.opt["num_gpu"] > 1 else net

    def init_training_settings(self) -> None:
        """Build EMA, losses, optimizer and schedulers from ``opt['train']``."""
        self.net_g.train()
        if self.step_options.checkpoint:
            recompute_blocks(self.get_bare_model(self.net_g))
        if self.step_options.requantize:
            requantize(self.get_bare_model(self.net_g))
        self.ema_decay = self.opt["train"].get("ema_decay", 0)
        if self.ema_decay > 0:
            self.build_ema()
        self.build_losses()
        self.setup_optimizers()
        self.setup_schedulers()

    def build_ema(self) -> None:
        """A copy of the network that follows it; on resume it continues from the saved ``params_ema``."""
        self.net_g_ema = build_network(self.opt["network_g"]).to(self.device)
        self.net_g_ema.load_state_dict(self.get_bare_model(self.net_g).state_dict())
        self.net_g_ema.requires_grad_(False)
        self.net_g_ema.eval()
        get_root_logger().info(f"Exponential moving average of the weights, decay {self.ema_decay}")
        if self.resumes():
            path = self.opt["path"]["pretrain_network_g"]
            content = checkpoints.read_file(path)
            if isinstance(content, dict) and "params_ema" not in content:
                get_root_logger().warning(f"{path} has no params_ema: the average starts from its params")
                return
            state = checkpoints.select_params(content, path, "params_ema", self.stage_bits)
            checkpoints.load_state(self.net_g_ema, state, path)

    def build_losses(self) -> None:
        """Build the losses named in ``opt['train']``.

        Raises:
            ValueError: when there is none.
        """
        train = self.opt["train"]
        self.cri_pix = self.build_loss("pixel_opt")
        perceptual = train.get("perceptual_opt")
        self.cri_perceptual = build_loss(perceptual).to(self.device) if perceptual else None
        if not self.has_loss():
            raise ValueError("train: no loss; set pixel_opt, for example pixel_opt: {type: L1Loss}")

    def build_loss(self, key: str) -> nn.Module | None:
        """The loss that ``train: KEY`` describes, with its schedule where it has one; None where there is no such key."""
        loss = scheduled_loss.build(self.opt["train"].get(key), f"train: {key}")
        return None if loss is None else loss.to(self.device)

    def has_loss(self) -> bool:
        """Whether any loss was built."""
        return self.cri_pix is not None or self.cri_perceptual is not None

    def setup_optimizers(self) -> None:
        """Build the optimizer ``train: optim_g`` describes over :meth:`parameter_groups`."""
        options = dict(self.opt["train"]["optim_g"])
        self.optimizer_g = self.get_optimizer(options.pop("type"), self.parameter_groups(), **options)
        self.optimizers.append(self.optimizer_g)

    def parameter_groups(self) -> list[dict]:
        """Trainable parameters as optimizer groups."""
        return [{"params": [p for p in self.net_g.parameters() if p.requires_grad]}]

    def get_optimizer(self, optim_type: str, params, lr: float, **options) -> torch.optim.Optimizer:
        """The optimizer ``train: optim_g: type`` names: Adam, AdamW or SGD.

        Raises:
            ValueError: another name, or options the optimizer does not know.
        """
        if optim_type not in optimizers.KINDS:
            raise ValueError(
                f"train: optim_g: type: {optim_type!r} is unknown; use one of {', '.join(optimizers.KINDS)}"
            )
        if optim_type != "SGD" and self.device.type in ("cpu", "cuda") and IMPLEMENTATIONS.isdisjoint(options):
            options["fused"] = True  # a quantized network has thousands of tiny parameters; a resumed run keeps its own
        try:
            return optimizers.KINDS[optim_type](params, lr, **options)
        except TypeError as err:
            raise ValueError(f"train: optim_g: {err}") from err

    # -- test -----------------------------------------------------------------------------------------------------

    def test(self) -> None:
        """Restore ``self.lq`` tile by tile into ``self.output``, with the average where there is one.

        The bare network runs: rank 0 validates alone, and DDP's forward would wait for the other ranks.
        """
        net = self.net_g_ema if hasattr(self, "net_g_ema") else self.get_bare_model(self.net_g)
        training = net.training
        net.eval()
        with torch.no_grad():
            self.output = run_tiled(recorded(net), self.lq, self.tile_plan, size_multiple(net))
        net.train(training)

    def validation(self, dataloader, current_iter, tb_logger, save_img: bool = False) -> None:
        """BasicSR's validation under a random state of its own: networks that draw at test time repeat."""
        self.check_steps()
        with seeded(data_order.VALIDATION_STREAM, self.seed):
            super().validation(dataloader, current_iter, tb_logger, save_img)

    # -- files ----------------------------------------------------------------------------------------------------

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"):
        """Load weights (``checkpoints``); with ``strict`` False skipped keys are listed, wrong shapes refused."""
        net = self.get_bare_model(net)
        logger = get_root_logger()
        logger.info(f"Loading {type(net).__name__} from {load_path}, key {param_key}")
        state = checkpoints.select_params(checkpoints.read_file(load_path), load_path, param_key, self.stage_bits)
        if net is self.get_bare_model(self.net_g):
            state = self.matching_state(net, self._without_skipped(state, load_path), load_path)
        for line in checkpoints.load_state(net, state, load_path, strict):
            logger.warning(f"strict_load_g is false, skipped: {line}")

    def matching_state(self, net: nn.Module, state: dict[str, Tensor], load_path: str) -> dict[str, Tensor]:
        """What is loaded of a file's weights."""
        return state

    def _without_skipped(self, state: Mapping[str, Tensor], load_path: str) -> dict[str, Tensor]:
        """The weights without those ``path: skip_keys_g`` leaves as they were initialised."""
        patterns = self.opt["path"].get("skip_keys_g") or []
        for pattern in patterns:
            if not any(fnmatchcase(key, pattern) for key in state):
                raise ValueError(f"path: skip_keys_g: {pattern!r} fits no weight in {load_path}")
        return {k: v for k, v in state.items() if not any(fnmatchcase(k, pattern) for pattern in patterns)}

    def marks(self) -> dict:
        """What a saved network says about itself beside its weights."""
        return {}

    @master_only
    def save_network(self, net, net_label: str, current_iter: int, param_key="params") -> None:
        """Write ``LABEL_ITERATION.pth`` atomically.

        Raises:
            non_finite.NonFiniteError: a weight is NaN or infinite; nothing is written.
            checkpoints.CheckpointError: the file cannot be written; earlier files are intact.
        """
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content = self.marks()
        for one, key in zip(nets, keys, strict=True):
            state = {k: v.detach().cpu() for k, v in ordinary_state(self.get_bare_model(one)).items()}
            bad = checkpoints.first_non_finite(state)
            if bad is not None:
                raise non_finite.NonFiniteError(
                    f"nothing is saved at iteration {self._iteration}: {key} {bad} is not finite. "
                    f"{non_finite.last_checkpoint(self.opt['path'].get('models'))}"
                )
            content[key] = state
        name = f"{net_label}_{'latest' if current_iter == -1 else current_iter}.pth"
        checkpoints.write_file(content, osp.join(self.opt["path"]["models"], name))

    def save(self, epoch: int, current_iter: int) -> None:
        """Write the network (and average) and, within training, the state to resume from."""
        self.check_steps()
        super().save(epoch, current_iter)
        total = int(self.opt["train"]["total_iter"]) if self.is_train else 0
        if current_iter == -1 and self._iteration < total:
            get_root_logger().warning(
                f"training ended after {self._iteration} of {total} iterations: BasicSR counts an incomplete last "
                "batch as an iteration but drops it. Raise datasets: train: dataset_enlarge_ratio"
            )


def _tile_option(opt: dict) -> object:
    """``val: tile`` or, for test files, ``tile`` at the top level; the published protocol where neither is set."""
    in_val = "tile" in (opt.get("val") or {})
    if in_val and "tile" in opt:
        raise ValueError("tile is set twice: keep `val: tile` or the top-level `tile`")
    return opt["val"]["tile"] if in_val else opt.get("tile", "release")
