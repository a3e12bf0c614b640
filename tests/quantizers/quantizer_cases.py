"""Every registered quantizer of affine codes with every choice of every option, as parameters of tests.

A new entry of QUANTIZER_REGISTRY is covered without a new test.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from qmambair_basicsr.quantizers import (
    QUANTIZER_REGISTRY,
    AffineCodes,
    QuantizerSpec,
    Site,
    SpecError,
    build_quantizer,
)

CHANNELS = 5
SHAPE = (3, 7, CHANNELS)


def _variants(name: str, role: str) -> list[dict]:
    """Every choice of every option of a quantizer with the others left at their defaults, in each mode.

    Options inside an option (where DLS starts) are combined for one role alone: they do not look at the role.
    """
    single = [{}]
    for key, option in QUANTIZER_REGISTRY[name].options.items():
        if option.keys and role != "act":
            continue
        if option.keys:
            inner = [[(k, choice) for choice in entry.choices] for k, entry in option.keys.items()]
            single += [{key: dict(pairs)} for pairs in itertools.product(*inner)]
        elif key != "mode":
            single += [{key: choice} for choice in option.choices if choice != option.default]
    if "mode" in QUANTIZER_REGISTRY[name].options:
        single += [{"mode": "official"}] + [{"mode": "official", **v} for v in single[1:] if "init" not in v]
    return single


def _cases():
    """(type, bits, role, options): all option combinations at 4 bits, the defaults at 2, 3 and 8."""
    for name, cls in QUANTIZER_REGISTRY.items():
        if name == "Identity" or cls.kind is not AffineCodes:
            continue
        for role in cls.roles:
            for options in _variants(name, role):
                yield name, 4, role, options
            for bits in (1, 2, 3, 8) if role != "param" else ():
                if bits in cls.bit_widths:
                    yield name, bits, role, {}


def short(value):
    if isinstance(value, dict):
        return "-".join(str(v) if not isinstance(v, dict) else "".join(v.values()) for v in value.values()) or "default"
    return str(value)


CASES = list(_cases())
every = pytest.mark.parametrize(("kind", "bits", "role", "options"), CASES, ids=short)


def make(kind, bits, role, options, dtype=torch.float32, channels=CHANNELS):
    spec = QuantizerSpec(kind, bits, options)
    try:
        quantizer = build_quantizer(spec, Site.of_role(role, channels, -1 if role != "weight" else 2, part="body.0.x"))
    except SpecError as error:
        pytest.skip(f"refused as documented: {error}")
    return quantizer.to(dtype)


def needs_channels(options):
    """Whether a quantizer has values for channels or groups of them, which no other tensor has."""
    return not {"channel", "group16", "group32"}.isdisjoint(map(str, options.values()))


def sample(dtype=torch.float32, seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def disturb(quantizer, amount=0.05):
    """Move every parameter off its initial value, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
            parameter.add_(noise * amount * (parameter.abs() + 0.1 * parameter.abs().max() + 0.01))
