"""Contents of option files, put together from the tables of :mod:`qmambair_basicsr.recipes.option_table`."""

from __future__ import annotations

from pathlib import Path

import yaml

from .option_data import DATA
from .option_networks import NETS, TASK_KEYS, USUAL_TASK_KEYS, WEIGHTS, WITHOUT_SCAN, net_key
from .option_table import CONV_FP, DISTILL, PLUS, ROTATED, TASKS, Task, begins_distilled, recipe_of
from .recipe import Recipe

OPTIONS = Path(__file__).resolve().parents[2] / "options"
PLUGIN = "plugin: !!python/name:qmambair_basicsr.__version__"

# Model class that trains and tests a full-precision network, where it is not MambaIRModel
MODELS = {"MambaIRv2": "MambaIRv2Model", "MambaIRv2Light": "MambaIRv2LightModel"}

# Remarks printed above a key, by its path from the top of the file.
REMARKS = {
    "name": "experiments/<name> (training) and results/<name> (testing)",
    "num_gpu": "'auto' = every visible GPU; none = CPU",
    "datasets": "README, section Data, says how each folder is made",
    "network_g.img_size": "no effect; kept because official option files carry it",
    "network_g.quant": "which quantizer, how many bits; overrides change single modules by name pattern",
    "network_g.quant.conv": "fp = convolutions behind groups of blocks keep full precision, as 2DQuant and SPR2Q report",
    "network_g.quant.act_policy": "code = as released (DLS on out_proj and scan inputs); paper = DLS everywhere",
    "quant_train": "see qmambair_basicsr/models/README.md",
    "quant_train.calibration": "batches that initialise every quantizer before the optimizer exists",
    "path.skip_keys_g": "weights of another shape than in the file, which stay as they were initialised",
    "path.strict_load_g": "quantizer keys may be missing from a full-precision file; any other difference stops",
    "train.total_iter": "qmambair_basicsr/recipes/option_table.py says whose recipe this is",
    "val.pbar": "progress bar over the images",
}


ROTATION = {"Hadamard": {"block": 32}}

Bits = int | tuple[int, int]  # of weights and activations; one number for both; 32 = full precision


def widths(bits: Bits) -> tuple[int, int]:
    """Bits of weights and of activations."""
    return bits if isinstance(bits, tuple) else (bits, bits)


def methods() -> dict[str, tuple[str, str, str]]:
    """How a network can be quantized: name -> quantizers of weights, activations and the scan.

    Without a name it is Q-MambaIR; ``static`` has only grids that stay as trained, whatever the picture, so that tiles of
    one picture share them; ``plus`` is the preset of that name (``quantizers/presets.py``), with a teacher; the name of a
    quantizer, in lower case, puts that quantizer everywhere.
    """
    from ..quantizers import QUANTIZER_REGISTRY  # needs torch, which most of this module does not

    kinds = {
        kind.lower(): (kind,) * 3
        for kind in QUANTIZER_REGISTRY
        if kind != "Identity" and "act" in QUANTIZER_REGISTRY[kind].roles
    }
    return {
        "": ("RFA", "LSQOffset", "DLS"),
        "static": ("LSQ", "LSQOffset", "LSQOffset"),
        PLUS: ("RFA", "LSQOffset", "DLS"),
    } | kinds


def quantizers(method: str) -> tuple[str, str, str]:
    """Quantizers of weights, activations and the scan; ``distill`` and ``convfp`` in front do not change them."""
    return methods()["_".join(part for part in method.split("_") if part not in (DISTILL, CONV_FP))]


def stem(phase: str, family: str, task: str, bits: Bits, method: str = "") -> str:
    """File name without ending, which is the ``name:`` inside as well."""
    if bits == 32:
        return f"{phase}_{family}_{task}"
    weight, act = widths(bits)
    return f"{phase}_Q{family}_{task}_w{weight}a{act}" + (f"_{method}" if method else "")


def network_options(family: str, task: Task, bits: Bits, method: str = "") -> dict:
    """The ``network_g`` block of a file; arguments as :func:`train_options`."""
    net = {"type": family if bits == 32 else f"Q{family}"}
    scale, channels = TASK_KEYS.get(family, USUAL_TASK_KEYS)
    net |= {key: value for key, value in ((scale, task.scale), (channels, task.in_chans)) if key}
    net |= NETS[family, net_key(family, task.name, task.size, task.recipe)]
    return net if bits == 32 else net | {"quant": _quant(family, bits, method)}


def _quant(family: str, bits: Bits, method: str) -> dict:
    weight, act = widths(bits)
    if PLUS in method.split("_") and weight == act and CONV_FP not in method.split("_"):
        return {"preset": PLUS, "bits": weight} | ({"transforms": ROTATION} if weight in ROTATED else {})
    sites = dict(zip(("weight", "act", "scan"), zip(quantizers(method), (weight, act, act), strict=True), strict=True))
    if family in WITHOUT_SCAN:
        del sites["scan"]
    if CONV_FP in method.split("_"):
        sites["attention"] = sites["act"]
    quant = {site: {"type": kind, "bits": n} for site, (kind, n) in sites.items()}
    if family not in WITHOUT_SCAN:
        quant["act_policy"] = "code"
    if CONV_FP in method.split("_"):
        quant["conv"] = "fp"
    if method.endswith("static") or PLUS in method.split("_"):
        quant["weight"]["granularity"] = "channel"
    if PLUS in method.split("_"):
        quant["act"]["offsets"] = "channel"
    return quant


def _metrics(task: Task) -> dict:
    shared = {"crop_border": task.crop, "test_y_channel": task.y_channel}
    return {"psnr": {"type": "calculate_psnr", **shared}, "ssim": {"type": "calculate_ssim", **shared}}


def _head(phase: str, family: str, task: Task, bits: Bits, method: str) -> dict:
    return {
        "name": stem(phase, family, task.name, bits, method),
        "model_type": MODELS.get(family, "MambaIRModel") if bits == 32 else "QATModel",
        "scale": task.scale,
        "num_gpu": "auto",
        "manual_seed": 10,
    }


def _weights(family: str, task: Task, bits: Bits, method: str = "") -> str:
    """Full-precision weights are downloaded or shipped; quantized ones are where their training leaves them, as are others
    of a task without a folder of weights."""
    if bits == 32 and task.weights:
        return f"{task.weights}/{WEIGHTS.get((family, task.name), f'{family}_{task.name}.pth')}"
    return f"experiments/{stem('train', family, task.name, bits, method)}/models/net_g_latest.pth"


def _loss(recipe: Recipe) -> dict:
    loss = {"type": recipe.loss, "loss_weight": 1.0, "reduction": "mean"}
    if recipe.loss == "CharbonnierLoss":
        loss["eps"] = 1e-6  # BasicSR's class adds eps itself, not its square
    return loss


def _distillation(recipe: Recipe) -> dict:
    return {"type": "PixelDistillationLoss", "loss_weight": recipe.distill, "criterion": "l1"}


def _alignment(recipe: Recipe) -> dict:
    return {"type": "FeatureAlignmentLoss", "loss_weight": recipe.feature}  # of the network's own blocks


def _schedule(recipe: Recipe) -> dict:
    if recipe.milestones:
        return {"type": "MultiStepLR", "milestones": list(recipe.milestones), "gamma": 0.5}
    return {
        "type": "CosineAnnealingRestartLR",
        "periods": [recipe.total_iter],
        "restart_weights": [1],
        "eta_min": recipe.eta_min,
    }


def train_options(family: str, task: Task, bits: Bits, method: str = "") -> dict:
    """Contents of a training file.

    Args:
        family: ``MambaIR`` ...; the quantized network's type is ``Q`` + family.
        task: Row of ``TASKS``.
        bits: Of weights and activations; 32 trains the full-precision network from scratch.
        method: How, where it is not Q-MambaIR: a key of :func:`methods`, ``distill`` (with a full-precision teacher), or
            both as ``distill_<key>``.
    """
    recipe = recipe_of(family, task, widths(bits)[0], method)
    opt = _head("train", family, task, bits, method)
    opt["datasets"] = {
        "train": {
            **DATA[recipe.train or task.train].options(task.scale),
            "gt_size": recipe.gt_size - recipe.gt_size % task.scale,
            "use_hflip": True,
            "use_rot": True,
            "num_worker_per_gpu": recipe.workers,
            "batch_size_per_gpu": recipe.batch,
            "dataset_enlarge_ratio": 100,
            "prefetch_mode": None,
        },
        "val": DATA[recipe.val or task.tests[0]].options(task.scale),
    }
    opt["network_g"] = network_options(family, task, bits, method)
    if bits == 32:
        start = _weights(family, TASKS[recipe.start], 32) if recipe.start else None
        strict = not start or TASKS[recipe.start].scale == task.scale  # upsamplers differ
        opt["path"] = {"pretrain_network_g": start, "strict_load_g": strict, "resume_state": None}
        if recipe.skip:
            opt["path"]["skip_keys_g"] = list(recipe.skip)
    else:
        teacher = _weights(family, task, 32)
        distilled = begins_distilled(family, task, widths(bits)[0], method)
        start = _weights(family, task, bits, DISTILL) if distilled else teacher
        opt["path"] = {"pretrain_network_g": start, "strict_load_g": True, "resume_state": None}
        opt["quant_train"] = {"calibration": {"batches": recipe.calibration} | ({"changed": True} if distilled else {})}
        if recipe.distill:
            opt["quant_train"]["teacher"] = {"path": teacher}
    opt["train"] = {
        "ema_decay": recipe.ema,
        "optim_g": {
            "type": recipe.optim,
            "lr": recipe.lr,
            "weight_decay": recipe.weight_decay,
            "betas": [0.9, 0.99],
        },
        "scheduler": _schedule(recipe),
        "total_iter": recipe.total_iter,
        "warmup_iter": -1,
        **({"distill_opt": _distillation(recipe)} if recipe.distill else {"pixel_opt": _loss(recipe)}),
        **({"feature_opt": _alignment(recipe)} if recipe.feature else {}),
    }
    opt["val"] = {"val_freq": recipe.val_freq, "save_img": False, "pbar": True, "metrics": _metrics(task)}
    opt["logger"] = {
        "print_freq": recipe.print_freq,
        "save_checkpoint_freq": recipe.save_freq,
        "use_tb_logger": True,
        "wandb": {"project": None, "resume_id": None},
    }
    opt["dist_params"] = {"backend": "nccl", "port": 29500}
    return opt


def test_options(family: str, task: Task, bits: Bits, method: str = "") -> dict:
    """Contents of a test file; arguments as :func:`train_options`."""
    opt = _head("test", family, task, bits, method)
    opt["datasets"] = {f"test_{i}": DATA[name].options(task.scale) for i, name in enumerate(task.tests, start=1)}
    opt["network_g"] = network_options(family, task, bits, method)
    opt["path"] = {"pretrain_network_g": _weights(family, task, bits, method), "strict_load_g": True}
    opt["val"] = {"save_img": True, "suffix": None, "pbar": True, "metrics": _metrics(task)}
    return opt


def _leaf(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return "~" if value is None else text.removesuffix("...\n").strip()


def render(opt: dict) -> str:
    """Options as YAML text: two levels in blocks, what lies below on one line where it holds plain values."""
    lines = ["# Made by `python -m qmambair_basicsr.tools.make_options`; --list shows what else it makes."]

    def walk(node: dict, path: tuple[str, ...]) -> None:
        for key, value in node.items():
            here = (*path, key)
            indent = "  " * len(path)
            if not path and isinstance(value, dict):
                lines.append("")
            if remark := REMARKS.get(".".join(here)):
                lines.append(f"{indent}# {remark}")
            flat = isinstance(value, dict) and not any(isinstance(v, dict) for v in value.values())
            if isinstance(value, dict) and not (flat and len(path) >= 2):
                lines.append(f"{indent}{_leaf(key)}:")
                walk(value, here)
            else:
                lines.append(f"{indent}{_leaf(key)}: {_leaf(value)}")
            if here == ("name",):
                lines.append(
                    "# registers this package when a BasicSR checkout's own train.py or test.py reads the file"
                )
                lines.append(PLUGIN)

    walk(opt, ())
    return "\n".join(lines) + "\n"
