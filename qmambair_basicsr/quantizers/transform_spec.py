"""The ``transforms:`` entry of a ``quant:`` block: what inputs and weights go through before their quantizers.

```yaml
quant:
  transforms:
    LowRank: {rank: 8}
    Hadamard: {block: 32, places: ['*.in_proj', '*.out_proj']}
```

=========== ==================================================================================================
LowRank     an increment B A of every weight, trained beside it and merged in every saved checkpoint (SPR2Q)
Hadamard    inputs are rotated in floating point in front of their quantizers, weights against it (QuaRot)
=========== ==================================================================================================

``places`` is a pattern, or a list of them, for the names of parts that overrides go by; the default is all of them. Where a
transform does not fit (a rotation where groups of a convolution keep channels apart) it is left out. They act in the order
of the table; ``layers/declared.py`` puts them in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..strict import unknown

if TYPE_CHECKING:
    from .spec import Option

INCREMENT = "LowRank"
"""The transform that is part of the weight once training is over."""


def _options() -> dict[str, dict[str, Option]]:
    from .spec import Option  # which reads this module

    return {
        INCREMENT: {"rank": Option(8, "columns of B", low=1, high=256)},
        "Hadamard": {"block": Option(32, "largest number of channels mixed; 0 for all", low=0, high=4096)},
    }


@dataclass(frozen=True)
class TransformSpec:
    """One transform of a network.

    Attributes:
        type: key of the table above.
        places: patterns for names of places.
        options: of its type, those left out with their defaults.
    """

    type: str
    places: tuple[str, ...] = ("*",)
    options: Mapping[str, int] = field(default_factory=dict)

    def matches(self, name: str) -> bool:
        """Whether a place is meant."""
        return any(fnmatchcase(name, pattern) for pattern in self.places)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :func:`read_transforms` reads back under the key ``type``."""
        return {**self.options, "places": list(self.places)}


def transform_mistakes(config: Any, where: str = "quant.transforms") -> Iterator[str]:
    """The mistakes in a ``transforms:`` entry."""
    known = _options()
    if not isinstance(config, Mapping):
        yield f"{where}: expected a mapping such as {{Hadamard: {{block: 32}}}}, got {config!r}."
        return
    for kind, given in config.items():
        if kind not in known:
            yield unknown(where, "transform", kind, known)
        elif not isinstance(given, Mapping):
            yield f"{where}.{kind}: expected a mapping such as {{places: '*.in_proj'}}, got {given!r}."
        else:
            for key, value in given.items():
                if key == "places":
                    listed = value if isinstance(value, (list, tuple)) else [value]
                    if not listed or not all(isinstance(pattern, str) and pattern for pattern in listed):
                        yield f"{where}.{kind}.places: expected a pattern or a list of patterns, got {value!r}."
                elif key not in known[kind]:
                    yield unknown(f"{where}.{kind}", "key", key, ["places", *known[kind]])
                elif isinstance(value, float):
                    yield f"{where}.{kind}.{key}: expected an integer, got {value!r}."
                else:
                    yield from known[kind][key].mistakes(value, f"{where}.{kind}.{key}")


def read_transforms(config: Mapping[str, Any]) -> tuple[TransformSpec, ...]:
    """Read a ``transforms:`` entry without mistakes, in the order in which they act."""
    found = []
    for kind, options in _options().items():
        if kind in config:
            given = dict(config[kind])
            places = given.pop("places", "*")
            chosen = {key: option.default for key, option in options.items()} | given
            found.append(TransformSpec(kind, (places,) if isinstance(places, str) else tuple(places), chosen))
    return tuple(found)


def without_increments(network: Mapping[str, Any]) -> dict[str, Any]:
    """A ``network_g`` block without what a saved weight already holds."""
    quant = network.get("quant")
    if not isinstance(quant, Mapping) or INCREMENT not in (quant.get("transforms") or {}):
        return dict(network)
    kept = {kind: given for kind, given in quant["transforms"].items() if kind != INCREMENT}
    rest = {key: value for key, value in quant.items() if key != "transforms"}
    return {**network, "quant": rest | ({"transforms": kept} if kept else {})}
