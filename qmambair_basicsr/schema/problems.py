"""Mistakes in an option file: one record for each, and one error that lists them all."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

SHOWN = 60  # characters of a value that a message quotes
LISTED = 40  # mistakes listed in one message
LONGEST = 1500  # characters of one mistake


class Problem(NamedTuple):
    """One mistake.

    Attributes:
        where: the key's path, for example ``train.optim_g.lr`` or ``train.scheduler.milestones[1]``.
        text: what is wrong with it and what is allowed.
    """

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


class OptionError(ValueError):
    """Options that cannot run; the message lists every mistake, one a line.

    Attributes:
        problems: the mistakes.
    """

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)


class _Unreadable:
    """Stands for a value that could not be read; its mistake is reported already."""

    def __repr__(self) -> str:
        return "(unreadable)"


UNREADABLE = _Unreadable()


def show(value: object) -> str:
    """A value as a message quotes it: as YAML writes it, printable and short."""
    if value is None:
        text = "nothing"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, (datetime.date, datetime.datetime)):
        text = f"the date {value}"
    elif isinstance(value, Mapping):
        text = "a mapping" if value else "an empty mapping"
    else:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def join(where: str, key: object) -> str:
    """The path of ``key`` inside ``where``."""
    key = key if isinstance(key, str) and key.isprintable() else repr(key)
    return f"{where}.{key}" if where else key


def line_of(where: str, lines: Mapping[str, int]) -> int | None:
    """The line of a path, or of the nearest section around it that is in the file."""
    while where and where not in lines:
        where = where[: max(where.rfind("."), where.rfind("["), 0)]
    return lines.get(where)


def error(
    source: str | os.PathLike, problems: Iterable[Problem], lines: Mapping[str, int] | None = None
) -> OptionError:
    """One error for all mistakes of one file.

    Args:
        source: the file, or what to call the options.
        problems: the mistakes; a repeated one is listed once.
        lines: line of every path, where they are known.
    """
    problems = list(dict.fromkeys(problems))
    listed = []
    for problem in problems[:LISTED]:
        line = line_of(problem.where, lines or {})
        text = str(problem)
        text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
        listed.append(f"\n  {text}" + (f" (line {line})" if line else ""))
    if len(problems) > LISTED:
        listed.append(f"\n  and {len(problems) - LISTED} more")
    return OptionError(f"{source} cannot run from {Path.cwd()}:{''.join(listed)}", problems)
