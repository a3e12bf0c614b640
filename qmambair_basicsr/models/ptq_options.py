"""The ``ptq:`` section of an option file, checked strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..ptq import PTQMethod, build_method
from ..quantizers.spec import SpecError
from ..strict import unknown
from .quant_options import CalibrationOptions, calibration_options

KEYS = ("method", "calibration")


@dataclass(frozen=True)
class PTQOptions:
    """``ptq:``.

    Attributes:
        method: what quantizes, with its options.
        calibration: the images that it looks at.
    """

    method: Mapping[str, Any]
    calibration: CalibrationOptions

    @classmethod
    def from_dict(cls, section: object) -> PTQOptions:
        """Read the section.

        Raises:
            SpecError: an unknown key, method or option, or an impossible value, with its full name.
        """
        if not isinstance(section, Mapping) or "method" not in section:
            raise SpecError(f"ptq: expected a section with `method: {{type: SPR2Q}}`, got {section!r}")
        for key in section:
            if key not in KEYS:
                raise SpecError(unknown("ptq", "key", key, KEYS))
        build_method(section["method"], "ptq.method")
        images = section.get("calibration") or {}
        if isinstance(images, Mapping) and "changed" in images:
            raise SpecError(unknown("ptq: calibration", "key", "changed", ("batches", "batch_size", "seed")))
        calibration = calibration_options(images, "ptq: calibration")
        return cls(dict(section["method"]), calibration)

    def build(self) -> PTQMethod:
        """The method."""
        return build_method(self.method, "ptq.method")
