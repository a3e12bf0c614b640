"""The ``quant_train:`` section of an option file, checked strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..strict import check_keys
from .ramp import Ramp


@dataclass(frozen=True)
class CalibrationOptions:
    """``quant_train: calibration``: the batches every quantizer is initialised from.

    Attributes:
        batches: training batches shown to the network, at least 1.
        batch_size: images per batch; 0 takes the training batch size of one process.
        seed: which images and crops they are; -1 takes ``manual_seed``.
        changed: from a quantized network, quantizers of another kind than in its file start anew and are calibrated alone.
    """

    batches: int = 8
    batch_size: int = 0
    seed: int = -1
    changed: bool = False


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
class StartOptions:
    """``quant_train: start``: a post-training method in place of calibration, before the first iteration.

    Attributes:
        method: ``{type: BlockAP, ...}``, as ``ptq: method``.
        iterations: of a method that has some; None for its default.
    """

    method: Mapping[str, Any]
    iterations: int | None = None


@dataclass(frozen=True)
class OscillationOptions:
    """``quant_train: oscillation``: see ``oscillation.py``.

    Attributes:
        damping: lambda, the weight of the loss that pulls weights to their levels; None for none.
        freeze: threshold of the frequency above which a weight is frozen, from iteration ``start`` on; None for none.
        momentum: m, what the last step counts in frequencies and averages.
        sites: name patterns of the layers whose weights are meant.
    """

    damping: Ramp | None = None
    freeze: Ramp | None = None
    momentum: float = 0.01
    sites: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class CorrectionOptions:
    """``quant_train: correction``: the last iterations train quantizers and biases only, on the averaged weights.

    Attributes:
        iterations: how many.
        lr: learning rate of biases at their beginning, which falls to 0 as a cosine; that of quantizers is ``lr_factor``
            times as large. None for a tenth of ``optim_g: lr``.
    """

    iterations: int
    lr: float | None = None


@dataclass(frozen=True)
class Stage:
    """An entry of ``quant_train: progressive``: so many iterations with wider quantizers.

    Attributes:
        bits: width of every site that the network has with fewer.
        iterations: how many.
    """

    bits: int
    iterations: int


@dataclass(frozen=True)
class QuantTrainOptions:
    """``quant_train:``.

    Attributes:
        calibration: see :class:`CalibrationOptions`.
        lr_factor: learning rate of the quantizers' parameters over that of the weights, at least 0.
        health_freq: iterations between two records of every quantizer's health in TensorBoard; 0 turns it off.
        teacher: see :class:`TeacherOptions`; None trains without a teacher.
        start: see :class:`StartOptions`; None calibrates.
        oscillation: see :class:`OscillationOptions`; None for none.
        correction: see :class:`CorrectionOptions`; None for none.
        progressive: wider stages in front of the network's own width, widest first.
    """

    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    lr_factor: float = 1.0
    health_freq: int = 1000
    teacher: TeacherOptions | None = None
    start: StartOptions | None = None
    oscillation: OscillationOptions | None = None
    correction: CorrectionOptions | None = None
    progressive: tuple[Stage, ...] = ()

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
        readers = {"start": _start, "oscillation": _oscillation, "correction": _correction, "progressive": _stages}
        read = {key: reader(values.pop(key)) for key, reader in readers.items() if values.get(key)}
        values = {key: value for key, value in values.items() if key not in readers}
        options = cls(calibration=calibration, teacher=teacher, **read, **values)
        if calibration.changed and options.start is not None:
            raise ValueError(
                "quant_train: start sets every quantizer, calibration: changed leaves those of the file; use one of them"
            )
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
    if not isinstance(calibration.changed, bool):
        raise ValueError(f"{where}: changed must be true or false; got {calibration.changed!r}")
    return calibration


def _start(section: object) -> StartOptions:
    from ..ptq import build_method

    options = _build(StartOptions, section, "quant_train: start")
    method = build_method(options.method, "quant_train.start.method")
    if options.iterations is not None:
        if not method.trains:
            raise ValueError(f"quant_train: start: {options.method['type']} has no iterations; leave them out")
        _number("quant_train: start: iterations", options.iterations, 1)
    return options


def _oscillation(section: object) -> OscillationOptions:
    where = "quant_train: oscillation"
    options = _build(OscillationOptions, section, where)
    highest = {"damping": float("inf"), "freeze": 1.0}
    ramps = {
        key: Ramp.read(getattr(options, key), f"{where}: {key}", 0, high)
        for key, high in highest.items()
        if getattr(options, key) is not None
    }
    if not ramps:
        raise ValueError(f"{where}: neither damping nor freeze is set; give one of them")
    _number(f"{where}: momentum", options.momentum, 0, whole=False)
    if not 0 < options.momentum <= 1:
        raise ValueError(f"{where}: momentum must be above 0 and at most 1, got {options.momentum!r}")
    sites = options.sites
    if isinstance(sites, str) or not sites or not all(isinstance(name, str) for name in sites):
        raise ValueError(f"{where}: sites must be a list of name patterns, got {sites!r}")
    return replace(options, sites=tuple(sites), **ramps)


def _correction(section: object) -> CorrectionOptions:
    options = _build(CorrectionOptions, section, "quant_train: correction")
    _number("quant_train: correction: iterations", options.iterations, 1)
    if options.lr is not None:
        _number("quant_train: correction: lr", options.lr, 0, whole=False)
    return options


def _stages(section: object) -> tuple[Stage, ...]:
    where = "quant_train: progressive"
    if not isinstance(section, (list, tuple)):
        raise ValueError(f"{where}: must be a list such as [{{bits: 8, iterations: 100}}], got {section!r}")
    stages = tuple(_build(Stage, entry, f"{where}[{i}]") for i, entry in enumerate(section))
    for i, stage in enumerate(stages):
        _number(f"{where}[{i}]: bits", stage.bits, 2)
        _number(f"{where}[{i}]: iterations", stage.iterations, 1)
    widths = [stage.bits for stage in stages]
    if max(widths) > 8 or widths != sorted(set(widths), reverse=True):
        raise ValueError(f"{where}: bits must be from 8 to 2 and fall from stage to stage, got {widths}")
    return stages


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
