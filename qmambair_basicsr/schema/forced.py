"""``--force_yml KEY:KEY=VALUE``: changes single options, without running any of it as code."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..strict import did_you_mean
from .problems import SHOWN, OptionError, Problem, show
from .reading import parse

_TEXT_KEYS = ("name", "suffix", "type", "resume_id", "project")  # stay text, whatever they look like


def apply(opt: dict, entries: Iterable[str]) -> list[Problem]:
    """Set options in place.

    Args:
        opt: options as read.
        entries: words such as ``train:optim_g:lr=1e-4``; the value may hold ``=``.

    Returns:
        What is wrong with entries; these are left out.
    """
    return [problem for entry in entries for problem in _apply(opt, entry)]


def _apply(opt: dict, entry: str) -> Iterator[Problem]:
    keys, separator, text = entry.partition("=")
    parts = [part.strip() for part in keys.split(":")]
    where = f"--force_yml {entry[:SHOWN]}"
    if not separator or not all(parts):
        yield Problem(where, "must be KEY=VALUE or KEY:KEY=VALUE, for example train:total_iter=100")
        return
    section: Any = opt
    for depth, part in enumerate(parts[:-1]):
        inner = section.get(part)
        if part not in section:
            yield Problem(where, f"there is no key {part!r}{did_you_mean(part, section)}")
            return
        if not isinstance(inner, dict):
            yield Problem(where, f"{'.'.join(parts[: depth + 1])} is no section, but {show(inner)}")
            return
        section = inner
    section[parts[-1]] = value_of(text.strip(), text_only=parts[-1] in _TEXT_KEYS)


def value_of(text: str, text_only: bool = False) -> Any:
    """The value that a word on the command line stands for, by BasicSR's rules: ``~`` and none, true, false, numbers,
    lists; and, beyond them, negative numbers, exponents and ``{...}``.

    Args:
        text: the word.
        text_only: whether only ``~`` has a meaning.
    """
    if text == "~":
        return None
    if text_only:
        return text
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    text = text.removeprefix("!!float").strip() if text.startswith("!!float") else text
    for number in (int, float):
        try:
            return number(text) if text.isascii() and "_" not in text else text
        except ValueError:
            continue
    return _collection(text) if text[:1] in ("[", "{") else text


def _collection(text: str) -> Any:
    """A list or mapping, as Python or as YAML writes it; the text itself where it is neither."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    try:
        read = parse(f"value: {text}\n", "--force_yml")
    except OptionError:
        return text
    return text if read.problems or not isinstance(read.data, Mapping) else read.data.get("value", text)
