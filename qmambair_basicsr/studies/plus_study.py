"""The study ``plus`` of ``tools.ablation``: every ingredient of our own recipe by itself, on one base.

A variant is as in the other studies, and under ``options`` a function of the training options that returns entries which
differ. What lasts for some iterations is a share of the training's, so that one study fits a minute and an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..quantizers.presets import PRESET_OVERRIDES, PRESETS
from ..recipes.option_contents import ROTATION

Variant = dict[str, object]

PLUS = {**PRESETS["plus"], "overrides": {}, "transforms": {}}  # grids of weights and inputs; the scan as published
IN_SCAN = PRESET_OVERRIDES["plus"]  # the preset's other grids
PUBLISHED = {"weight": {"type": "RFA"}, "act": {"type": "LSQOffset"}, "scan": {"type": "DLS"}}
GROUP = {"granularity": "group16"}
SEQ = {"type": "SEQ", "granularity": "channel"}
LOW_RANK = {"LowRank": {"rank": 8}}


def _share(opt: Mapping, share: float) -> int:
    return max(1, round(int(opt["train"]["total_iter"]) * share))


def taught(opt: Mapping) -> dict:
    """The base: the target is the output of the file's teacher, or of the full-precision network that training starts from."""
    teacher = (opt.get("quant_train") or {}).get("teacher") or {"path": opt["path"]["pretrain_network_g"]}
    return {
        "train": {"pixel_opt": None, "distill_opt": {"type": "PixelDistillationLoss", "criterion": "l1"}},
        "quant_train": {"teacher": dict(teacher)},
    }


def _train(**entries: object) -> Callable[[Mapping], dict]:
    return lambda opt: {"train": entries}


def _phase(**entries: object) -> Callable[[Mapping], dict]:
    return lambda opt: {"quant_train": entries}


def ground_truth_only(opt: Mapping) -> dict:
    """No teacher: the base's target is taken back."""
    given = opt["train"].get("pixel_opt") or {"type": "L1Loss", "loss_weight": 1.0}
    return {"train": {"pixel_opt": dict(given), "distill_opt": None}, "quant_train": {"teacher": None}}


def ground_truth_late(opt: Mapping) -> dict:
    """The photographs come in beside the teacher over the second half, up to the teacher's weight."""
    late = {"from": 0.0, "to": 1.0, "start": _share(opt, 0.5)}
    return {"train": {"pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "schedule": late}}}


def features_early(opt: Mapping) -> dict:
    """Features of blocks are aligned over the first half, less and less."""
    early = {"from": 1.0, "to": 0.0, "end": _share(opt, 0.5)}
    return {"train": {"feature_opt": {"type": "FeatureAlignmentLoss", "loss_weight": 0.02, "schedule": early}}}


def freezing(opt: Mapping) -> dict:
    """Weights that flip often are frozen over the second half; averages look a tenth of the training back."""
    threshold = {"from": 0.2, "to": 0.05, "start": _share(opt, 0.5), "shape": "cosine"}
    momentum = 1 / max(2, _share(opt, 0.1))
    return {"quant_train": {"oscillation": {"freeze": threshold, "momentum": momentum}}}


def average(opt: Mapping) -> dict:
    """The average of the weights over a tenth of the training is what is tested."""
    return {"train": {"ema_decay": 1 - 1 / max(2, _share(opt, 0.1))}}


def correction(opt: Mapping) -> dict:
    """The average, and the last fifth for quantizers and biases alone."""
    return average(opt) | {"quant_train": {"correction": {"iterations": _share(opt, 0.2)}}}


def progressive(opt: Mapping) -> dict:
    """Two fifths of the training at wider grids."""
    stages = [{"bits": bits, "iterations": _share(opt, 0.2)} for bits in (8, 4)]
    return {"quant_train": {"progressive": stages}}


def blocks_first(opt: Mapping) -> dict:
    """Blocks are reconstructed one after the other: each iteration trains one of them only."""
    iterations = max(50, _share(opt, 1.0))
    return {"quant_train": {"start": {"method": {"type": "BlockAP", "batch": 2}, "iterations": iterations}}}


def variant(*options: Callable[[Mapping], dict], **sites: object) -> Variant:
    """The base with other sites and other entries of the options, later ones first."""

    def all_of(opt: Mapping) -> dict:
        found: dict = {}
        for entries in (taught, *options):
            for section, values in entries(opt).items():
                found[section] = {**found.get(section, {}), **values}
        return found

    return {**PLUS, **sites, "options": all_of}


def plus_variants() -> dict[str, Variant]:
    """Row name -> what differs; the first is the base."""
    return {
        "plus": variant(),
        "published grids": variant(**PUBLISHED),
        "ground truth, no teacher": variant(ground_truth_only),
        "ground truth late": variant(ground_truth_late),
        "features early": variant(features_early),
        "rate of quantizers x 5": variant(_phase(lr_factor=5.0)),
        "damping": variant(_phase(oscillation={"damping": {"from": 0.0, "to": 0.01, "shape": "cosine"}})),
        "freezing": variant(freezing),
        "average": variant(average),
        "average, then correction": variant(correction),
        "progressive bits 8, 4": variant(progressive),
        "blocks first": variant(blocks_first),
        "weights SEQ": variant(weight=SEQ),
        "weights in groups of 16": variant(weight={**PLUS["weight"], **GROUP}),
        "inputs in groups of 16": variant(act={"type": "LSQOffset", **GROUP}),
        "rotation of 32 channels": variant(transforms=ROTATION),
        "offsets in and behind the scan": variant(overrides=IN_SCAN),
        "rotation, offsets in and behind the scan": variant(overrides=IN_SCAN, transforms=ROTATION),
        "low-rank increments": variant(transforms=LOW_RANK),
        "SEQ, rotation, average": variant(average, weight=SEQ, transforms=ROTATION),
        "rotation, weights SEQ": variant(weight=SEQ, transforms=ROTATION),
        "rotation, weights in groups of 16": variant(weight={**PLUS["weight"], **GROUP}, transforms=ROTATION),
        "rotation, inputs in groups of 16 beside offsets": variant(act={**PLUS["act"], **GROUP}, transforms=ROTATION),
        "rotation, low-rank increments": variant(transforms={**ROTATION, **LOW_RANK}),
        "rotation, blocks first": variant(blocks_first, transforms=ROTATION),
        "rotation, rate of quantizers x 5": variant(_phase(lr_factor=5.0), transforms=ROTATION),
    }
