"""Reads an option file: UTF-8 whatever the locale, plain data only, nothing in it is ever executed.

BasicSR reads option files with PyYAML's unsafe loader. Here the events of the parser are put together by hand instead,
so that a tag that would run code, a key that stands twice (PyYAML keeps the last without a word), a value that is not
what its tag says, and a file that grows without bound are found with their lines before any loader sees the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yaml import events
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from .problems import UNREADABLE, OptionError, Problem, join, show

try:
    from yaml import CSafeLoader as _Parser
except ImportError:  # PyYAML without its C library
    from yaml import SafeLoader as _Parser

PLUGIN_KEY = "plugin"
PLUGIN_TAG = "tag:yaml.org,2002:python/name:qmambair_basicsr.__version__"
LARGEST = 1 << 20  # bytes of an option file
DEEPEST = 40  # sections inside sections
MOST_VALUES = 20_000  # after aliases are written out

_CORE = "tag:yaml.org,2002:"
_SCALARS = {f"{_CORE}{name}" for name in ("null", "bool", "int", "float", "str", "timestamp")}
_MERGE = object()  # the key `<<`
_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}


@dataclass
class OptionFile:
    """An option file as it was read.

    Attributes:
        data: its content; a value that could not be read is ``UNREADABLE``. Nothing is shared between sections.
        lines: line of every key's path.
        problems: what is wrong with the file itself.
        source: its path.
    """

    data: dict
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    source: str = "the option file"


def read_file(path: str | os.PathLike) -> OptionFile:
    """Read an option file.

    Args:
        path: the file.

    Raises:
        OptionError: there is no such file, it is no text in UTF-8, no YAML, or holds no options.
    """
    name = os.fspath(path)
    try:
        content = Path(path).expanduser().read_bytes()
    except FileNotFoundError:
        raise OptionError(f"there is no file {name}; {_advice(name)}") from None
    except (OSError, ValueError, RuntimeError) as err:
        reason = getattr(err, "strerror", None) or err
        name = name if name.isprintable() else ascii(name)
        raise OptionError(f"{name} cannot be read ({reason}); give an option file") from err
    return parse(content, name)


def _advice(name: str) -> str:
    """Advice for an option file that does not exist."""
    from ..recipes.option_names import how_to_make

    command = how_to_make(name)
    return f"make it: {command}" if command else "give an option file"


def parse(content: bytes | str, source: str = "the option file") -> OptionFile:
    """Read the content of an option file; see :func:`read_file`."""
    if len(content) > LARGEST:
        raise OptionError(f"{source} has {len(content):,} bytes; that is no option file")
    text = content if isinstance(content, str) else _decode(content, source)
    builder = _Builder()
    try:
        data = builder.build(yaml.parse(text, Loader=_Parser))
    except yaml.YAMLError as err:
        raise OptionError(f"{source} is not valid YAML: {_reason(err)}") from err
    except RecursionError as err:  # PyYAML without its C library
        raise OptionError(f"{source} is not an option file: sections are nested too deeply") from err
    if not isinstance(data, dict) or (not data and not builder.problems):
        raise OptionError(f"{source} holds no options; give a training or test option file")
    return OptionFile(data, builder.lines, builder.problems, source)


def _decode(content: bytes, source: str) -> str:
    for mark, name in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise OptionError(f"{source} is in {name}; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        raise OptionError(
            f"{source} is not valid YAML: byte 0x{content[err.start]:02x} in line {line} is not UTF-8; "
            "save the file as UTF-8"
        ) from err


def _reason(err: yaml.YAMLError) -> str:
    """PyYAML's message in one line, with a line number that counts from 1."""
    mark = getattr(err, "problem_mark", None) or getattr(err, "context_mark", None)
    parts = [part for part in (getattr(err, "context", None), getattr(err, "problem", None)) if part]
    text = ", ".join(parts) or " ".join(str(err).split())
    return f"{text} (line {mark.line + 1}, column {mark.column + 1})" if mark else text


class _Frame:
    """A section or list that is being read."""

    def __init__(self, kind: str, where: str, anchor: str | None, line: int) -> None:
        self.kind, self.where, self.anchor, self.line = kind, where, anchor, line
        self.items: list = []  # of a list
        self.entries: dict = {}  # of a mapping
        self.merged: list[dict] = []  # mappings that `<<` names
        self.key: object = None
        self.has_key = False
        self.unreadable = False


class _Builder:
    """Plain data from the parser's events. Aliases are copied, so no two sections share a value."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self._stack: list[_Frame] = []
        self._anchors: dict[str, object] = {}
        self._open_anchors: list[str] = []
        self._count = 0
        self._root: object = None
        self._documents = 0
        self._resolver, self._constructor = Resolver(), SafeConstructor()

    def build(self, stream: Iterator[events.Event]) -> object:
        """The content of the first document."""
        for event in stream:
            if isinstance(event, events.ScalarEvent):
                self._add(self._scalar(event), event)
            elif isinstance(event, (events.MappingStartEvent, events.SequenceStartEvent)):
                self._open(event)
            elif isinstance(event, (events.MappingEndEvent, events.SequenceEndEvent)):
                self._close(event)
            elif isinstance(event, events.AliasEvent):
                self._add(self._alias(event), event)
            elif isinstance(event, events.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    self._say("", "a second document begins here; one file holds one document", event)
                    break
        return self._root

    # -- places ------------------------------------------------------------------------------------------------

    def _here(self) -> str:
        """The path of the value that comes next."""
        if not self._stack:
            return ""
        frame = self._stack[-1]
        if frame.kind == "list":
            return f"{frame.where}[{len(frame.items)}]"
        if not frame.has_key:
            return frame.where  # a key comes next
        return frame.where if frame.key is _MERGE else join(frame.where, frame.key)

    def _is_key(self) -> bool:
        return bool(self._stack) and self._stack[-1].kind == "mapping" and not self._stack[-1].has_key

    def _say(self, where: str, text: str, event: events.Event) -> None:
        self.lines[where] = event.start_mark.line + 1
        self.problems.append(Problem(where, text))

    # -- values ------------------------------------------------------------------------------------------------

    def _scalar(self, event: events.ScalarEvent) -> object:
        tag = event.tag
        if tag is None or tag == "!":
            implicit = event.implicit if tag is None else (False, True)
            tag = self._resolver.resolve(yaml.ScalarNode, event.value, implicit)
        where = self._here()
        if tag == f"{_CORE}merge" and self._is_key():
            return _MERGE
        if tag == PLUGIN_TAG and where == PLUGIN_KEY:
            from .. import __version__

            return __version__
        if tag in (f"{_CORE}merge", f"{_CORE}value"):
            return event.value
        if tag not in _SCALARS:
            self._say(where, _refused(tag), event)
            return UNREADABLE
        try:
            return self._construct(tag, event.value)
        except (ValueError, KeyError, OverflowError, ArithmeticError, AttributeError, yaml.YAMLError):
            self._say(where, f"{show(event.value)} is no {tag.removeprefix(_CORE)}", event)
            return UNREADABLE

    def _construct(self, tag: str, value: str) -> object:
        if tag == f"{_CORE}str":
            return value
        if tag == f"{_CORE}int" and len(value) > 400:
            raise ValueError("too many digits")
        node = yaml.ScalarNode(tag, value)
        return getattr(self._constructor, f"construct_yaml_{tag.removeprefix(_CORE)}")(node)

    def _alias(self, event: events.AliasEvent) -> object:
        where = self._here()
        if event.anchor in self._open_anchors:
            self._say(where, f"*{event.anchor} stands inside &{event.anchor}; a section cannot hold itself", event)
            return UNREADABLE
        if event.anchor not in self._anchors:
            self._say(where, f"*{event.anchor}: no &{event.anchor} comes before it", event)
            return UNREADABLE
        return self._copy(self._anchors[event.anchor])

    def _copy(self, value: object) -> object:
        self._count_one()
        if isinstance(value, dict):
            return {key: self._copy(entry) for key, entry in value.items()}
        return [self._copy(entry) for entry in value] if isinstance(value, list) else value

    def _count_one(self) -> None:
        self._count += 1
        if self._count > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES:,} values once its aliases are written out")

    # -- sections ----------------------------------------------------------------------------------------------

    def _open(self, event: events.MappingStartEvent | events.SequenceStartEvent) -> None:
        kind = "mapping" if isinstance(event, events.MappingStartEvent) else "list"
        if len(self._stack) >= DEEPEST:
            raise yaml.YAMLError(f"sections are nested more than {DEEPEST} deep (line {event.start_mark.line + 1})")
        frame = _Frame(kind, self._here(), event.anchor, event.start_mark.line + 1)
        if event.tag not in (None, "!", f"{_CORE}{'map' if kind == 'mapping' else 'seq'}"):
            self._say(frame.where, _refused(event.tag), event)
            frame.unreadable = True
        if event.anchor:
            self._open_anchors.append(event.anchor)
        self._stack.append(frame)

    def _close(self, event: events.Event) -> None:
        frame = self._stack.pop()
        value: object = frame.items
        if frame.kind == "mapping":
            value = frame.entries
            for merged in frame.merged:  # earlier ones, and keys of the section itself, win
                for key, entry in merged.items():
                    value.setdefault(key, entry)
        if frame.anchor:
            self._open_anchors.remove(frame.anchor)
        self._add(UNREADABLE if frame.unreadable else value, event, frame.anchor)

    def _add(self, value: object, event: events.Event, anchor: str | None = None) -> None:
        self._count_one()
        anchor = anchor or (event.anchor if isinstance(event, events.ScalarEvent) else None)
        if anchor:
            self._anchors[anchor] = value
        if not self._stack:
            self._root = value
            return
        frame = self._stack[-1]
        if frame.kind == "list":
            frame.items.append(value)
        elif not frame.has_key:
            self._take_key(frame, value, event)
        else:
            if frame.key is _MERGE:
                self._merge(frame, value, event)
            elif frame.key is not UNREADABLE and frame.key not in frame.entries:
                frame.entries[frame.key] = value
            frame.key, frame.has_key = None, False

    def _take_key(self, frame: _Frame, key: object, event: events.Event) -> None:
        if isinstance(key, (dict, list)):
            self._say(frame.where, "a section or list stands where a key belongs", event)
            key = UNREADABLE
        frame.key, frame.has_key = key, True
        if key is UNREADABLE or key is _MERGE:
            return
        where = join(frame.where, key)
        if key in frame.entries:
            self._say(where, f"stands twice, first in line {self.lines.get(where)}; keep one of them", event)
        else:
            self.lines[where] = event.start_mark.line + 1

    def _merge(self, frame: _Frame, value: object, event: events.Event) -> None:
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                frame.merged.append(part)
            elif part is not UNREADABLE:
                self._say(frame.where, f"<<: needs a section, such as *defaults, not {show(part)}", event)


def _refused(tag: str) -> str:
    """Message about a tag that option files may not have."""
    shown = f"!!{tag.removeprefix(_CORE)}" if tag.startswith(_CORE) else tag
    text = f"tag {shown[:80]!r} is not allowed: option files hold plain data"
    if "python" in tag:
        text += f" (the only exception is `{PLUGIN_KEY}: !!python/name:qmambair_basicsr.__version__` at the top level)"
    return text
