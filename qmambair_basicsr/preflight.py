"""Checks an option file before anything is built, so that a mistake costs seconds and one clear message.

Looked at: keys at the levels this package defines, names of registered classes, constructor keys of networks,
the ``quant:`` and ``quant_train:`` blocks, and every folder and file the run will read. All mistakes of a file are
reported together.

:func:`install` puts the check behind BasicSR's own ``parse_options``. ``python -m qmambair_basicsr.train`` and
``test`` pass through it, and so does an unmodified BasicSR ``train.py`` that imports ``qmambair_basicsr.compat``
before it imports basicsr.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml

from .strict import did_you_mean

# Keys that our models, or BasicSR on their behalf, read. A new key is added here where it is first read.
_SET_BY_BASICSR = ("dist", "rank", "world_size", "auto_resume", "is_train", "root_path")
TOP_LEVEL = (
    "name",
    "plugin",
    "model_type",
    "scale",
    "num_gpu",
    "manual_seed",
    "datasets",
    "network_g",
    "path",
    "train",
    "val",
    "tile",
    "quant_train",
    "logger",
    "dist_params",
    "find_unused_parameters",
)
PATH = (
    "pretrain_network_g",
    "param_key_g",
    "strict_load_g",
    "skip_keys_g",
    "resume_state",
    "ignore_resume_networks",
)
_PATHS_OF_BASICSR = ("experiments_root", "results_root", "models", "training_states", "log", "visualization")
TRAIN = (
    "ema_decay",
    "optim_g",
    "scheduler",
    "total_iter",
    "warmup_iter",
    "grad_clip",
    "pixel_opt",
    "perceptual_opt",
    "distill_opt",
    "feature_opt",
)
VAL = ("val_freq", "save_img", "suffix", "pbar", "metrics", "tile")

DATA_HELP = 'README, section "Data", says how to get it'
WEIGHTS_HELP = 'README, section "Weights", says how to get it'


class OptionError(ValueError):
    """An option file that cannot run; the message lists every mistake, one a line."""


def _unknown(where: str, keys: Iterable[str], allowed: Iterable[str]) -> Iterator[str]:
    allowed = list(allowed)
    for key in keys:
        if key not in allowed:
            yield f"{where}{key}: unknown key{did_you_mean(key, allowed)}; allowed: {', '.join(allowed)}"


def _registered(where: str, name: object, registry) -> Iterator[str]:
    if name not in registry:
        yield f"{where}: no {registry._name} is called {name!r}{did_you_mean(name, registry.keys())}"


def _network(where: str, section: dict) -> Iterator[str]:
    """Keys of a network against its constructor, and its ``quant:`` block against the quantizers' options."""
    from basicsr.utils.registry import ARCH_REGISTRY

    from .quantizers.spec import QuantSpec

    name = section.get("type")
    problems = list(_registered(f"{where}.type", name, ARCH_REGISTRY))
    yield from problems
    if problems:
        return
    parameters = inspect.signature(ARCH_REGISTRY.get(name)).parameters
    if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        yield from _unknown(f"{where}.", [key for key in section if key != "type"], parameters)
    if section.get("quant") is not None and "quant" in parameters:
        try:
            QuantSpec.from_dict(section["quant"])
        except ValueError as err:
            yield f"{where}.{err}"


def _quant_train(section: object) -> Iterator[str]:
    from .models.quant_options import QuantTrainOptions

    try:
        QuantTrainOptions.from_dict(section)
    except ValueError as err:
        yield str(err)


def _dataset(where: str, section: dict) -> Iterator[str]:
    """The data set's class, folders and list files."""
    from basicsr.utils.registry import DATASET_REGISTRY

    yield from _registered(f"{where}.type", section.get("type"), DATASET_REGISTRY)
    for key, value in section.items():
        if not isinstance(value, str):
            continue
        path = Path(value).expanduser()
        if key.startswith("dataroot"):
            if not path.exists():
                yield f"{where}.{key}: folder {value} does not exist; {DATA_HELP}"
            elif path.is_dir() and not any(path.iterdir()):
                yield f"{where}.{key}: folder {value} is empty; {DATA_HELP}"
        elif key.startswith("meta_info") and not path.is_file():
            yield f"{where}.{key}: file {value} does not exist; {DATA_HELP}"


def _numbers_as_text(where: str, value: object) -> Iterator[str]:
    """Numbers that YAML 1.1 reads as text: it wants a point in ``5.0e-4`` and has no quotes around numbers."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers_as_text(f"{where}.{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _numbers_as_text(f"{where}[{index}]", inner)
    elif isinstance(value, str) and value[:1] in tuple("+-.0123456789"):
        with contextlib.suppress(ValueError):
            yield f"{where}: YAML reads {value!r} as text; write the number as {float(value)!r} with a point, unquoted"


def _weights(opt: dict) -> Iterator[str]:
    """Checkpoints that will be read; those of a run that resumes come from its own folder."""
    path = opt.get("path") or {}
    resuming = path.get("resume_state") is not None
    if opt.get("auto_resume") and path.get("training_states"):
        resuming = resuming or any(Path(path["training_states"]).glob("*.state"))
    wanted = {f"path.{k}": v for k, v in path.items() if k.startswith("pretrain_network")} if not resuming else {}
    if not opt.get("auto_resume"):
        wanted["path.resume_state"] = path.get("resume_state")
    teacher = (opt.get("quant_train") or {}).get("teacher")
    if isinstance(teacher, dict):
        wanted["quant_train.teacher.path"] = teacher.get("path")
    for key, value in wanted.items():
        if isinstance(value, str) and not Path(value).expanduser().is_file():
            yield f"{key}: file {value} does not exist; {WEIGHTS_HELP}"


def concerns_us(opt: dict) -> bool:
    """Whether the options name a model or a network of this package, or load it as their plugin."""
    from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

    network = opt.get("network_g")
    used = (
        (MODEL_REGISTRY, opt.get("model_type")),
        (ARCH_REGISTRY, network.get("type") if isinstance(network, dict) else None),
    )
    ours = __package__ + "."
    return "plugin" in opt or any(
        name in registry and registry.get(name).__module__.startswith(ours) for registry, name in used
    )


def problems(opt: dict) -> list[str]:
    """Every mistake that can be seen without building anything.

    Args:
        opt: options as read from YAML or as ``parse_options`` returns them. Relative paths are looked up from the
            working directory.

    Returns:
        One line per mistake, each starting with the key it is about.
    """
    from basicsr.utils.registry import MODEL_REGISTRY

    found = list(_registered("model_type", opt.get("model_type"), MODEL_REGISTRY))
    if not found and MODEL_REGISTRY.get(opt["model_type"]).__module__.startswith(__package__ + "."):
        found += _unknown("", [k for k in opt if k not in _SET_BY_BASICSR], TOP_LEVEL)
        found += _unknown("path.", [k for k in opt.get("path") or {} if k not in _PATHS_OF_BASICSR], PATH)
        found += _unknown("train.", opt.get("train") or {}, TRAIN)
        found += _unknown("val.", opt.get("val") or {}, VAL)
        for key in ("train", "val", "quant_train", "network_g", "logger"):
            found += _numbers_as_text(key, opt.get(key))
        if opt.get("quant_train") is not None:
            found += _quant_train(opt["quant_train"])
    for key in ("network_g", "datasets", "path"):
        if not isinstance(opt.get(key), dict):
            found.append(f"{key}: missing, or not a mapping")
    if isinstance(opt.get("network_g"), dict):
        found += _network("network_g", opt["network_g"])
    for name, section in (opt.get("datasets") or {}).items():
        if isinstance(section, dict):
            found += _dataset(f"datasets.{name}", section)
    return found + list(_weights(opt))


def check(opt: dict, source: str = "the option file") -> None:
    """Refuse options with mistakes.

    Args:
        opt: see :func:`problems`.
        source: what to call the options in the message.

    Raises:
        OptionError: listing every mistake.
    """
    found = problems(opt)
    if found:
        lines = "".join(f"\n  {line}" for line in found)
        raise OptionError(f"{source} cannot run from {Path.cwd()}:{lines}")


def _argument(name: str) -> str | None:
    """The word after ``name`` on this process's command line."""
    words = sys.argv
    return words[words.index(name) + 1] if name in words[:-1] else None


def checked(parse_options: Callable) -> Callable:
    """BasicSR's ``parse_options``, followed by :func:`check` where the options concern this package.

    What can go wrong in parsing (no such file, broken YAML, a missing key) becomes an :class:`OptionError` as well.
    """

    def parse_and_check(root_path, is_train=True):
        source = _argument("-opt") or "the option file"
        if _argument("--launcher") == "pytorch" and "RANK" not in os.environ:
            raise OptionError("--launcher pytorch: start with `torchrun --nproc_per_node N -m qmambair_basicsr.train`")
        try:
            opt, args = parse_options(root_path, is_train)
        except FileNotFoundError as err:
            from .recipes.option_names import how_to_make

            command = how_to_make(err.filename)
            raise OptionError(
                f"-opt: file {err.filename} does not exist" + (f"; make it: {command}" if command else "")
            ) from err
        except yaml.YAMLError as err:
            raise OptionError(f"{source} is not valid YAML: {err}") from err
        except KeyError as err:
            raise OptionError(f"{source} (or --force_yml): there is no key {err.args[0]!r}") from err
        if concerns_us(opt):
            check(opt, source)
        return opt, args

    parse_and_check.__wrapped__ = parse_options
    return parse_and_check


def install() -> None:
    """Put the check behind ``parse_options`` wherever BasicSR's own modules refer to it. Once is enough."""
    from basicsr import test, train
    from basicsr.utils import options

    if not hasattr(options.parse_options, "__wrapped__"):
        options.parse_options = train.parse_options = test.parse_options = checked(options.parse_options)
