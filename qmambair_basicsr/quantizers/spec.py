"""Quantization settings: frozen, validated on construction, plain data in and out of YAML.

``QuantSpec.from_dict`` reads the ``quant:`` block of an option file. Every unknown key, quantizer, option
value or bit-width is refused with the key's path and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ..strict import unknown as _unknown

ALL_BITS = (*range(1, 9), 32)
SITES = ("weight", "act", "scan", "attention", "routing")
ACT_POLICIES = ("code", "paper")


class SpecError(ValueError):
    """An impossible setting under ``quant:``."""


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def unknown(where: str, kind: str, value: Any, allowed: Iterable[str]) -> SpecError:
    """An error that names the place, the value, the nearest allowed one and all allowed ones."""
    return SpecError(_unknown(where, kind, value, allowed))


def check_bits(bits: Any, allowed: Iterable[int], where: str) -> None:
    """Refuse anything that is not one of the ``allowed`` bit-widths.

    Raises:
        SpecError: naming ``where``, the value and the allowed widths.
    """
    allowed = tuple(allowed)
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in allowed:
        raise SpecError(f"{where}: bits must be one of {_listed(allowed)} (an integer), got {bits!r}.")


def _check_mapping(value: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: expected a mapping such as {{type: LSQ, bits: 4}}, got {value!r}.")


@dataclass(frozen=True)
class Option:
    """One option of a quantizer.

    Attributes:
        default: value when the option is left out.
        help: one line for the documentation.
        choices: allowed values; empty for a number.
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
        if self.keys is not None:
            _check_mapping(value, where)
            for key, entry in value.items():
                if key not in self.keys:
                    raise unknown(where, "key", key, self.keys)
                self.keys[key].check(entry, f"{where}.{key}")
        elif self.choices:
            if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in self.choices):
                raise unknown(where, "value", value, [str(choice) for choice in self.choices])
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            raise SpecError(f"{where}: expected a number in [{self.low}, {self.high}], got {value!r}.")


@dataclass(frozen=True)
class QuantizerSpec:
    """One quantizer: ``{type: DLS, bits: 4, <options of DLS>}``.

    Attributes:
        type: name in ``QUANTIZER_REGISTRY``.
        bits: 1-8 as the type allows, or 32 for no quantization whatever the type.
        options: the type's own options (``mode`` among them); those left out take their defaults.

    Raises:
        SpecError: unknown type or option, impossible value or bit-width.
    """

    type: str = "Identity"
    bits: int = 32
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    where: str = field(default="quant", compare=False, repr=False)

    def __post_init__(self) -> None:
        from . import QUANTIZER_REGISTRY  # the registry's classes import this module

        if self.type not in QUANTIZER_REGISTRY:
            raise unknown(f"{self.where}.type", "quantizer", self.type, QUANTIZER_REGISTRY)
        cls = QUANTIZER_REGISTRY[self.type]
        allowed = cls.bit_widths if 32 in cls.bit_widths else (*cls.bit_widths, 32)
        check_bits(self.bits, allowed, f"{self.where}.bits ({self.type})")
        for key, value in self.options.items():
            if key not in cls.options:
                raise unknown(self.where, f"key for {self.type}", key, ["type", "bits", *cls.options])
            cls.options[key].check(value, f"{self.where}.{key}")

    @property
    def mode(self) -> str | None:
        """``stable`` or ``official`` for quantizers that have both, else None."""
        from . import QUANTIZER_REGISTRY

        option = QUANTIZER_REGISTRY[self.type].options.get("mode")
        return None if option is None else self.options.get("mode", option.default)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str = "quant") -> QuantizerSpec:
        """Read ``{type, bits, **options}``; ``where`` is the key's path, for messages."""
        _check_mapping(config, where)
        config = dict(config)
        if "type" not in config:
            raise SpecError(f"{where}: no 'type' given; write for example {{type: LSQ, bits: 4}}.")
        kind = config.pop("type")
        if "bits" not in config and kind != "Identity":
            raise SpecError(f"{where}: no 'bits' given for {kind}.")
        return cls(kind, config.pop("bits", 32), config, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads back."""
        return {"type": self.type, "bits": self.bits, **self.options}


def _no_quantization() -> QuantizerSpec:
    return QuantizerSpec()


@dataclass(frozen=True)
class QuantSpec:
    """What to quantize with what, for a whole network.

    Attributes:
        weight: weights of convolutions, linears and raw projections.
        act: inputs of convolutions, linears and raw projections.
        scan: u, delta, A, B, C, D and dt_bias of the selective scan.
        attention: queries, keys, values and the attention map of window attention (MambaIRv2).
        routing: token routing of MambaIRv2: weights and inputs of its linears, both factors of the prompt
            dictionary, the dictionary and the one-hot policy.
        act_policy: ``code`` places DLS as the authors' release does, ``paper`` as the paper says
            (see ``layers/policy.py``).
        overrides: (pattern, {site: QuantizerSpec}) pairs; the pattern (``fnmatch``) is tried on a module's
            dotted name, and of several that match the last one decides.

    Raises:
        SpecError: unknown ``act_policy`` or site.
    """

    weight: QuantizerSpec = field(default_factory=_no_quantization)
    act: QuantizerSpec = field(default_factory=_no_quantization)
    scan: QuantizerSpec = field(default_factory=_no_quantization)
    attention: QuantizerSpec = field(default_factory=_no_quantization)
    routing: QuantizerSpec = field(default_factory=_no_quantization)
    act_policy: str = "code"
    overrides: tuple[tuple[str, Mapping[str, QuantizerSpec]], ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        if self.act_policy not in ACT_POLICIES:
            raise unknown("quant.act_policy", "value", self.act_policy, ACT_POLICIES)
        for pattern, sites in self.overrides:
            for site in sites:
                if site not in SITES:
                    raise unknown(f"quant.overrides[{pattern!r}]", "key", site, SITES)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> QuantSpec:
        """Read the ``quant:`` block of an option file; sites left out stay full precision.

        Raises:
            SpecError: on anything unknown or impossible, naming its path.
        """
        _check_mapping(config, "quant")
        allowed = (*SITES, "act_policy", "overrides")
        for key in config:
            if key not in allowed:
                raise unknown("quant", "key", key, allowed)
        sites = {site: QuantizerSpec.from_dict(config[site], f"quant.{site}") for site in SITES if site in config}
        _check_mapping(config.get("overrides", {}), "quant.overrides")
        overrides = []
        for pattern, entry in config.get("overrides", {}).items():
            where = f"quant.overrides[{pattern!r}]"
            _check_mapping(entry, where)
            for site in entry:
                if site not in SITES:
                    raise unknown(where, "key", site, SITES)
            specs = {site: QuantizerSpec.from_dict(value, f"{where}.{site}") for site, value in entry.items()}
            overrides.append((str(pattern), specs))
        return cls(**sites, act_policy=config.get("act_policy", "code"), overrides=tuple(overrides))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads back."""
        plain: dict[str, Any] = {site: getattr(self, site).to_dict() for site in SITES}
        overrides = {
            pattern: {site: spec.to_dict() for site, spec in sites.items()} for pattern, sites in self.overrides
        }
        return plain | {"act_policy": self.act_policy, "overrides": overrides}

    def resolve(self, name: str, site: str, default: QuantizerSpec | None = None) -> QuantizerSpec:
        """The quantizer of ``site`` in the module called ``name``.

        Args:
            name: dotted module name as ``named_modules`` gives it.
            site: kind of site, one of ``SITES``.
            default: used instead of the network-wide setting when no override matches.
        """
        if site not in SITES:
            raise unknown("QuantSpec.resolve", "site", site, SITES)
        chosen = getattr(self, site) if default is None else default
        for pattern, sites in self.overrides:
            if site in sites and fnmatchcase(name, pattern):
                chosen = sites[site]
        return chosen
