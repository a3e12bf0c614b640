"""The schema of a whole option file: BasicSR's own keys and those of this package, for training and for testing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .datasets import DataSets
from .phases import PTQ, QUANT_TRAIN, Scheduled
from .problems import UNREADABLE, Problem, join, show
from .registered import (
    ANY_LOSS,
    FEATURE_LOSS,
    METRIC,
    NETWORK,
    PERCEPTUAL_LOSS,
    PIXEL_LOSS,
    Optimizer,
    Scheduler,
    find,
    unregistered,
)
from .rules import (
    ANYTHING,
    NOTHING,
    Choice,
    Each,
    Either,
    Flag,
    List,
    Name,
    Number,
    Rule,
    Section,
    Text,
    optional,
)

PACKAGE = __package__.split(".")[0]
_EVERY = Number(1, whole=True, as_float=True)  # every so many iterations
_PATH_TEXT = optional(Text(called="a path"))

# what BasicSR's parse_options adds
ADDED = ("dist", "rank", "world_size", "auto_resume", "is_train", "root_path")
ADDED_PATHS = ("experiments_root", "results_root", "models", "training_states", "log", "visualization")


class ModelType(Rule):
    """The name of a registered model."""

    words = "the name of a model"

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if value is not UNREADABLE and find("model", value) is None:
            yield unregistered(where, "model", value)


class Tile(Rule):
    """``tile``: how test images are cut."""

    words = "release, false or a section {size: 200, overlap: 20}"
    _section = Section({"size": Number(1, 1_000_000, whole=True), "overlap": Number(0, whole=True)}, ("size",))

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if value is UNREADABLE or value is None or isinstance(value, bool) or value == "release":
            return
        if not isinstance(value, Mapping):
            yield Problem(where, f"must be {self.words}; got {show(value)}")
            return
        found = list(self._section.problems(where, value))
        if not found and value.get("overlap", 0) >= value["size"]:
            found = [Problem(join(where, "overlap"), f"must be below size ({value['size']}); got {value['overlap']}")]
        yield from found


_LOGGER = Section(
    {
        "print_freq": _EVERY,
        "save_checkpoint_freq": _EVERY,
        "use_tb_logger": Flag(),
        "wandb": optional(
            Section({"project": optional(Text()), "resume_id": optional(Text())}, unknown="misspelt", title="wandb")
        ),
    },
    ("print_freq", "save_checkpoint_freq", "use_tb_logger"),
    "misspelt",
    "logger",
)
_DIST_PARAMS = optional(
    Section({"backend": Choice(("nccl", "gloo", "mpi")), "port": Number(1, 65_535, whole=True)}, title="dist_params")
)


def _path(strict: bool) -> Section:
    keys: dict[str, Rule] = {
        "pretrain_network_g": _PATH_TEXT,
        "param_key_g": optional(Text()),
        "strict_load_g": Flag(),
        "skip_keys_g": optional(List(Text(), least=0)),
        "resume_state": _PATH_TEXT,
        "resume_schedule": Choice(("state", "option")),
        "ignore_resume_networks": optional(List(Text(), least=0)),
    }
    if strict:
        return Section(keys, title="path")
    return Section({key: rule for key, rule in keys.items() if key != "skip_keys_g"}, unknown="misspelt", title="path")


def _val(training: bool | None, strict: bool, has_sets: bool, saves: bool) -> Section:
    keys: dict[str, Rule] = {
        "val_freq": _EVERY,
        "save_img": Flag(),
        "suffix": optional(Name()),
        "pbar": Flag(),
        "metrics": optional(Each(METRIC)),
        "tile": Tile(),
    }
    if not strict:
        del keys["tile"]
    required: tuple[str, ...] = ()
    if training:
        required = ("val_freq", "save_img") if has_sets else ("val_freq",)
    elif training is False:
        # BasicSR looks `suffix` up when a test saves images
        required = ("save_img", "suffix") if saves else ("save_img",)
    return Section(keys, required, "refuse" if strict else "misspelt", "val")


def trains_itself(opt: Mapping) -> bool:
    """Whether the model brings its own training (``PTQModel``): no optimizer, schedule, average or losses."""
    return getattr(find("model", opt.get("model_type")), "trains_itself", False)


def _train(strict: bool) -> Section:
    keys: dict[str, Rule] = {
        "ema_decay": Number(0, 1, below=True),
        "optim_g": Optimizer() if strict else Optimizer(("Adam",)),
        "scheduler": Scheduler(),
        "total_iter": Number(1, 10**9, whole=True, as_float=True),
        "warmup_iter": Number(-1, whole=True, as_float=True),
        "pixel_opt": optional(PIXEL_LOSS),
        "perceptual_opt": optional(PERCEPTUAL_LOSS),
    }
    if strict:
        keys |= {
            "grad_clip": Number(0, above=True),
            "amp": optional(Choice(("bf16", "fp16"))),
            "accumulate": Number(1, whole=True),
            "checkpoint": Flag(),
            "requantize": Flag(),
            "cuda_graph": Flag(),
            "compile": Flag(),
            "distill_opt": optional(PIXEL_LOSS),
            "feature_opt": optional(FEATURE_LOSS),
        }
        keys |= {key: optional(Scheduled(keys[key])) for key in ("pixel_opt", "distill_opt", "feature_opt")}
    return Section(keys, ("optim_g", "scheduler", "total_iter"), "refuse" if strict else "misspelt", "train")


class _ForeignTrain(Rule):
    """``train:`` of a model of BasicSR or of another plugin: further losses and optimizers may stand in it."""

    kind = Mapping
    words = Section.words

    def __init__(self, section: Section) -> None:
        self.section = section

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        yield from self.section.problems(where, value)
        for key, entry in value.items() if isinstance(value, Mapping) else ():
            if isinstance(key, str) and key.endswith("_opt") and key not in self.section.keys:
                yield from optional(ANY_LOSS).problems(join(where, key), entry)


def model_kind(opt: Mapping) -> str:
    """Kind of the model: ``ours``, ``sr`` (BasicSR's SRModel and those that only add to its test), ``other``."""
    model = find("model", opt.get("model_type"))
    if model is None:
        return "ours" if "plugin" in opt else "other"
    if model.__module__.startswith(f"{PACKAGE}."):
        return "ours"
    return "sr" if model.__name__ in ("SRModel", "SwinIRModel") else "other"


def schema(opt: Mapping, training: bool | None) -> Section:
    """The rules for the options of one file.

    Args:
        opt: the options; their model says whether keys that nothing reads are refused, as ours do.
        training: True for training, False for testing, None where a tool reads a file of either kind: then nothing is
            required, because a tool says itself what it needs.
    """
    kind = model_kind(opt)
    strict = kind == "ours"
    data, val = opt.get("datasets"), opt.get("val")
    has_sets = isinstance(data, Mapping) and any(str(key).startswith("val") for key in data)
    saves = isinstance(val, Mapping) and val.get("save_img") is True
    train = _train(strict) if kind != "other" else None
    itself = trains_itself(opt)
    if itself:
        total = Number(1, 10**9, whole=True, as_float=True)
        train = Section({"total_iter": total}, ("total_iter",), title="train of a model that trains by itself")
    keys: dict[str, Rule] = {
        "name": Name(),
        "plugin": ANYTHING,
        "model_type": ModelType(),
        "scale": Number(1, 64, whole=True),
        "num_gpu": Either((Number(0, 1024, whole=True), Choice(("auto",)))),
        "manual_seed": Either((Number(0, 2**32 - 2**16, whole=True), NOTHING)),
        "datasets": DataSets(training),
        "network_g": NETWORK,
        "path": _path(strict),
        "train": ANYTHING if train is None else train if strict else _ForeignTrain(train),
        "val": optional(_val(training, strict, has_sets, saves))
        if training
        else _val(training, strict, has_sets, saves),
        "logger": _LOGGER,
        "dist_params": _DIST_PARAMS,
        "find_unused_parameters": Flag(),
    }
    if strict:
        keys |= {"tile": Tile(), "ptq": PTQ} if itself else {"tile": Tile(), "quant_train": QUANT_TRAIN}
    required: tuple[str, ...] = ("name", "model_type", "num_gpu", "datasets", "network_g", "path")
    required += {True: ("train", "logger"), False: ("val",)}.get(training, ())
    if itself and training:
        required += ("ptq",)
    if training is None:
        required = ()
    if kind == "other":  # other models read other sections
        required = tuple(key for key in required if key != "network_g")
    return Section(keys, required, "refuse" if strict else "misspelt")
