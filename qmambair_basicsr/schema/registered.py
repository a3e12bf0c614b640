"""Sections that name a registered class (``type:``) and hold its arguments."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..strict import did_you_mean
from .problems import UNREADABLE, Problem, join, show
from .rules import (
    ANYTHING,
    Choice,
    Each,
    Flag,
    List,
    Number,
    Rule,
    Section,
    Text,
    missing,
    optional,
    readable,
)
from .signatures import section_of

COUNT = Number(1, 1_000_000, whole=True)
SHARE = Number(0, 1, below=True)

# -- finding what a name stands for ------------------------------------------------------------------------------


def registry(kind: str):
    """BasicSR's registry of ``arch``, ``loss``, ``metric``, ``model`` or ``dataset``."""
    from basicsr.utils import registry as registries

    return getattr(registries, f"{kind.upper()}_REGISTRY")


def find(kind: str, name: object) -> Any | None:
    """Class registered under a name, or under the name with BasicSR's suffix; None if there is none."""
    known = registry(kind)
    if not isinstance(name, str):
        return None
    for candidate in (name, f"{name}_basicsr"):
        if candidate in known:
            return known.get(candidate)
    return None


def unregistered(where: str, kind: str, name: object) -> Problem:
    """Message about a name that no registry holds."""
    names = sorted(key.removesuffix("_basicsr") for key in registry(kind).keys())  # noqa: SIM118  (no mapping)
    return Problem(where, f"no {kind} is called {show(name)}{did_you_mean(name, names)}; known: {', '.join(names)}")


@dataclass(frozen=True)
class Registered(Rule):
    """A section with ``type:`` and the arguments of the class of that name.

    Attributes:
        kind: which registry.
        build: from the class to the section of its arguments.
        refused: classes that make no sense here, each with the reason.
    """

    kind_name: str
    build: Callable[[Any], Section]
    refused: tuple[tuple[str, str], ...] = ()
    kind = Mapping

    @property
    def words(self) -> str:
        return f"a section with the type of a {self.kind_name} and its arguments"

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if value is UNREADABLE:
            return
        if not isinstance(value, Mapping):
            alone = isinstance(value, str) and find(self.kind_name, value) is not None
            hint = f"; write {{type: {value}}}" if alone else ""
            yield Problem(where, f"must be {self.words}; got {show(value)}{hint}")
            return
        if "type" not in value:
            yield missing(f"{where}.type", Text(called=f"the name of a {self.kind_name}"))
            return
        if value["type"] is UNREADABLE:
            return
        found = find(self.kind_name, value["type"])
        if found is None:
            yield unregistered(f"{where}.type", self.kind_name, value["type"])
            return
        reason = dict(self.refused).get(found.__name__)
        if reason:
            yield Problem(f"{where}.type", f"{found.__name__} cannot stand here: {reason}")
            return
        rest = {key: entry for key, entry in value.items() if key != "type"}
        yield from self.build(found).problems(where, rest)


# -- networks ----------------------------------------------------------------------------------------------------

_COUNTS = re.compile(
    r"^(num_.*|.*_chans|.*channels?|depths?|embed_dim|dim|upscale|scale|img_size|patch_size|window_size|"
    r"d_state|inner_rank|.*kernel_size|n_layers_d|z_dim|crop_size|out_size|input_size)$"
)
_SHARES = re.compile(r"^.*drop.*_rate$|^drop_rate$")
_POSITIVE = re.compile(r"^(mlp_ratio|img_range|narrow|lr_mlp)$")


def _refine_network(name: str, parameter: inspect.Parameter, rule: Rule) -> Rule:
    """Ranges that follow from an argument's name, in BasicSR's networks and in ours."""
    narrow = COUNT if _COUNTS.match(name) else SHARE if _SHARES.match(name) else None
    narrow = Number(0, above=True) if _POSITIVE.match(name) else narrow
    if narrow is None:
        return rule
    if isinstance(rule, List):
        return List(narrow, least=1)
    if isinstance(rule, Number) or parameter.default is parameter.empty:
        return narrow
    return rule


def _network_section(network: Any) -> Section:
    ours_or_stock = network.__module__.split(".")[0] in ("basicsr", __package__.split(".")[0])
    section = section_of(network, refine=_refine_network if ours_or_stock else None)
    if "quant" in section.keys and network.__module__.startswith(__package__.split(".")[0] + "."):
        return Section(
            {**section.keys, "quant": Quant()}, section.required, section.unknown, section.title, section.check
        )
    return section


class Quant(Rule):
    """The ``quant:`` block: what ``quantizers/spec.py`` says."""

    words = "a mapping such as {weight: {type: LSQ, bits: 4}}"

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if value is UNREADABLE:
            return
        from ..quantizers.spec import QuantSpec

        for part in _quant_parts(value):
            try:
                QuantSpec.from_dict(part)
            except TypeError:  # a list or section stands where a name belongs
                key = next(iter(part))
                yield Problem(join(where, key), f"must be {self.words}; got {show(part[key])}")
            except ValueError as err:
                place, _, text = str(err).partition(": ")
                yield Problem(join(where.removesuffix(".quant").removesuffix("quant"), place), text)


def _quant_parts(value: Any) -> Iterator[Any]:
    """The block entry by entry, so that a mistake in one does not hide those of others; then the block as a whole."""
    if not isinstance(value, Mapping):
        yield value
        return
    named = {
        key: value[key] for key in ("preset", "bits") if "preset" in value and key in value and readable(value[key])
    }
    if "preset" in named:
        yield named
    for key, entry in value.items():
        if key is UNREADABLE or not readable(entry) or key in named:
            continue
        if key == "overrides" and isinstance(entry, Mapping):
            for pattern, sites in entry.items():
                if isinstance(sites, Mapping) and len(sites) > 1:
                    yield from ({key: {pattern: {site: spec}}} for site, spec in sites.items())
                else:
                    yield {key: {pattern: sites}}
        else:
            yield {key: entry}


NETWORK = Registered("arch", _network_section)

# -- losses ------------------------------------------------------------------------------------------------------

_REDUCTION = Choice(("mean", "sum"))  # the loop needs one number, which `none` does not give
_LOSS_RULES: dict[str, Rule] = {
    "reduction": _REDUCTION,
    "loss_weight": Number(),
    "eps": Number(0),
    "layer_weights": Each(Number(), least=1),
    "vgg_type": Choice(("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")),
    "gan_type": Choice(("vanilla", "lsgan", "wgan", "wgan_softplus", "hinge")),
}


def _refine_loss(name: str, parameter: inspect.Parameter, rule: Rule) -> Rule:
    return _LOSS_RULES.get(name, rule)


def _loss_section(loss: Any) -> Section:
    stock = loss.__module__.startswith("basicsr.")
    section = section_of(loss, refine=_refine_loss if stock else None)
    if loss.__name__ == "PerceptualLoss" and stock:
        criterion = Choice(("l1", "fro"))  # `l2` is misspelt in BasicSR 1.4.2 and cannot be built
        return Section({**section.keys, "criterion": criterion}, section.required, title=section.title)
    return section


_NOT_TWO_IMAGES = "it does not compare two images"
PIXEL_LOSS = Registered(
    "loss",
    _loss_section,
    tuple(
        (name, _NOT_TWO_IMAGES)
        for name in ("GANLoss", "MultiScaleGANLoss", "PerceptualLoss", "WeightedTVLoss", "FeatureAlignmentLoss")
    ),
)
PERCEPTUAL_LOSS = Registered(
    "loss",
    _loss_section,
    tuple(
        (name, "it is no perceptual loss")
        for name in (
            *("GANLoss", "MultiScaleGANLoss", "L1Loss", "MSELoss", "CharbonnierLoss", "WeightedTVLoss"),
            *("PixelDistillationLoss", "FeatureAlignmentLoss"),
        )
    ),
)
FEATURE_LOSS = Registered(
    "loss",
    _loss_section,
    tuple(
        (name, "it does not compare features")
        for name in (
            *("GANLoss", "MultiScaleGANLoss", "PerceptualLoss", "L1Loss", "MSELoss", "CharbonnierLoss"),
            *("WeightedTVLoss", "PixelDistillationLoss"),
        )
    ),
)
ANY_LOSS = Registered("loss", _loss_section)

# -- metrics -----------------------------------------------------------------------------------------------------

_GIVEN = ("img", "img2")  # what BasicSR hands to a metric
BETTER = Choice(("higher", "lower"))
_METRIC_RULES: dict[str, Rule] = {
    "crop_border": Number(0, 100_000, whole=True),
    "input_order": Choice(("HWC",)),  # what BasicSR's validation gives
    "test_y_channel": Flag(),
    "convert_to": Choice(("y", "gray")),
    "net": Choice(("alex", "vgg")),
}


def _refine_metric(name: str, parameter: inspect.Parameter, rule: Rule) -> Rule:
    return _METRIC_RULES.get(name, rule)


def _metric_section(metric: Any) -> Section:
    known = metric.__module__.split(".")[0] in ("basicsr", __package__.split(".")[0])
    return section_of(metric, _GIVEN, (("better", BETTER),), _refine_metric if known else None)


METRIC = Registered("metric", _metric_section)


def needs_truth(metric: Any) -> bool:
    """Whether a metric compares with a ground-truth image."""
    parameter = inspect.signature(metric).parameters.get("img2")
    return parameter is not None and parameter.default is parameter.empty


# -- optimizers and schedulers -----------------------------------------------------------------------------------

OPTIMIZERS = ("Adam", "AdamW", "SGD")
_OPTIMIZER_RULES: dict[str, Rule] = {
    "lr": Number(0, 1e6),
    "betas": List(Number(0, 1, below=True, point=True), 2, 2),
    "eps": Number(0),
    "weight_decay": Number(0),
    "momentum": Number(0),
    "dampening": Number(0),
    **dict.fromkeys(
        ("amsgrad", "nesterov", "maximize", "capturable", "differentiable", "decoupled_weight_decay"), Flag()
    ),
    **dict.fromkeys(("foreach", "fused"), optional(Flag())),
}


@functools.lru_cache
def _optimizer_section(name: str) -> Section:
    import torch

    keys = {
        key: _OPTIMIZER_RULES.get(key, ANYTHING)
        for key in inspect.signature(getattr(torch.optim, name)).parameters
        if key != "params"
    }
    return Section(keys, ("lr",), title=f"the optimizer {name}", check=_optimizer_check)


def _optimizer_check(where: str, options: Mapping) -> Iterator[Problem]:
    if options.get("fused") and (options.get("foreach") or options.get("differentiable")):
        yield Problem(f"{where}.fused", "cannot be true together with foreach or differentiable")
    if options.get("nesterov") and (not options.get("momentum") or options.get("dampening")):
        yield Problem(f"{where}.nesterov", "needs a momentum above 0 and no dampening")


@dataclass(frozen=True)
class Optimizer(Rule):
    """``optim_g:`` and the like.

    Attributes:
        names: optimizers that the model knows.
    """

    names: tuple[str, ...] = OPTIMIZERS
    kind = Mapping

    @property
    def words(self) -> str:
        return f"a section such as {{type: {self.names[0]}, lr: 0.0002}}"

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        yield from _typed(self, where, value, Choice(self.names), _optimizer_section)


SCHEDULERS = ("MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR")
_STEPS = List(Number(1, whole=True, as_float=True), least=0)
_SCHEDULER_KEYS: dict[str, Rule] = {
    "milestones": _STEPS,
    "gamma": Number(0),
    "restarts": List(Number(0, whole=True, as_float=True)),
    "restart_weights": List(Number(0)),
    "periods": List(Number(1, whole=True, as_float=True)),
    "eta_min": Number(0),
}


def _scheduler_section(name: str) -> Section:
    cosine = name == "CosineAnnealingRestartLR"
    keys = (
        ("periods", "restart_weights", "eta_min") if cosine else ("milestones", "gamma", "restarts", "restart_weights")
    )
    rules = {key: _SCHEDULER_KEYS[key] for key in keys}
    return Section(rules, keys[:1], title=f"the scheduler {name}", check=_scheduler_check)


def _scheduler_check(where: str, options: Mapping) -> Iterator[Problem]:
    many, weights = options.get("periods", options.get("restarts", [0])), options.get("restart_weights", [1])
    if len(many) != len(weights):
        key = "periods" if "periods" in options else "restarts"
        yield Problem(
            f"{where}.restart_weights", f"has {len(weights)} entries, but {key} {len(many)}; give one for each"
        )


class Scheduler(Rule):
    """``train: scheduler:``."""

    words = "a section such as {type: MultiStepLR, milestones: [10000], gamma: 0.5}"
    kind = Mapping

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        yield from _typed(self, where, value, Choice(SCHEDULERS), _scheduler_section)


def _typed(rule: Rule, where: str, value: Any, names: Choice, section: Callable[[str], Section]) -> Iterator[Problem]:
    """A section whose ``type`` is one of a few names, each with its own keys."""
    if value is UNREADABLE:
        return
    if not isinstance(value, Mapping):
        yield Problem(where, f"must be {rule.words}; got {show(value)}")
    elif "type" not in value:
        yield missing(f"{where}.type", names)
    elif not names.fits(value["type"]):
        yield from names.problems(f"{where}.type", value["type"])
    else:
        rest = {key: entry for key, entry in value.items() if key != "type"}
        yield from section(value["type"]).problems(where, rest)
