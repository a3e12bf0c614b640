"""Sections of quantization: ``quant_train:``, ``ptq:``, and the ``schedule:`` of a loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .problems import UNREADABLE, Problem, join, show
from .registered import NETWORK
from .rules import Choice, Flag, List, Number, Rule, Section, Text, optional, readable

_IMAGES = {
    "batches": Number(1, 10**9, whole=True),
    "batch_size": Number(0, 1_000_000, whole=True),
    "seed": Number(-1, 2**32 - 1, whole=True),
}
_CALIBRATION = Section(_IMAGES | {"changed": Flag()}, title="calibration")
_TEACHER = Section(
    {"path": Text(called="the path of a checkpoint"), "param_key": optional(Text()), "network": optional(NETWORK)},
    ("path",),
    title="teacher",
)


class Ramp(Rule):
    """What ``models/ramp.py`` reads: a number, or one value at the start and another at the end.

    Args:
        high: largest value.
    """

    kind = (Mapping, int, float)
    words = "a number or a section such as {from: 0, to: 1, start: 0, end: 1000}"

    def __init__(self, high: float | None = None) -> None:
        self.number = Number(0, high)
        iteration = Number(0, 10**9, whole=True)
        keys = {"from": self.number, "to": self.number, "start": iteration, "end": optional(iteration)}
        shape = Choice(("linear", "cosine"))
        self.section = Section(keys | {"shape": shape}, ("from", "to"), title="a ramp", check=_in_order)

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield from self.number.problems(where, value)
        elif isinstance(value, Mapping):
            yield from self.section.problems(where, value)
        elif value is not UNREADABLE:
            yield Problem(where, f"must be {self.words}; got {show(value)}")


def _in_order(where: str, value: Mapping) -> Iterator[Problem]:
    start, end = value.get("start", 0), value.get("end")
    if end is not None and end < start:
        yield Problem(join(where, "end"), f"must be at least start ({start}); got {end}")


class Scheduled(Rule):
    """A loss that may have a ``schedule:``.

    Args:
        loss: rule of the loss without it.
    """

    kind = Mapping

    def __init__(self, loss: Rule) -> None:
        self.loss, self.words = loss, loss.words

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if not isinstance(value, Mapping) or "schedule" not in value:
            yield from self.loss.problems(where, value)
            return
        yield from self.loss.problems(where, {key: entry for key, entry in value.items() if key != "schedule"})
        yield from optional(Ramp()).problems(join(where, "schedule"), value["schedule"])


class Method(Rule):
    """``ptq: method``: what ``ptq/`` says."""

    words = "a section {type: SPR2Q} with the options of a post-training method"

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if value is UNREADABLE or not readable(value):
            return
        if not isinstance(value, Mapping):
            yield Problem(where, f"must be {self.words}; got {show(value)}")
            return
        from ..ptq import build_method

        try:
            build_method(value, where)
        except (ValueError, TypeError) as err:
            for line in str(err).splitlines():
                place, _, text = line.partition(": ")
                yield Problem(place, text)


class Whole(Rule):
    """A rule, and behind it what ``models/quant_options.py`` says of the value as a whole.

    Args:
        rule: of the value.
        key: of ``quant_train``.
    """

    def __init__(self, rule: Rule, key: str) -> None:
        self.rule, self.key, self.words, self.kind = rule, key, rule.words, rule.kind

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        found = list(self.rule.problems(where, value))
        if not found and readable(value):
            from ..models.quant_options import QuantTrainOptions

            try:
                QuantTrainOptions.from_dict({self.key: value})
            except ValueError as err:
                found = [Problem(where, str(err).removeprefix(f"quant_train: {self.key}: "))]
        yield from found


_ITERATIONS = Number(1, 10**9, whole=True)
_START = Section({"method": Method(), "iterations": _ITERATIONS}, ("method",), title="start")
_OSCILLATION = Section(
    {
        "damping": optional(Ramp()),
        "freeze": optional(Ramp(1)),
        "momentum": Number(0, 1, above=True),
        "sites": List(Text()),
    },
    title="oscillation",
)
_CORRECTION = Section({"iterations": _ITERATIONS, "lr": optional(Number(0))}, ("iterations",), title="correction")
_STAGE = Section({"bits": Number(2, 8, whole=True), "iterations": _ITERATIONS}, ("bits", "iterations"), title="a stage")

QUANT_TRAIN = optional(
    Section(
        {
            "calibration": optional(_CALIBRATION),
            "lr_factor": Number(0),
            "health_freq": Number(0, whole=True),
            "teacher": optional(_TEACHER),
            "start": optional(Whole(_START, "start")),
            "oscillation": optional(Whole(_OSCILLATION, "oscillation")),
            "correction": optional(_CORRECTION),
            "progressive": optional(Whole(List(_STAGE), "progressive")),
        },
        title="quant_train",
    )
)
PTQ = Section(
    {"method": Method(), "calibration": optional(Section(_IMAGES, title="calibration"))}, ("method",), title="ptq"
)
