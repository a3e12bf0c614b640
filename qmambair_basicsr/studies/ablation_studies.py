"""The ablation studies of the Q-MambaIR paper as one table, and the training options of their variants.

A variant says which quantizers it puts where; everything else (network, data, optimizer, schedule) is the option
file's, so all variants have the same budget. Rows named after quantizers come from ``QUANTIZER_REGISTRY``: a new
quantizer takes part without a change here.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..quantizers import QUANTIZER_REGISTRY, QuantSpec
from ..quantizers.site import KINDS
from ..quantizers.spec import QuantizerSpec
from .plus_study import plus_variants

__all__ = ["REFERENCE", "Run", "Study", "plan", "studies", "variant_options"]

Quantizers = Mapping[str, object]  # site -> {type, options}, act_policy, transforms; "options": see plus_study

REFERENCE = "Q-MambaIR"
Q_MAMBAIR: Quantizers = {"weight": {"type": "RFA"}, "act": {"type": "LSQOffset"}, "scan": {"type": "DLS"}}

# quantizers in the paper's Tables 7a and 7b come first
_TABLE_7A = ("QuantSR", "LSQPlus", "PAMS")
_TABLE_7B = ("LSQ", "SoftSTE", "N2UQ")
# what the release already uses in a role; DLS as the only activation quantizer is the placement study's "paper"
_NOT_ACTIVATIONS = ("DLS", "Identity")
_NOT_WEIGHTS = ("RFA", "Identity")


@dataclass(frozen=True)
class Study:
    """A table of variants that differ in one respect.

    Attributes:
        title: heading.
        source: which table of the paper asks this, or which question it is.
        variants: row name -> quantizers; sites left out are Q-MambaIR's. Differences are taken to the first.
    """

    title: str
    source: str
    variants: Mapping[str, Quantizers]


def _weights(kind: str) -> Quantizers:
    return {"weight": {"type": kind}}


def _activations(kind: str) -> Quantizers:
    return {"act": {"type": kind}, "scan": {"type": kind}}


def _everything(kind: str) -> Quantizers:
    return _weights(kind) | _activations(kind)


def _start(group: str, convention: str = "text") -> Quantizers:
    # without the search, which would move every start to the same place
    return {"scan": {"type": "DLS", "init": {"group": group, "convention": convention, "search": "none"}}}


def _kinds(first: Sequence[str], roles: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """Registered quantizers for ``roles``, those of the paper first."""
    able = [
        kind
        for kind, cls in QUANTIZER_REGISTRY.items()
        if kind not in left_out and all(role in cls.roles for role in roles)
    ]
    return sorted(able, key=lambda kind: (first.index(kind) if kind in first else len(first), able.index(kind)))


def studies() -> dict[str, Study]:
    """All studies by key, the published comparison first."""
    reference: dict[str, Quantizers] = {REFERENCE: {}}
    official = {"mode": "official"}
    return {
        "methods": Study(
            "Methods: one quantizer for weights and activations",
            "Tables 1 and 8",
            reference | {"LSQ": _everything("LSQ"), "QuantSR": _everything("QuantSR")},
        ),
        "components": Study(
            "Components: DLS replaces the baseline's activations, RFA its weights",
            "Table 5; its baseline is QuantSR",
            {
                "baseline (QuantSR)": _everything("QuantSR"),
                "DLS only": _weights("QuantSR"),
                "RFA only": _activations("QuantSR"),
                REFERENCE: {},
            },
        ),
        "activations": Study(
            "Activation quantizers, weights RFA",
            "Table 7a; all inputs and scan inputs; the reference has DLS where the release has it",
            reference | {kind: _activations(kind) for kind in _kinds(_TABLE_7A, ("act", "param"), _NOT_ACTIVATIONS)},
        ),
        "weights": Study(
            "Weight quantizers, activations as Q-MambaIR",
            "Table 7b; LSQ is its STE, N2UQ its NU2U",
            reference | {kind: _weights(kind) for kind in _kinds(_TABLE_7B, ("weight",), _NOT_WEIGHTS)},
        ),
        "placement": Study(
            "Placement of DLS",
            "release (DLS on out_proj and scan inputs) against paper (on every activation)",
            reference | {"act_policy: paper": {"act_policy": "paper"}},
        ),
        "statistics": Study(
            "Statistics of DLS",
            "per sample (reference) against per tensor",
            reference | {"stats: tensor": {"scan": {"type": "DLS", "stats": "tensor"}}},
        ),
        "mode": Study(
            "Mended quantizers against the release's arithmetic",
            "mode: stable (reference) against mode: official",
            reference | {"mode: official": {site: {**Q_MAMBAIR[site], **official} for site in Q_MAMBAIR}},
        ),
        "init": Study(
            "Starting weights of DLS",
            "Table 6; 'a, b' are its labels: step from 3 std or from the range, centre mean or middle",
            {
                "search (reference)": {},
                "G1: mean +- 3 std (a1, b1)": _start("G1"),
                "G2 of the text: mean +- 4 std": _start("G2"),
                "G2 of the labels (a1, b2)": _start("G2", "grid"),
                # the labels' groups 3 and 4 are the text's 4 and 3
                "G3 of the text, G4 of the labels: [min, max] (a2, b2)": _start("G3"),
                "G4 of the text, G3 of the labels: mean +- range / 2 (a2, b1)": _start("G4"),
            },
        ),
        "plus": Study(
            "Ingredients of a recipe of our own, each alone",
            "on the grids of the preset plus, trained towards the output of the full-precision network",
            plus_variants(),
        ),
    }


def variant_options(opt: Mapping, variant: Quantizers, bits: int, seed: int) -> dict:
    """Training options of one variant.

    Args:
        opt: options as read from the file, overrides applied.
        variant: sites that differ from Q-MambaIR; of the study ``plus`` also other options.
        bits: width of weights and activations; sites such as ``attention`` that the file quantizes besides take it too.
        seed: ``manual_seed``: data order, crops, calibration batches.

    Returns:
        A copy of ``opt`` with other quantizers, seed and name; the name holds a hash of all other options.

    Raises:
        SpecError: a quantizer that does not exist or not at this width.
    """
    opt = copy.deepcopy(dict(opt))
    variant = dict(variant)
    merge(opt, variant.pop("options", lambda opt: {})(opt))
    quant = copy.deepcopy(dict(opt["network_g"]["quant"]))
    for site, chosen in (Q_MAMBAIR | {"act_policy": "code"} | variant).items():
        quant[site] = copy.deepcopy(chosen)
    for block in (quant, *quant.get("overrides", {}).values()):
        for site in KINDS:
            if site in block:
                block[site] = {**block[site], "bits": bits}
    opt["network_g"]["quant"] = quant
    opt["manual_seed"] = seed
    opt["name"] = f"w{bits}a{bits}_seed{seed}_{digest(opt)}"
    return opt


def merge(opt: dict, others: Mapping) -> None:
    """Put other entries into options, in place, section by section."""
    for key, value in others.items():
        if isinstance(value, Mapping) and isinstance(opt.get(key), Mapping):
            opt[key] = dict(opt[key])
            merge(opt[key], value)
        else:
            opt[key] = copy.deepcopy(value)


def digest(opt: Mapping) -> str:
    """Hash of everything that decides a training's result; defaults written out or left out make no difference."""
    plain = {key: value for key, value in opt.items() if key not in ("name", "plugin")}
    spec = QuantSpec.from_dict(opt["network_g"]["quant"])
    quant = {site: _complete(getattr(spec, site)) for site in KINDS}
    overrides = [(pattern, {site: _complete(s) for site, s in sites.items()}) for pattern, sites in spec.overrides]
    quant |= {"act_policy": spec.act_policy, "overrides": overrides}
    if spec.transforms:
        quant["transforms"] = spec.to_dict()["transforms"]
    plain["network_g"] = {**opt["network_g"], "quant": quant}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _complete(spec: QuantizerSpec) -> dict:
    """A quantizer with all its options."""
    options = {}
    for name, option in QUANTIZER_REGISTRY[spec.type].options.items():
        value = spec.options.get(name, option.default)
        options[name] = {**option.default, **value} if option.keys is not None else value
    return {"type": spec.type, "bits": spec.bits, **options}


@dataclass(frozen=True)
class Run:
    """One training and its tests; several studies may hold it.

    Attributes:
        name: of the run's folder, with the hash of its options.
        places: (study, variant) pairs.
        bits, seed: see :func:`variant_options`.
        opt: training options.
    """

    name: str
    places: tuple[tuple[str, str], ...]
    bits: int
    seed: int
    opt: dict


def plan(
    opt: Mapping, wanted: Sequence[str], bits: Sequence[int], seeds: Sequence[int], only: Sequence[str] | None = None
) -> list[Run]:
    """Every training that the wanted studies need, each once, in the order of the studies.

    Args:
        opt: options as :func:`variant_options` takes them.
        wanted: keys of studies.
        bits: widths; a quantizer that lacks one is left out there.
        seeds: of every variant.
        only: name patterns (``fnmatch``) of variants; a study's first variant is kept. None keeps all.

    Raises:
        ValueError: an unknown study, a pattern that fits nothing, or options without ``network_g: quant``.
    """
    table = studies()
    unknown = [key for key in wanted if key not in table]
    if unknown:
        raise ValueError(f"unknown study {unknown[0]!r}; there are {', '.join(table)}")
    if not opt.get("network_g", {}).get("quant"):
        raise ValueError("network_g has no quant block; give the option file of a quantized network")
    rows = [(study, variant) for study in wanted for variant in table[study].variants]
    for pattern in only or ():
        if not any(fnmatchcase(variant, pattern) for _, variant in rows):
            raise ValueError(f"no variant fits {pattern!r}; there are {', '.join(v for _, v in rows)}")
    runs: dict[str, Run] = {}
    for study in wanted:
        for i, (variant, quantizers) in enumerate(table[study].variants.items()):
            if only and i and not any(fnmatchcase(variant, pattern) for pattern in only):
                continue
            for width in (w for w in bits if available(quantizers, w)):
                for seed in seeds:
                    chosen = variant_options(opt, quantizers, width, seed)
                    name = chosen["name"]
                    places = runs[name].places if name in runs else ()
                    runs[name] = Run(name, (*places, (study, variant)), width, seed, chosen)
    return list(runs.values())


def available(quantizers: Quantizers, bits: int) -> bool:
    """Whether every quantizer of a variant exists at a width."""
    sites = (Q_MAMBAIR | dict(quantizers)).items()
    return all(bits in QUANTIZER_REGISTRY[chosen["type"]].bit_widths for site, chosen in sites if site in KINDS)
