"""Rules from what is registered: the arguments of networks, losses, metrics, schedulers and optimizers.

A constructor's annotations say the kind of every argument, else its default value does. Functions and classes with
``**kwargs`` (BasicSR's metrics swallow whatever they are given) are held to the arguments that they name or document.
A registered class may also hold ``option_rules``, a mapping from argument to :class:`~.rules.Rule`, and
``check_options``, a static method from its options to (argument, mistake) pairs.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import itertools
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .problems import Problem, join
from .rules import ANYTHING, NOTHING, Choice, Each, Either, Flag, List, Number, Rule, Section, Text

_NAMESPACE = {**vars(typing), **{name: getattr(collections.abc, name) for name in collections.abc.__all__}}
_DOCUMENTED = re.compile(r"^\s+(\*{0,2}[A-Za-z_]\w*(?:, \w+)*)\s*(?:\([^)]*\))?\s*:", re.MULTILINE)
_SECTIONS = re.compile(r"^\s*(Args|Arguments|Parameters|Returns?|Raises|Yields|Attributes|Examples?|Note)s?:\s*$", re.M)


def rule_of_type(kind: object) -> Rule:
    """The rule of a type annotation (a type, or its source text)."""
    if isinstance(kind, str):
        try:
            # annotations come from code that is imported already; option files never reach this
            kind = eval(kind, dict(_NAMESPACE))
        except Exception:
            return ANYTHING
    if kind is None or kind is type(None):
        return NOTHING
    simple = {bool: Flag(), int: Number(whole=True), float: Number(), str: Text(empty=True)}
    if kind in simple if isinstance(kind, type) else False:
        return simple[kind]
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Literal:
        return Choice(arguments)
    if origin in (typing.Union, types.UnionType):
        rules = tuple(rule_of_type(argument) for argument in arguments)
        return ANYTHING if ANYTHING in rules else Either(rules)
    if isinstance(origin, type) and not issubclass(origin, (str, bytes)):
        if issubclass(origin, collections.abc.Mapping):
            return Each(rule_of_type(arguments[1]) if len(arguments) == 2 else ANYTHING)
        if issubclass(origin, (collections.abc.Sequence, collections.abc.Iterable)):
            inner = [argument for argument in arguments if argument is not Ellipsis]
            return List(rule_of_type(inner[0]) if len(inner) == 1 else ANYTHING, least=0)
    return ANYTHING


def rule_of_default(default: object, strict: bool) -> Rule:
    """The rule of an argument that has no annotation.

    Args:
        default: its default value.
        strict: for BasicSR's own classes, which take no list where the default is a number.
    """
    if isinstance(default, bool):
        return Flag()
    if isinstance(default, (int, float)):
        return Number() if strict else Either((Number(), List(Number(), least=0)))
    if isinstance(default, str):
        return Either((Text(empty=True), NOTHING))
    if isinstance(default, (list, tuple)):
        entry = Number() if default and all(isinstance(v, (int, float)) for v in default) else ANYTHING
        many = List(entry, least=0)
        return many if strict else Either((many, entry, NOTHING))
    return ANYTHING


def rule_of_parameter(parameter: inspect.Parameter, strict: bool) -> Rule:
    """The rule of one argument of a constructor or function."""
    if parameter.annotation is not parameter.empty:
        return rule_of_type(parameter.annotation)
    return ANYTHING if parameter.default is parameter.empty else rule_of_default(parameter.default, strict)


def documented(thing: object) -> set[str]:
    """Names of the arguments in the ``Args:`` section of a docstring (of a class: its constructor's as well)."""
    names: set[str] = set()
    for part in (thing, getattr(thing, "__init__", None) if inspect.isclass(thing) else None):
        text = getattr(part, "__doc__", None) or ""
        marks = list(_SECTIONS.finditer(text))
        for mark, following in itertools.zip_longest(marks, marks[1:]):
            if mark[1] in ("Args", "Arguments", "Parameters"):
                body = text[mark.end() : following.start() if following else len(text)]
                for found in _DOCUMENTED.findall(body):
                    names.update(name.lstrip("*") for name in found.split(", "))
    return names


def arguments(thing: Callable) -> tuple[dict[str, inspect.Parameter], bool]:
    """Named arguments of a class or function, and whether it takes others as well.

    A class whose ``__init__`` hands ``**kwargs`` to its base has the base's arguments too.
    """
    try:
        found = dict(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return {}, True
    open_ended = any(p.kind is p.VAR_KEYWORD for p in found.values())
    if open_ended and inspect.isclass(thing):
        for base in thing.__mro__[1:]:
            init = base.__dict__.get("__init__")
            if init is None or base.__module__.split(".")[0] in ("builtins", "torch"):
                continue
            for name, parameter in list(inspect.signature(init).parameters.items())[1:]:
                found.setdefault(name, parameter)
            break
    named = {n: p for n, p in found.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL, p.POSITIONAL_ONLY)}
    return named, open_ended


@functools.lru_cache(maxsize=256)
def section_of(
    thing: Callable,
    skip: tuple[str, ...] = (),
    extra: tuple[tuple[str, Rule], ...] = (),
    refine: Callable[[str, inspect.Parameter, Rule], Rule] | None = None,
) -> Section:
    """The section whose keys are the arguments of a registered class or function.

    Args:
        thing: the class or function.
        skip: arguments that do not come from the option file.
        extra: further keys.
        refine: from (argument's name, parameter, rule) to a narrower rule.
    """
    named, open_ended = arguments(thing)
    strict = (getattr(thing, "__module__", None) or "").split(".")[0] in ("basicsr", "torch")
    own = getattr(thing, "option_rules", {})
    keys: dict[str, Rule] = {}
    for name, parameter in named.items():
        if name not in skip and name != "self":
            rule = own.get(name) or rule_of_parameter(parameter, strict)
            keys[name] = refine(name, parameter, rule) if refine and name not in own else rule
    required = tuple(n for n, p in named.items() if n in keys and p.default is p.empty)
    policy = "refuse"
    if open_ended:
        for name in documented(thing) - keys.keys() - {*skip, "kwargs", "args"}:
            keys[name] = own.get(name, ANYTHING)
        policy = "refuse" if strict else "misspelt"
    keys |= dict(extra)
    check = getattr(thing, "check_options", None)
    return Section(keys, required, policy, getattr(thing, "__name__", ""), _own_check(check) if check else None)


def _own_check(check: Callable[[Mapping], Any]) -> Callable[[str, Mapping], Iterator[Problem]]:
    def problems(where: str, options: Mapping) -> Iterator[Problem]:
        for key, text in check(options):
            yield Problem(join(where, key), text)

    return problems
