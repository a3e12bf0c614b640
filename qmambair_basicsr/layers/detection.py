"""From the keys of a state_dict to constructor options: one rule beside each architecture.

A rule reads what the names and shapes of a full-precision network say and returns the constructor options, or several
choices of them; :class:`Keys` raises KeyError where a key is missing, which means "another network". What keys cannot say
(a range of values, a scan order) is that of the published configurations, and the rule says so. Nobody relies on a rule:
the network it describes has to load the file strictly (``inference/detection.py``).

>>> @detects("Mine")
... def _(keys):
...     return {"width": keys["head.weight"][0], "depth": keys.count("body")}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

__all__ = ["RULES", "Keys", "detects", "ratio"]

Rule = Callable[["Keys"], "dict | list[dict]"]
RULES: dict[str, Rule] = {}
"""Registered name of a full-precision network -> what reads its options from keys."""


def detects(*names: str) -> Callable[[Rule], Rule]:
    """Decorator of the rule of one or several architectures (registered names, full precision)."""

    def decorate(rule: Rule) -> Rule:
        for name in names:
            RULES[name] = rule
        return rule

    return decorate


class Keys(Mapping):
    """Names of a state_dict's tensors with their shapes; a missing one is a KeyError.

    Args:
        shapes: name -> shape.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]):
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def __iter__(self):
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def count(self, prefix: str) -> int:
        """How many of ``prefix.0``, ``prefix.1`` ... there are, one after the other."""
        found = {name.removeprefix(f"{prefix}.").split(".")[0] for name in self if name.startswith(f"{prefix}.")}
        number = 0
        while str(number) in found:
            number += 1
        return number

    def counts(self, prefix: str, inner: str) -> list[int]:
        """:meth:`count` of ``prefix.0.inner``, ``prefix.1.inner`` ...

        Raises:
            KeyError: there is none.
        """
        depths = [self.count(f"{prefix}.{i}.{inner}") for i in range(self.count(prefix))]
        if not depths:
            raise KeyError(f"{prefix}.0.{inner}.0")
        return depths

    def upscale(self, channels: int) -> dict:
        """``upsampler`` and ``upscale`` of the tails that MambaIR, MaIR and SwinIR share.

        Args:
            channels: of the image.
        """
        if "conv_up1.weight" in self:
            return {"upsampler": "nearest+conv", "upscale": 4}
        if "conv_before_upsample.0.weight" in self:
            return {"upsampler": "pixelshuffle", "upscale": self.shuffled("upsample")}
        if "upsample.0.weight" in self:
            return {"upsampler": "pixelshuffledirect", "upscale": math.isqrt(self["upsample.0.weight"][0] // channels)}
        self["conv_last.weight"]
        return {"upsampler": "", "upscale": 1}

    def shuffled(self, prefix: str) -> int:
        """Scale of BasicSR's ``Upsample``: 3, or a power of two; 1 where there is no layer."""
        if f"{prefix}.0.weight" not in self:
            return 1
        out, features = self[f"{prefix}.0.weight"][:2]
        stages = sum(name.startswith(f"{prefix}.") and name.endswith(".weight") for name in self)
        return 3 if out == 9 * features else 2**stages

    def group_net(self) -> dict:
        """Options that MambaIR, MambaIRv2, MaIR and SwinIR share."""
        width, channels = self["conv_first.weight"][:2]
        return {
            "in_chans": channels,
            "embed_dim": width,
            "patch_norm": "patch_embed.norm.weight" in self,
            "resi_connection": "3conv" if "conv_after_body.0.weight" in self else "1conv",
            **self.upscale(channels),
        }

    def unet(self) -> dict:
        """Options that the U-Nets share."""
        width, channels = self["patch_embed.proj.weight"][:2]
        levels = "encoder_level1", "encoder_level2", "encoder_level3", "latent"
        return {
            "inp_channels": channels,
            "out_channels": channels,
            "dim": width,
            "num_blocks": [self.count(level) for level in levels],
            "num_refinement_blocks": self.count("refinement"),
            "bias": "reduce_chan_level3.bias" in self,
        }

    def unet_blocks(self) -> list[tuple[str, int]]:
        """The first block of every level of a U-Net that has one, and its channels.

        Raises:
            KeyError: there is none.
        """
        width = self["patch_embed.proj.weight"][0]
        factors = {"encoder_level1": 1, "encoder_level2": 2, "encoder_level3": 4, "latent": 8}
        factors |= {"decoder_level3": 4, "decoder_level2": 2, "decoder_level1": 2, "refinement": 2}
        found = [(f"{level}.0", factor * width) for level, factor in factors.items() if self.count(level)]
        if not found:
            raise KeyError("latent.0")
        return found


def ratio(*pairs: tuple[int, int]) -> float:
    """The shortest decimal number r with ``int(r * width) == inner`` for all pairs (inner, width).

    Raises:
        ValueError: there is none.
    """
    low, high = max(inner / width for inner, width in pairs), min((inner + 1) / width for inner, width in pairs)
    for digits in range(7):
        value = math.ceil(low * 10**digits - 1e-9) / 10**digits
        if all(int(value * width) == inner for inner, width in pairs):
            return value
    value = (low + high) / 2
    if all(int(value * width) == inner for inner, width in pairs):
        return value
    raise ValueError(f"no ratio fits {pairs}")
