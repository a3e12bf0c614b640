"""Rules for single values and for sections: what is allowed, in code and in words.

A rule yields one :class:`~.problems.Problem` per mistake and never raises, whatever the value is.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..strict import did_you_mean, nearest
from .problems import UNREADABLE, Problem, join, show

LIKELY = 0.75  # similarity from which an unknown key is taken for a misspelt one where others cannot be excluded


def is_number(value: object) -> bool:
    """A finite number; ``true`` and ``false`` are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)


def readable(value: Any) -> bool:
    """Whether no value in a section or list is ``UNREADABLE``."""
    if isinstance(value, Mapping):
        return all(map(readable, value.values()))
    return all(map(readable, value)) if isinstance(value, (list, tuple)) else value is not UNREADABLE


def _as_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class Rule:
    """One value. Subclasses say what fits and how that is called."""

    words = "anything"
    kind: type | tuple[type, ...] | None = None  # values that only this rule of several is about

    def fits(self, value: Any) -> bool:
        """Whether the value is allowed."""
        return True

    def hint(self, value: Any) -> str:
        """Advice on what to write instead, where there is one."""
        return ""

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        """The mistakes of a value at ``where``."""
        if value is not UNREADABLE and not self.fits(value):
            yield Problem(where, f"must be {self.words}; got {show(value)}{self.hint(value)}")

    def concerns(self, value: Any) -> bool:
        """Whether a wrong value is of this rule's kind, so that of several rules this one says what is wrong."""
        return self.kind is not None and isinstance(value, self.kind)

    def accepts(self, value: Any) -> bool:
        """Whether the value has no mistake."""
        return next(iter(self.problems("", value)), None) is None


ANYTHING = Rule()


@dataclass(frozen=True)
class Number(Rule):
    """A number within bounds.

    Attributes:
        low, high: bounds; None = none.
        above, below: whether ``low`` (``high``) itself is excluded.
        whole: no fraction.
        as_float: whether a whole number may be written with a point (``5.0e+3``), as BasicSR's own files do.
        point: whether a point is needed (``0.0``), where torch does not take a whole number.
    """

    low: float | None = None
    high: float | None = None
    whole: bool = False
    above: bool = False
    below: bool = False
    as_float: bool = False
    point: bool = False

    @property
    def words(self) -> str:
        kind = "a whole number" if self.whole else "a number with a point" if self.point else "a number"
        low = None if self.low is None else f"above {self.low:,}" if self.above else f"at least {self.low:,}"
        high = None if self.high is None else f"below {self.high:,}" if self.below else f"at most {self.high:,}"
        bounds = [bound for bound in (low, high) if bound]
        return kind + (", " if bounds else "") + " and ".join(bounds)

    def fits(self, value: Any) -> bool:
        if not is_number(value):
            return False
        if self.whole and not isinstance(value, int) and not (self.as_float and value.is_integer()):
            return False
        if self.point and not isinstance(value, float):
            return False
        low = self.low is None or (value > self.low if self.above else value >= self.low)
        return low and (self.high is None or (value < self.high if self.below else value <= self.high))

    def hint(self, value: Any) -> str:
        if isinstance(value, float) and self.whole and math.isfinite(value) and value.is_integer():
            return f"; write {int(value)}"
        if self.point and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e9:
            return f"; write {float(value)}"
        return ""

    def concerns(self, value: Any) -> bool:
        return isinstance(value, str) and _as_number(value) is not None

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        """The mistake; of a number that YAML reads as text (1.1 wants a point in ``5.0e-4``), how to write it."""
        number = _as_number(value) if isinstance(value, str) else None
        number = int(number) if number is not None and self.whole and number.is_integer() else number
        if number is None or not self.fits(number):
            yield from super().problems(where, value)
        else:
            point = "" if isinstance(number, int) else " with a point"
            yield Problem(where, f"YAML reads {show(value)} as text; write the number as {number!r}{point}, unquoted")


@dataclass(frozen=True)
class Flag(Rule):
    """true or false."""

    words = "true or false"

    def fits(self, value: Any) -> bool:
        return isinstance(value, bool)

    def hint(self, value: Any) -> str:
        if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off"):
            return f"; write {str(value.lower() in ('true', 'yes', 'on')).lower()} without quotes"
        if value in (0, 1) and not isinstance(value, str):
            return f"; write {str(bool(value)).lower()}"
        return ""


@dataclass(frozen=True)
class Text(Rule):
    """Text.

    Attributes:
        empty: whether it may be empty.
        called: what the text is.
    """

    empty: bool = False
    called: str = "text"

    @property
    def words(self) -> str:
        return self.called

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and (self.empty or bool(value.strip())) and "\0" not in value

    def hint(self, value: Any) -> str:
        if isinstance(value, (bool, int, float, datetime.date)):
            return f"; put it in quotes: '{value}'"
        return ""


@dataclass(frozen=True)
class Name(Text):
    """Text that becomes part of a file's or folder's name."""

    longest: int = 150  # bytes: a log file's name holds the name and the time, and file systems allow 255

    @property
    def words(self) -> str:
        return f"text that can be a folder's name (no '/', not '.' or '..', at most {self.longest} bytes)"

    def fits(self, value: Any) -> bool:
        if not super().fits(value) or value != value.strip() or not value.isprintable():
            return False
        size = len(value.encode("utf-8", "replace"))
        return value not in (".", "..") and not set("/\\") & set(value) and size <= self.longest


@dataclass(frozen=True)
class Choice(Rule):
    """One of a few values."""

    values: tuple

    @property
    def words(self) -> str:
        words = ["nothing (~)" if value is None else show(value) for value in self.values]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"

    def fits(self, value: Any) -> bool:
        return any(type(value) is type(known) and value == known for known in self.values)

    def hint(self, value: Any) -> str:
        return did_you_mean(value, [v for v in self.values if isinstance(v, str)]) if isinstance(value, str) else ""


@dataclass(frozen=True)
class Either(Rule):
    """A value that fits any of several rules."""

    rules: tuple[Rule, ...]

    @property
    def words(self) -> str:
        return " or ".join(rule.words for rule in self.rules)

    def fits(self, value: Any) -> bool:
        return any(rule.accepts(value) for rule in self.rules)

    def hint(self, value: Any) -> str:
        return next((hint for hint in (rule.hint(value) for rule in self.rules) if hint), "")

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        """The mistakes of the rule for a value of this kind, where only one takes the kind."""
        if value is UNREADABLE or self.fits(value):
            return
        kinds = [rule for rule in self.rules if rule.concerns(value)]
        if len(kinds) == 1:
            yield from kinds[0].problems(where, value)
        else:
            yield from super().problems(where, value)


NOTHING = Choice((None,))


def optional(rule: Rule) -> Either:
    """The rule, or nothing (``~``)."""
    return Either((rule, NOTHING))


@dataclass(frozen=True)
class List(Rule):
    """A list whose entries follow one rule.

    Attributes:
        entry: rule of every entry.
        least, most: allowed number of entries.
    """

    entry: Rule = ANYTHING
    least: int = 1
    most: int | None = None
    kind = (list, tuple)

    @property
    def words(self) -> str:
        size = f"{self.least} " if self.least == self.most else ""
        some = "at least one is needed, " if self.least == 1 and self.most != 1 else ""
        return f"a list of {size}values ({some}each {self.entry.words})"

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if value is UNREADABLE:
            return
        if not isinstance(value, (list, tuple)):
            alone = self.entry is not ANYTHING and self.entry.accepts(value)
            hint = f"; write [{show(value)}]" if alone else ""
            yield Problem(where, f"must be {self.words}; got {show(value)}{hint}")
        elif len(value) < self.least or (self.most is not None and len(value) > self.most):
            yield Problem(where, f"must be {self.words}; got {show(value)} with {len(value)} entries")
        else:
            for index, entry in enumerate(value):
                yield from self.entry.problems(f"{where}[{index}]", entry)


def missing(where: str, rule: Rule, near: str = "") -> Problem:
    """A required key is not there."""
    return Problem(where, f"missing; it must be {rule.words}{near}")


@dataclass(frozen=True)
class Section(Rule):
    """A mapping with known keys.

    Attributes:
        keys: rule of every known key.
        required: keys that must be there.
        unknown: what is done with other keys: ``refuse``, ``misspelt`` (refuse those that resemble a known key which
            is not there) or ``allow``.
        title: what the keys belong to, for messages about unknown ones.
        check: further mistakes of the whole mapping, where every key by itself is right.
    """

    keys: Mapping[str, Rule] = field(default_factory=dict)
    required: Sequence[str] = ()
    unknown: str = "refuse"
    title: str = ""
    check: Callable[[str, Mapping], Iterable[Problem]] | None = None
    kind = Mapping

    words = "a section (a mapping of keys to values)"

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if value is UNREADABLE:
            return
        if not isinstance(value, Mapping):
            yield Problem(where, f"must be {self.words}; got {show(value)}")
            return
        found, misspelt = [], set()
        for key, entry in value.items():
            if key in self.keys:
                found.extend(self.keys[key].problems(join(where, key), entry))
            elif key is not UNREADABLE and self.unknown != "allow":
                absent = [known for known in self.keys if known not in value]
                near = nearest(key, absent) if self.unknown == "refuse" else nearest(key, absent, cutoff=LIKELY)
                misspelt.update(near)
                if near or self.unknown == "refuse":
                    found.append(self._unknown(where, key))
        for key in self.required:
            if key not in value and key not in misspelt:
                found.append(missing(join(where, key), self.keys[key]))
        yield from found
        if not found and self.check is not None and readable(value):
            yield from self.check(where, value)

    def _unknown(self, where: str, key: object) -> Problem:
        there = f" in {self.title}" if self.title else ""
        return Problem(
            join(where, key), f"unknown key{did_you_mean(key, self.keys)}; allowed{there}: {', '.join(self.keys)}"
        )


@dataclass(frozen=True)
class Each(Rule):
    """A mapping with free keys whose values follow one rule."""

    entry: Rule
    least: int = 0
    kind = Mapping

    @property
    def words(self) -> str:
        return f"a section whose values are each {self.entry.words}"

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if value is UNREADABLE:
            return
        if not isinstance(value, Mapping) or len(value) < self.least:
            yield Problem(where, f"must be {self.words}; got {show(value)}")
            return
        for key, entry in value.items():
            if key is UNREADABLE:
                continue
            if not isinstance(key, str):
                yield Problem(join(where, key), f"a key must be text; put it in quotes: '{key}'")
            yield from self.entry.problems(join(where, key), entry)
