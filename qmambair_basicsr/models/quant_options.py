"""The ``quant_train:`` section of an option file, checked strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..strict import check_keys


@dataclass(frozen=True)
class CalibrationOptions:
    """``quant_train: calibration``: the batches every quantizer is initialised from.

    Attributes:
        batches: training batches shown to the network, at least 1.
        batch_size: images per batch; 0 takes the training batch size of one process.
        seed: which images and crops they are; -1 takes ``manual_seed``.
    """

    batches: int = 8
    batch_size: int = 0
    seed: int = -1


@dataclass(frozen=True)
class TeacherOptions:
    """``quant_train: teacher``: the full-precision network that distillation losses compare with.

    Attributes:
        path: its checkpoint.
        param_key: ``params`` or ``params_ema``.
        network: its ``network_g`` section; None takes the student's without ``quant`` and without the leading Q of
            its type.
    """

    path: str
    param_key: str | None = "params"
    network: dict[str, Any] | None = None


@dataclass(frozen=True)
class QuantTrainOptions:
    """``quant_train:``.

    Attributes:
        calibration: see :class:`CalibrationOptions`.
        lr_factor: learning rate of the quantizers' parameters over that of the weights, at least 0.
        health_freq: iterations between two records of every quantizer's health in TensorBoard; 0 turns it off.
        teacher: see :class:`TeacherOptions`; None trains without a teacher.
    """

    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    lr_factor: float = 1.0
    health_freq: int = 1000
    teacher: TeacherOptions | None = None

    @classmethod
    def from_dict(cls, section: object) -> QuantTrainOptions:
        """Read the section.

        Args:
            section: the mapping under ``quant_train:``; None gives the defaults.

        Raises:
            ValueError: an unknown key or an impossible value, with its full name.
        """
        values = _checked(cls, {} if section is None else section, "quant_train")
        calibration = calibration_options(values.pop("calibration", None) or {}, "quant_train: calibration")
        teacher = values.pop("teacher", None)
        if teacher is not None:
            teacher = _build(TeacherOptions, teacher, "quant_train: teacher")
            if not isinstance(teacher.path, str):
                raise ValueError(f"quant_train: teacher: path must name a checkpoint, got {teacher.path!r}")
        options = cls(calibration=calibration, teacher=teacher, **values)
        _number("quant_train: health_freq", options.health_freq, 0)
        _number("quant_train: lr_factor", options.lr_factor, 0, whole=False)
        return options


def calibration_options(section: object, where: str) -> CalibrationOptions:
    """Read a ``calibration:`` section.

    Args:
        section: the mapping under the key.
        where: its full name, for messages.

    Raises:
        ValueError: an unknown key or an impossible value, with its full name.
    """
    calibration = _build(CalibrationOptions, section, where)
    _number(f"{where}: batches", calibration.batches, 1)
    _number(f"{where}: batch_size", calibration.batch_size, 0)
    _number(f"{where}: seed", calibration.seed, -1)
    return calibration


def _checked(kind: type, section: object, where: str) -> dict[str, Any]:
    """The section as a dict whose keys are fields of ``kind``."""
    if not isinstance(section, Mapping):
        raise ValueError(f"{where}: must be a mapping, got {section!r}")
    check_keys(where, section, [f.name for f in fields(kind)])
    return dict(section)


def _build(kind: type, section: object, where: str):
    values = _checked(kind, section, where)
    try:
        return kind(**values)
    except TypeError as err:  # a required field is missing
        raise ValueError(f"{where}: {err}") from err


def _number(name: str, value: object, least: int, whole: bool = True) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < float("inf"):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, at least {least}, got {value!r}")
