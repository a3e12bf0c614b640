"""Numbers that follow the iteration: weights of losses, thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

SHAPES = ("linear", "cosine")
KEYS = ("from", "to", "start", "end", "shape")


@dataclass(frozen=True)
class Ramp:
    """``{from: 0, to: 1, start: 100, end: 500, shape: linear}``.

    Attributes:
        first, last: values up to iteration ``start`` and from iteration ``end`` on (``from`` and ``to`` in option files).
        start, end: iterations; ``end`` None is the end of the training.
        shape: ``linear``, or half a ``cosine`` in between.
    """

    first: float
    last: float
    start: int = 0
    end: int | None = None
    shape: str = "linear"

    @classmethod
    def read(cls, section: object, where: str, low: float = 0.0, high: float = math.inf) -> Ramp:
        """Read a section, or one number for the whole training.

        Args:
            section: what stands in the option file.
            where: the key's path, for messages.
            low, high: bounds of its values.

        Raises:
            ValueError: what is no ramp, with its path.
        """
        if _number(section):
            section = {"from": section, "to": section}
        if not isinstance(section, Mapping) or not {"from", "to"} <= section.keys() <= set(KEYS):
            raise ValueError(f"{where}: must be a number or {{from: 0, to: 1, start: 0, end: 1000}}, got {section!r}")
        ramp = cls(section["from"], section["to"], section.get("start", 0), section.get("end"))
        if not all(_number(value) and low <= value <= high for value in (ramp.first, ramp.last)):
            raise ValueError(f"{where}: from and to must be numbers from {low:g} to {high:g}, got {section!r}")
        whole = [n for n in (ramp.start, ramp.end) if n is not None]
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in whole) or whole != sorted(whole):
            raise ValueError(f"{where}: start and end must be iterations, start first, got {section!r}")
        shape = section.get("shape", "linear")
        if shape not in SHAPES:
            raise ValueError(f"{where}: shape: must be one of {', '.join(SHAPES)}, got {shape!r}")
        return cls(ramp.first, ramp.last, ramp.start, ramp.end, shape)

    def at(self, iteration: int, total: int) -> float:
        """Value at an iteration (from 1 on) of a training of ``total``."""
        end = total if self.end is None else self.end
        if iteration >= end:
            return float(self.last)
        share = max(0.0, (iteration - self.start) / (end - self.start)) if end > self.start else 0.0
        share = (1 - math.cos(math.pi * share)) / 2 if self.shape == "cosine" else share
        return self.first + (self.last - self.first) * share


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
