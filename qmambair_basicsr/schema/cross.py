"""Mistakes that only two or more keys together show, and that need no file.

Every check looks at values of the right kind only: what is wrong by itself is reported by its own rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from .datasets import WITHOUT_TRUTH, is_ours
from .problems import Problem, show
from .registered import find, needs_truth
from .rules import is_number


def get(opt: Any, path: str, kind: type | tuple[type, ...] = object) -> Any:
    """The value at a dotted path, or None where there is none of that kind."""
    for key in path.split("."):
        if not isinstance(opt, Mapping) or key not in opt:
            return None
        opt = opt[key]
    if isinstance(opt, bool) and bool not in (kind if isinstance(kind, tuple) else (kind,)) and kind is not object:
        return None
    return opt if isinstance(opt, kind) else None


def whole(opt: Any, path: str) -> int | None:
    """The whole number at a path, also where it is written with a point."""
    value = get(opt, path, (int, float))
    return int(value) if is_number(value) and value == int(value) else None


def sets(opt: Mapping, *phases: str) -> Iterator[tuple[str, Mapping, Any]]:
    """Path, section and class of the data sets of some phases; None for a class that is not registered."""
    for key, section in (get(opt, "datasets", Mapping) or {}).items():
        if isinstance(key, str) and isinstance(section, Mapping) and key.split("_")[0] in phases:
            yield f"datasets.{key}", section, find("dataset", section.get("type"))


def factor(network: Any, section: Mapping) -> tuple[int, str] | None:
    """Size of a network's output over its input and the key that says so; None where that cannot be told.

    Args:
        network: the registered class.
        section: ``network_g``.
    """
    ours = network.__module__.startswith(__package__.split(".")[0] + ".")
    parameters = inspect.signature(network).parameters
    if hasattr(network, "output_factor"):
        return network.output_factor(section)
    key = next((name for name in ("upscale", "scale") if name in parameters), None)
    if key is None:
        return (1, "type") if ours else None
    if not ours and key not in section and not network.__module__.startswith("basicsr."):
        return None
    if "upsampler" in parameters and not section.get("upsampler", parameters["upsampler"].default):
        return 1, "upsampler"
    value = section.get(key, parameters[key].default)
    return (value, key) if isinstance(value, int) and not isinstance(value, bool) else None


def _declared(network: Any, name: str) -> Any:
    """An attribute of a network's class or, of a class of another package, of its quantized form's."""
    from ..layers.info import TWINS  # needs torch, which most of this package does not

    forms = (find("arch", quantized) for quantized, full in TWINS.items() if full == getattr(network, "__name__", None))
    return next((getattr(c, name) for c in (network, *forms) if hasattr(c, name)), None)


def channels(network: Any, section: Mapping) -> tuple[int, str] | None:
    """Channels of a network's input and the key that says so, for the networks of this package."""
    if not network.__module__.startswith(__package__.split(".")[0] + "."):
        return None
    parameters = inspect.signature(network).parameters
    key = next((name for name in ("in_chans", "inp_channels") if name in parameters), None)
    value = None if key is None else section.get(key, parameters[key].default)
    return (value, key) if isinstance(value, int) else None


def network_fits_data(opt: Mapping) -> Iterator[Problem]:
    """Scale and channels of the network against those of the data sets."""
    section = get(opt, "network_g", Mapping)
    network = None if section is None else find("arch", section.get("type"))
    if network is None:
        return
    scale = 1 if "scale" not in opt else get(opt, "scale", int)
    output, pairs = factor(network, section), [s for s in sets(opt, "train", "val", "test") if "dataroot_gt" in s[1]]
    if output and scale and pairs and output[0] != scale:
        enlarges = f"the network's output is {output[0]} times its input"
        said = f"scale: {scale}" if "scale" in opt else "scale is not set, which means 1"
        yield Problem(f"network_g.{output[1]}", f"{enlarges}, but {said}; they must be equal")
    inputs = channels(network, section)
    for where, data, kind in sets(opt, "train", "val", "test"):
        if kind is None or not inputs:
            continue
        given = data.get("channels", 3) if is_ours(kind) else 1 if data.get("color") == "y" else 3
        if given in (1, 3) and given != inputs[0]:
            key = "channels" if is_ours(kind) else "color"
            yield Problem(f"network_g.{inputs[1]}", f"is {inputs[0]}, but {where} gives {given} ({where}.{key})")


def parts(opt: Mapping) -> Iterator[Problem]:
    """The parts that a batch is cut into against the batch."""
    count, size = get(opt, "train.accumulate", int), get(opt, "datasets.train.batch_size_per_gpu", int)
    if count and size and count > 0 and size % count:
        yield Problem("train.accumulate", f"must divide datasets.train.batch_size_per_gpu, {size}; got {count}")


def recorded(opt: Mapping) -> Iterator[Problem]:
    """A step that is to be recorded as a CUDA graph against what cannot be; compiled ones are refused."""
    from ..models.step_options import NO_COMPILE, not_recorded

    if get(opt, "train.compile", bool):
        yield Problem("train.compile", NO_COMPILE)
    refusal = not_recorded(opt) if get(opt, "train.cuda_graph", bool) else None
    if refusal is not None:
        yield Problem("train.cuda_graph", refusal)


def patches(opt: Mapping) -> Iterator[Problem]:
    """The training patch against the scale and the sizes the network takes."""
    size, scale = get(opt, "datasets.train.gt_size", int), get(opt, "scale", int) or 1
    if not size or size < 1 or scale < 1:
        return
    if size % scale:
        yield Problem("datasets.train.gt_size", f"must be a multiple of the scale {scale}; got {size}")
        return
    network = find("arch", get(opt, "network_g.type"))
    multiple = _declared(network, "patch_multiple") or 1
    multiple = multiple(get(opt, "network_g", Mapping)) if callable(multiple) else multiple
    if isinstance(multiple, int) and multiple > 1 and (size // scale) % multiple:
        yield Problem(
            "datasets.train.gt_size",
            f"{network.__name__} needs input patches whose side is a multiple of {multiple}; got {size // scale}",
        )


def loader(opt: Mapping) -> Iterator[Problem]:
    """Settings of the training data's loader that exclude each other."""
    train = get(opt, "datasets.train", Mapping) or {}
    if train.get("persistent_workers") is True and train.get("num_worker_per_gpu") == 0:
        yield Problem("datasets.train.persistent_workers", "needs num_worker_per_gpu of at least 1; got 0 workers")
    if train.get("prefetch_mode") == "cuda" and train.get("pin_memory") is not True:
        yield Problem("datasets.train.prefetch_mode", "cuda needs pin_memory: true")
    for where, data, _ in sets(opt, "val", "test"):
        if data.get("persistent_workers") is True:
            yield Problem(
                f"{where}.persistent_workers", "BasicSR reads validation and test images without workers; leave it out"
            )


def truth(opt: Mapping) -> Iterator[Problem]:
    """Metrics that compare with a ground truth which no data set gives.

    Beside sets that have one, a set without is restored, and its metrics are left out with a warning.
    """
    metrics = get(opt, "val.metrics", Mapping) or {}
    comparing = [name for name, m in metrics.items() if isinstance(m, Mapping) and _compares(m)]
    tested = [(where, kind) for where, _, kind in sets(opt, "val", "test") if kind is not None]
    if comparing and all(kind.__name__ in WITHOUT_TRUTH for _, kind in tested):
        for where, kind in tested:
            listed = ", ".join(map(str, comparing))
            yield Problem(
                f"{where}.type",
                f"{kind.__name__} has no ground truth, but val.metrics ({listed}) compares with one; leave the metrics "
                "out or give pairs (dataroot_gt)",
            )
    train = get(opt, "datasets.train", Mapping)
    kind = find("dataset", train.get("type")) if train else None
    if kind is not None and kind.__name__ in WITHOUT_TRUTH:
        yield Problem(
            "datasets.train.type", f"{kind.__name__} has no ground truth to train with; give pairs (dataroot_gt)"
        )


def _compares(metric: Mapping) -> bool:
    found = find("metric", metric.get("type"))
    return found is not None and needs_truth(found)


def names(opt: Mapping, training: bool | None) -> Iterator[Problem]:
    """Sets of one name in one run, whose results would overwrite each other."""
    seen: dict[tuple[str, str], str] = {}
    for where, data, _ in sets(opt, "val", "test"):
        name = data.get("name")
        run = "" if training is False else where.split(".")[1].split("_")[0]  # a test runs both kinds
        if isinstance(name, str) and seen.setdefault((run, name), where) != where:
            yield Problem(
                f"{where}.name", f"{show(name)} is the name of {seen[run, name]} too; results would be mixed up"
            )


def schedule(opt: Mapping) -> Iterator[Problem]:
    """The learning-rate schedule against the length of the run."""
    scheduler, total = get(opt, "train.scheduler", Mapping) or {}, whole(opt, "train.total_iter")
    periods = scheduler.get("periods")
    if scheduler.get("type") != "CosineAnnealingRestartLR" or not total or not isinstance(periods, list):
        return
    if all(map(is_number, periods)) and 0 < sum(periods) < total - 1:
        yield Problem(
            "train.scheduler.periods", f"add up to {sum(periods)}, but total_iter is {total}; they must reach it"
        )


def losses(opt: Mapping, ours: bool) -> Iterator[Problem]:
    """At least one loss; losses against a teacher and the teacher go together."""
    train = get(opt, "train", Mapping)
    if train is None:
        return
    used = [k for k in ("pixel_opt", "perceptual_opt", "distill_opt", "feature_opt") if train.get(k) is not None]
    if not used:
        yield Problem("train", "no loss; set pixel_opt, for example pixel_opt: {type: L1Loss}")
    if not ours:
        return
    teaching = [key for key in used if key in ("distill_opt", "feature_opt")]
    teacher = get(opt, "quant_train.teacher")
    trains = find("model", opt.get("model_type"))
    quantized = trains is not None and hasattr(trains, "calibrate")
    for key in teaching:
        if not quantized:
            yield Problem(
                f"train.{key}",
                f"compares with a teacher, which {trains.__name__ if trains else 'the model'} has not; use QATModel",
            )
        elif teacher is None:
            yield Problem(f"train.{key}", "compares with a teacher; set quant_train: teacher: path")
    if quantized and teacher is not None and not teaching:
        yield Problem("quant_train.teacher", "is set, but train has neither distill_opt nor feature_opt")


def quantization(opt: Mapping) -> Iterator[Problem]:
    """The model against the network: quantized or not."""
    model, section = find("model", opt.get("model_type")), get(opt, "network_g", Mapping)
    network = None if section is None else find("arch", section.get("type"))
    if model is None or network is None:
        return
    quantized = hasattr(model, "calibrate")
    if (
        quantized
        and "quant" not in inspect.signature(network).parameters
        and network.__module__.startswith(__package__.split(".")[0])
    ):
        yield Problem("model_type", f"{model.__name__} needs a quantized network; {network.__name__} has no quantizer")
    if not quantized and opt.get("quant_train") is not None:
        yield Problem("quant_train", f"{model.__name__} does not read it; use model_type: QATModel")
    teacher = get(opt, "quant_train.teacher", Mapping)
    if quantized and teacher and teacher.get("network") is None:
        from ..layers.info import full_precision_twin

        if full_precision_twin(network.__name__) is None:
            yield Problem(
                "quant_train.teacher",
                f"no full-precision twin of {network.__name__} is known; give the teacher's network under `network:`",
            )


def phases(opt: Mapping) -> Iterator[Problem]:
    """``quant_train: correction`` and ``progressive`` against the training that they are part of."""
    total = whole(opt, "train.total_iter")
    correction = whole(opt, "quant_train.correction.iterations")
    if correction and not get(opt, "train.ema_decay", (int, float)):
        yield Problem("quant_train.correction", "starts from averaged weights; set train: ema_decay")
    if correction and total and correction >= total:
        yield Problem("quant_train.correction.iterations", f"must be below train.total_iter, {total}; got {correction}")
    stages = get(opt, "quant_train.progressive", list) or []
    used = sum(stage["iterations"] for stage in stages if is_number(get(stage, "iterations", int)))
    if stages and total and used >= total:
        yield Problem("quant_train.progressive", f"must leave iterations of train.total_iter, {total}; takes {used}")


def paths(opt: Mapping) -> Iterator[Problem]:
    """Keys under ``path:`` that need each other."""
    if get(opt, "path.skip_keys_g", list) and get(opt, "path.strict_load_g", bool) is not False:
        yield Problem("path.skip_keys_g", "needs strict_load_g: false")
    if "tile" in opt and "tile" in (get(opt, "val", Mapping) or {}):
        yield Problem("tile", "is set twice: keep `val: tile` or the top-level `tile`")


def saving(opt: Mapping) -> Iterator[Problem]:
    """Logging that needs other logging."""
    if get(opt, "logger.wandb.project", str) and get(opt, "logger.use_tb_logger", bool) is False:
        yield Problem("logger.wandb.project", "wandb copies what TensorBoard gets; set use_tb_logger: true")


def problems(opt: Mapping, training: bool | None, kind: str) -> Iterator[Problem]:
    """All of the above that concern a file.

    Args:
        opt: the options.
        training: True for training, False for testing, None for a tool.
        kind: whose model, see ``sections.model_kind``.
    """
    yield from truth(opt)
    yield from names(opt, training)
    yield from paths(opt)
    if kind != "other":
        yield from network_fits_data(opt)
    if kind == "ours":
        yield from quantization(opt)
        yield from phases(opt)
    if training is not False:
        yield from patches(opt)
        yield from parts(opt)
        yield from recorded(opt)
        yield from loader(opt)
        yield from schedule(opt)
        yield from saving(opt)
        if kind != "other" and not getattr(find("model", opt.get("model_type")), "trains_itself", False):
            yield from losses(opt, kind == "ours")
