"""Quantization settings: frozen, validated on construction, plain data in and out of YAML.

``QuantSpec.from_dict`` reads the ``quant:`` block of an option file. Every unknown key, quantizer, option value or
bit-width is refused with the key's path and what is allowed, all of them in one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..strict import is_one_of, unknown
from .presets import PRESETS, expanded, expanded_overrides
from .registry import QUANTIZER_REGISTRY
from .site import KINDS, Site
from .transform_spec import TransformSpec, read_transforms, transform_mistakes

ACT_POLICIES = ("code", "paper")
GROUP_CONVOLUTIONS = ("quantized", "fp")


class SpecError(ValueError):
    """An impossible setting under ``quant:``; one line for each mistake."""


def refuse(mistakes: Iterable[str]) -> None:
    """Raise one SpecError that names all mistakes, if there are any."""
    found = list(mistakes)
    if found:
        raise SpecError("\n".join(found))


def check_bits(bits: Any, allowed: Iterable[int], where: str) -> None:
    """Refuse anything that is not one of the ``allowed`` bit-widths.

    Raises:
        SpecError: naming ``where``, the value and the allowed widths.
    """
    refuse(_wrong_bits(bits, allowed, where))


def _wrong_bits(bits: Any, allowed: Iterable[int], where: str) -> Iterator[str]:
    allowed = tuple(allowed)
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in allowed:
        listed = ", ".join(map(str, allowed))
        yield f"{where}: bits must be one of {listed} (an integer), got {bits!r}."


def _no_mapping(value: Any, where: str) -> str | None:
    if isinstance(value, Mapping):
        return None
    return f"{where}: expected a mapping such as {{type: LSQ, bits: 4}}, got {value!r}."


@dataclass(frozen=True)
class Option:
    """One option of a quantizer.

    Attributes:
        default: value when the option is left out.
        help: one line for the documentation.
        choices: allowed values; empty for a number, a whole one where the default is an int.
        low, high: bounds of a number, both allowed values.
        keys: for an option that is itself a mapping, its options.
    """

    default: Any
    help: str
    choices: tuple = ()
    low: float | None = None
    high: float | None = None
    keys: Mapping[str, Option] | None = None

    def check(self, value: Any, where: str) -> None:
        """Raise SpecError unless ``value`` is allowed."""
        refuse(self.mistakes(value, where))

    def mistakes(self, value: Any, where: str) -> Iterator[str]:
        """The mistakes in a value, one message each."""
        if self.keys is not None:
            if wrong := _no_mapping(value, where):
                yield wrong
                return
            for key, entry in value.items():
                if key not in self.keys:
                    yield unknown(where, "key", key, self.keys)
                else:
                    yield from self.keys[key].mistakes(entry, f"{where}.{key}")
        elif self.choices:
            if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in self.choices):
                yield unknown(where, "value", value, self.choices)
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            yield f"{where}: expected a number in [{self.low}, {self.high}], got {value!r}."
        elif isinstance(self.default, int) and value != int(value):
            yield f"{where}: expected a whole number, got {value!r}."


@dataclass(frozen=True)
class QuantizerSpec:
    """One quantizer: ``{type: DLS, bits: 4, <options of DLS>}``.

    Attributes:
        type: name in ``QUANTIZER_REGISTRY``.
        bits: 1-8 as the type allows, or 32 for no quantization whatever the type.
        options: the type's own options (``mode`` among them); those left out take their defaults.

    Raises:
        SpecError: unknown type or option, impossible value or bit-width; all mistakes at once.
    """

    type: str = "Identity"
    bits: int = 32
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    where: str = field(default="quant", compare=False, repr=False)

    def __post_init__(self) -> None:
        refuse(_quantizer_mistakes(self.type, self.bits, self.options, self.where))

    @property
    def mode(self) -> str | None:
        """``stable`` or ``official`` for quantizers that have both, else None."""
        option = QUANTIZER_REGISTRY[self.type].options.get("mode")
        return None if option is None else self.options.get("mode", option.default)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str = "quant") -> QuantizerSpec:
        """Read ``{type, bits, **options}``; ``where`` is the key's path, for messages."""
        if wrong := _no_mapping(config, where):
            raise SpecError(wrong)
        options = dict(config)
        if "type" not in options:
            raise SpecError(f"{where}: no 'type' given; write for example {{type: LSQ, bits: 4}}.")
        kind = options.pop("type")
        mistakes = [] if "bits" in options or kind == "Identity" else [f"{where}: no 'bits' given for {kind}."]
        bits = options.pop("bits", 32)
        refuse([*_quantizer_mistakes(kind, bits, options, where), *mistakes])
        return cls(kind, bits, options, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads back."""
        return {"type": self.type, "bits": self.bits, **self.options}


def _quantizer_mistakes(kind: str, bits: Any, options: Mapping[str, Any], where: str) -> Iterator[str]:
    """The mistakes in the settings of one quantizer."""
    if not is_one_of(kind, QUANTIZER_REGISTRY):
        yield unknown(f"{where}.type", "quantizer", kind, QUANTIZER_REGISTRY)
        return
    cls = QUANTIZER_REGISTRY[kind]
    for key, value in options.items():
        if key not in cls.options:
            yield unknown(where, f"key for {kind}", key, ["type", "bits", *cls.options])
        else:
            yield from cls.options[key].mistakes(value, f"{where}.{key}")
    allowed = cls.bit_widths if 32 in cls.bit_widths else (*cls.bit_widths, 32)
    wrong = list(_wrong_bits(bits, allowed, f"{where}.bits ({kind})"))
    if not wrong and (why := cls.impossible(bits, options)):
        wrong = [f"{where} ({kind}): {why}"]
    yield from wrong


def _no_quantization() -> QuantizerSpec:
    return QuantizerSpec()


@dataclass(frozen=True)
class QuantSpec:
    """Quantizers for every kind of site of a network.

    Attributes:
        weight: weights of convolutions, linears and raw projections.
        act: inputs of convolutions, linears and raw projections.
        scan: u, delta, A, B, C, D and dt_bias of the selective scan.
        attention: queries, keys, values and the attention map of window attention (MambaIRv2).
        routing: token routing of MambaIRv2: weights and inputs of its linears, both factors of the prompt
            dictionary, the dictionary and the one-hot policy.
        state: states of the selective scan, as the read-out sees them (SPR2Q); the recurrence itself stays in full
            precision. All states are in memory only where somebody looks at them (calibration), see
            ``ops/ss2d_scan/rounded.py``.
        act_policy: ``code`` places DLS as the authors' release does, ``paper`` as the paper says
            (see ``layers/policy.py``).
        conv: ``fp`` leaves the convolution behind each group of blocks in full precision, as 2DQuant, CondiQuant and SPR2Q
            do in SwinIR.
        preset: kinds, and overrides as ``pattern.kind``, that the network may lack, as they come from a preset (``presets.py``).
        overrides: (pattern, {kind: QuantizerSpec}) pairs; the pattern (``fnmatch``) is tried on the dotted name of a
            site's part and on that of its owner, and of several that match the last one decides.
        transforms: what inputs and weights go through first (``transform_spec.py``).

    Raises:
        SpecError: unknown ``act_policy``, ``conv`` or kind of site.
    """

    weight: QuantizerSpec = field(default_factory=_no_quantization)
    act: QuantizerSpec = field(default_factory=_no_quantization)
    scan: QuantizerSpec = field(default_factory=_no_quantization)
    attention: QuantizerSpec = field(default_factory=_no_quantization)
    routing: QuantizerSpec = field(default_factory=_no_quantization)
    state: QuantizerSpec = field(default_factory=_no_quantization)
    act_policy: str = "code"
    conv: str = "quantized"
    preset: tuple[str, ...] = ()
    overrides: tuple[tuple[str, Mapping[str, QuantizerSpec]], ...] = field(default=(), hash=False)
    transforms: tuple[TransformSpec, ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        refuse(self._mistakes())

    def _mistakes(self) -> Iterator[str]:
        if self.act_policy not in ACT_POLICIES:
            yield unknown("quant.act_policy", "value", self.act_policy, ACT_POLICIES)
        if self.conv not in GROUP_CONVOLUTIONS:
            yield unknown("quant.conv", "value", self.conv, GROUP_CONVOLUTIONS)
        for pattern, chosen in self.overrides:
            for kind in chosen:
                if kind not in KINDS:
                    yield unknown(f"quant.overrides[{pattern!r}]", "key", kind, KINDS)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> QuantSpec:
        """Read the ``quant:`` block of an option file; kinds of sites left out stay full precision.

        ``{preset: plus, bits: 4}`` stands for the quantizers of ``presets.py``; kinds that are given as well come first.

        Raises:
            SpecError: on anything unknown or impossible, all mistakes at once, each with its path.
        """
        refuse(filter(None, [_no_mapping(config, "quant")]))
        preset, fine = {}, {}
        if "preset" in config:
            refuse(_preset_mistakes(config))
            preset = expanded(config["preset"], config["bits"])
            fine = expanded_overrides(config["preset"], config["bits"], config)
            config = preset | {key: value for key, value in config.items() if key not in ("preset", "bits")}
            preset = {kind: value for kind, value in preset.items() if config[kind] is value}
        others = {"act_policy": "code", "conv": "quantized", "overrides": {}, "transforms": {}}
        others |= {key: config[key] for key in others if key in config}
        mistakes: list[str] = []
        kinds = {key: value for key, value in config.items() if key not in others}
        chosen = _read_kinds(kinds, "quant", mistakes, (*KINDS, *others, "preset"))
        mistakes += transform_mistakes(others["transforms"])
        transforms = () if mistakes else read_transforms(others["transforms"])
        overrides = []
        if wrong := _no_mapping(others["overrides"], "quant.overrides"):
            mistakes.append(wrong)
        else:
            for pattern, entry in (*fine.items(), *others["overrides"].items()):
                where = f"quant.overrides[{pattern!r}]"
                overrides.append((str(pattern), _read_kinds(entry, where, mistakes, KINDS)))
        named = (*preset, *(f"{pattern}.{kind}" for pattern, kinds in fine.items() for kind in kinds))
        try:
            spec = cls(**chosen, **{**others, "overrides": tuple(overrides), "transforms": transforms}, preset=named)
        except SpecError as error:
            mistakes.append(str(error))
        refuse(mistakes)
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads back."""
        plain: dict[str, Any] = {kind: getattr(self, kind).to_dict() for kind in KINDS}
        overrides = {
            pattern: {kind: spec.to_dict() for kind, spec in chosen.items()} for pattern, chosen in self.overrides
        }
        plain |= {"act_policy": self.act_policy, "conv": self.conv, "overrides": overrides}
        return plain | ({"transforms": {t.type: t.to_dict() for t in self.transforms}} if self.transforms else {})

    def resolve(self, site: Site) -> QuantizerSpec:
        """The settings of a site: those of its kind, or those of the last override that means it."""
        chosen = getattr(self, site.kind)
        for pattern, kinds in self.overrides:
            if site.kind in kinds and site.matches(pattern):
                chosen = kinds[site.kind]
        return chosen


def _preset_mistakes(config: Mapping[str, Any]) -> Iterator[str]:
    """The mistakes in ``preset`` and ``bits``."""
    name = config["preset"]
    if not is_one_of(name, PRESETS):
        yield unknown("quant.preset", "preset", name, PRESETS)
    elif "bits" not in config:
        yield f"quant: no 'bits' given for the preset {name}; write {{preset: {name}, bits: 4}}."
    else:
        kinds = [QUANTIZER_REGISTRY[chosen["type"]].bit_widths for chosen in PRESETS[name].values()]
        common = sorted(set.intersection(*map(set, kinds)))
        yield from _wrong_bits(config["bits"], common, f"quant.bits (preset {name})")


def _read_kinds(config: Any, where: str, mistakes: list[str], allowed: Iterable[str]) -> dict[str, QuantizerSpec]:
    """Read ``{kind: {type, bits, ...}}``; what is wrong is added to ``mistakes``."""
    if wrong := _no_mapping(config, where):
        mistakes.append(wrong)
        return {}
    chosen = {}
    for kind, value in config.items():
        if kind not in KINDS:
            mistakes.append(unknown(where, "key", kind, allowed))
            continue
        try:
            chosen[kind] = QuantizerSpec.from_dict(value, f"{where}.{kind}")
        except SpecError as error:
            mistakes.append(str(error))
    return chosen
